"""What an evaluation says in sentences and in one table, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.analysis.bootstrap import Curve, Estimate
from jobs.analysis.comparison import Comparison
from jobs.analysis.evaluation import EvaluationReport
from jobs.reports.explore.summary import ROUGH_BELOW, interval_text
from jobs.reports.page import interval, one_line
from jobs.screens.console import say

if TYPE_CHECKING:
    from jobs.reports.evaluate.report import EvaluateReport

CONSOLE_KS = 6
MAJORITY_KS = 3

Models = Mapping[str, EvaluationReport]


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One line of the table: a name, and a number of every model; None where it has none."""

    name: str
    values: tuple[Estimate | None, ...]
    digits: int = 2

    def cells(self) -> list[str]:
        return [interval(None if value is None else vars(value), self.digits) for value in self.values]


def metric_rows(models: Models, ks: Sequence[int], majority_ks: Sequence[int]) -> list[MetricRow]:
    """pass@k and maj@k at the k given, then everything that is one number a model; what no model has is left out."""
    reports = list(models.values())
    last = reports[0].ks[-1]
    rows = [MetricRow(name=f"pass@{k}", values=_at([report.pass_at_k for report in reports], k)) for k in ks]
    rows += [MetricRow(name=f"maj@{k}", values=_at([report.majority_at_k for report in reports], k)) for k in majority_ks]
    rows += [
        MetricRow(name=f"distinct answers of {last}", values=_at([report.distinct_at_k for report in reports], last), digits=1),
        MetricRow(name="problems all right", values=tuple(report.all_correct for report in reports)),
        MetricRow(name="problems all wrong", values=tuple(report.all_wrong for report in reports)),
        MetricRow(name="tokens", values=tuple(report.tokens for report in reports), digits=1),
        MetricRow(name="cut off at the limit", values=tuple(report.truncated for report in reports)),
        MetricRow(name="entropy, nats a token", values=tuple(report.entropy for report in reports), digits=3),
        MetricRow(name="base log-prob a token", values=tuple(report.base_logprob for report in reports), digits=2),
        MetricRow(name="  of correct responses", values=tuple(report.base_logprob_correct for report in reports), digits=2),
        MetricRow(name="base log-likelihood", values=tuple(report.base_loglikelihood for report in reports), digits=1),
    ]
    return [row for row in rows if any(value is not None for value in row.values)]


def spread(ks: Sequence[int], num: int) -> list[int]:
    """At most `num` of `ks`, the first and the last among them."""
    places = sorted({round(place) for place in np.linspace(0, len(ks) - 1, num)}) if len(ks) > 1 else [0]
    return [ks[place] for place in places]


def verdict_shares(report: EvaluationReport) -> str:
    """ "52.1 % correct, 40.0 % incorrect": what there was, in a fixed order."""
    total = max(1, sum(report.verdicts.values()))
    return ", ".join(f"{100 * count / total:.1f} % {status}" for status, count in report.verdicts.items() if count)


def summary_sentences(models: Models, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """The result first, then what was measured."""
    first = next(iter(models.values()))
    each = first.num_samples // first.num_problems
    what = (
        f"{first.num_problems} problems, {each} samples of each by {'each of ' if len(models) > 1 else ''}{_count(len(models), 'model')}."
    )
    return (*(_comparison_sentence(comparison) for comparison in comparisons), what)


def notes(models: Models) -> tuple[str, ...]:
    """What is missing, and what to be careful with."""
    found = []
    for label, report in models.items():
        if report.unscored:
            found.append(
                f"{label}: {100 * report.unscored:.2f} % of responses could not be scored (timeout or error). They are left out, never "
                f"counted as wrong: {_count(report.num_problems_short, 'problem')} with fewer than all samples scored count at larger k "
                f"with what they have, and {_count(report.num_problems_unscored, 'problem')} without any not at all."
            )
    first = next(iter(models.values()))
    if first.num_problems == 1:
        found.append("One problem leaves no intervals: they are over problems.")
    elif first.num_problems < ROUGH_BELOW:
        found.append(f"Intervals over {first.num_problems} problems are rough, and somewhat too short.")
    return tuple(found)


def _comparison_sentence(comparison: Comparison) -> str:
    k = comparison.ks[-1]
    ends = [comparison.ks[0], *([k] if k > comparison.ks[0] else [])]
    parts = [f"pass@{end} {_signed(comparison.difference.at(end))}" for end in ends]
    sentence = f"{comparison.model} less {comparison.against}: {', '.join(parts)}."
    return " ".join([sentence, *_efficiency_sentences(comparison, k)])


def _efficiency_sentences(comparison: Comparison, k: int) -> list[str]:
    """Of the two directions the one that says something."""
    model, against = comparison.model, comparison.against
    ways = ((comparison.efficiency, model, against), (comparison.reverse_efficiency, against, model))
    known = [(curve.at(k), model, against) for curve, model, against in ways if curve is not None]
    reached = [(ratio, model, against) for ratio, model, against in known if ratio is not None and ratio.value > 0]
    if not reached or k == 1:
        return []
    ratio, model, against = max(reached, key=lambda one: one[0].value)
    times = interval_text(ratio)
    return [f"{model} reaches the pass@{k} of {against} with {k / ratio.value:.1f} samples: sample efficiency {times}."]


def _signed(estimate: Estimate | None) -> str:
    return interval(None if estimate is None else vars(estimate), 3, sign=True)


def _at(curves: Sequence[Curve | None], k: int) -> tuple[Estimate | None, ...]:
    return tuple(None if curve is None else curve.at(k) for curve in curves)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_summary(report: EvaluateReport, console: Console) -> None:
    """One screen: a column a model, then the sentences."""
    ks = next(iter(report.models.values())).ks
    table = Table(title="mean over problems (95 % interval)", title_justify="left", title_style="", header_style="bold")
    table.add_column("")
    for label in report.models:
        table.add_column(Text(one_line(label)), justify="right")
    for row in metric_rows(report.models, spread(ks, CONSOLE_KS), [k for k in spread(ks, MAJORITY_KS) if k > 2]):
        table.add_row(row.name, *row.cells())
    console.print(table)
    for label, one in report.models.items():
        say(console, one_line(f"{label}: {verdict_shares(one)}"))
    for sentence in (*report.summary, *report.notes):
        say(console, one_line(sentence))
