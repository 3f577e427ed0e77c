"""What an evaluation says in sentences and in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.analysis.bootstrap import Curve, Estimate
from jobs.analysis.comparison import Comparison
from jobs.analysis.evaluation import ModelStatistics
from jobs.reports.report import TextTable
from jobs.reports.text import at, count, interval, interval_sentence, notes_on_intervals

HEADING = "mean over problems (95 % interval)"

Models = Mapping[str, ModelStatistics]


def metric_table(labels: Sequence[str], models: Sequence[ModelStatistics], ks: Sequence[int], majority_ks: Sequence[int]) -> TextTable:
    """Return pass@k and maj@k at the k given, then each single number of a model, without what no model has."""
    last = models[0].ks[-1]
    rows = [
        *(_row(f"pass@{k}", _at([one.pass_at_k for one in models], k)) for k in ks),
        *(_row(f"maj@{k}", _at([one.majority_at_k for one in models], k)) for k in majority_ks),
        _row(f"distinct answers of {last}", _at([one.distinct_at_k for one in models], last), 1),
        _row("problems all right", [one.all_correct for one in models]),
        _row("problems all wrong", [one.all_wrong for one in models]),
        _row("tokens", [one.tokens for one in models], 1),
        _row("cut off at the limit", [one.truncated for one in models]),
        _row("entropy, nats a token", [one.entropy for one in models], 3),
        _row("base log-prob a token", [one.base_logprob for one in models]),
        _row("  of correct responses", [one.base_logprob_correct for one in models]),
        _row("base log-likelihood", [one.base_loglikelihood for one in models], 1),
    ]
    return TextTable(headings=(HEADING, *labels), rows=[row for row in rows if row])


def _row(name: str, estimates: Sequence[Estimate | None], digits: int = 2) -> tuple[str, ...]:
    """Return a name and its cells, or nothing where no model has the number."""
    if all(estimate is None for estimate in estimates):
        return ()
    return (name, *(interval(estimate, digits) for estimate in estimates))


def _at(curves: Sequence[Curve | None], k: int) -> list[Estimate | None]:
    return [at(curve, k) for curve in curves]


def verdict_shares(report: ModelStatistics) -> str:
    """Return "52.1 % correct, 40.0 % incorrect": the statuses that occur, in a fixed order."""
    total = max(1, sum(report.verdicts.values()))
    return ", ".join(f"{100 * number / total:.1f} % {status}" for status, number in report.verdicts.items() if number)


def summary_sentences(models: Models, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Return the result first, then what was measured."""
    first = next(iter(models.values()))
    each = first.num_samples // first.num_problems
    by = f"{'each of ' if len(models) > 1 else ''}{count(len(models), 'model')}"
    what = f"{first.num_problems} problems, {each} samples of each by {by}."
    return (*(_comparison_sentence(comparison) for comparison in comparisons), what)


def notes(models: Models) -> tuple[str, ...]:
    """Return what is missing, and what to be careful with."""
    found = []
    for label, report in models.items():
        if report.unscored:
            found.append(
                f"{label}: {100 * report.unscored:.2f} % of responses could not be scored (timeout or error). They are left out, never "
                f"counted as wrong: {count(report.num_problems_short, 'problem')} with fewer than all samples scored count at larger k "
                f"with what they have, and {count(report.num_problems_unscored, 'problem')} without any not at all."
            )
    return (*found, *notes_on_intervals(next(iter(models.values())).num_problems, "problem"))


def _comparison_sentence(comparison: Comparison) -> str:
    k = comparison.ks[-1]
    ends = [comparison.ks[0], *([k] if k > comparison.ks[0] else [])]
    parts = [f"pass@{end} {interval(comparison.difference.at(end), 3, sign=True)}" for end in ends]
    sentence = f"{comparison.model} less {comparison.against}: {', '.join(parts)}."
    return " ".join([sentence, *_efficiency_sentences(comparison, k)])


def _efficiency_sentences(comparison: Comparison, k: int) -> list[str]:
    """Return a sentence on that of the two directions which says more, or none."""
    model, against = comparison.model, comparison.against
    ways = ((comparison.efficiency, model, against), (comparison.reverse_efficiency, against, model))
    known = [(at(curve, k), model, against) for curve, model, against in ways]
    reached = [(ratio, model, against) for ratio, model, against in known if ratio is not None and ratio.value > 0]
    if not reached or k == 1:
        return []
    ratio, model, against = max(reached, key=lambda one: one[0].value)
    samples = f"{k / ratio.value:.1f} samples"
    return [f"{model} reaches the pass@{k} of {against} with {samples}: sample efficiency {interval_sentence(ratio)}."]
