"""The report on the responses of one or more models. Its figures are passk, solve_rates, difference and efficiency.
`read` yields the responses, one problem at a time, so that the responses of all problems never lie in memory
together."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jobs.analysis.bootstrap import NUM_RESAMPLES
from jobs.analysis.candidate_table import Candidates
from jobs.analysis.comparison import Comparison, compare
from jobs.analysis.evaluation import ModelStatistics, evaluate_outcomes
from jobs.analysis.outcomes import ProblemOutcomes, problem_outcomes
from jobs.reports.evaluate.examples import EvaluationExample, choose_problems, example_of
from jobs.reports.evaluate.plots import difference_figure, efficiency_figure, pass_at_k_figure, solve_rates_figure
from jobs.reports.evaluate.summary import metric_table, notes, summary_sentences, verdict_shares
from jobs.reports.report import Report, TextTable
from jobs.reports.text import NAME_LIMIT, flattened, spread, visible_text

CONSOLE_KS, CONSOLE_MAJORITY_KS = 6, 3
SHOWN_PROBLEMS = 300
CAPTIONS = {
    "passk": "Means over problems; bands are 95 % intervals over problems. pass@k is the unbiased estimate from all samples, maj@k the "
    "exact expectation over all choices of k of them, ties broken at random.",
    "solve_rates": "Problems that are never solved or always solved leave training nothing to learn from.",
    "difference": "Both models on the same problems, resampled together. Where the band leaves out 0, the models differ.",
    "efficiency": "How many times fewer samples one model needs for what the other reaches with K: 2 is half as many. A line on the lower "
    "edge means that it does not reach it with all its samples.",
}


class ReadResponses(Protocol):
    """Reads the responses of the model `label`, one problem at a time; of all problems, or of those named."""

    def __call__(self, label: str, problem_ids: Collection[str] | None = None) -> Iterable[Candidates]: ...


@dataclass(frozen=True, kw_only=True)
class ProblemLine:
    """One problem: correct and scored responses of every model, in their order."""

    problem_id: str
    num_correct: tuple[int, ...]
    num_scored: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(Report):
    """What the models achieve. They stand in the order they were named in; each is compared with those before it."""

    template = "evaluate/page.html.jinja"
    title = "Evaluation report"
    captions = CAPTIONS

    models: Mapping[str, ModelStatistics]
    comparisons: tuple[Comparison, ...]
    problems: tuple[ProblemLine, ...]
    examples: tuple[EvaluationExample, ...]

    @property
    def first(self) -> ModelStatistics:
        """The first model's numbers: what all models have in common can be read from them."""
        return next(iter(self.models.values()))

    def page_values(self) -> dict[str, Any]:
        """Return the table of all metrics, the verdicts, and the first problems, under names that fit a page."""
        ks = self.first.ks
        labels = [visible_text(label, NAME_LIMIT) for label in self.models]
        lines = [(visible_text(line.problem_id, NAME_LIMIT), line) for line in self.problems[:SHOWN_PROBLEMS]]
        return {
            "metrics": metric_table(labels, list(self.models.values()), ks, [k for k in ks if k > 2]),
            "verdicts": [(label, verdict_shares(one)) for label, one in zip(labels, self.models.values(), strict=True)],
            "problems": TextTable(headings=("problem", *labels), rows=[(name, *_shares(line)) for name, line in lines]),
            "shown_problems": SHOWN_PROBLEMS,
            "first": self.first,
        }

    def table(self) -> TextTable:
        """Return a column for each model, at a few values of k."""
        majority_ks = [k for k in spread(self.first.ks, CONSOLE_MAJORITY_KS) if k > 2]
        return metric_table(list(self.models), list(self.models.values()), spread(self.first.ks, CONSOLE_KS), majority_ks)

    def sentences(self) -> tuple[str, ...]:
        """Return the verdicts of every model, then the summary and the notes."""
        return (*(f"{label}: {verdict_shares(one)}" for label, one in self.models.items()), *self.summary, *self.notes)


def write_report(
    read: ReadResponses,
    labels: Sequence[str],
    settings: Mapping[str, Any],
    directory: Path,
    *,
    max_k: int,
    ks: Sequence[int] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> EvaluateReport:
    """Write the report on the models `labels` into `directory`. `max_k` is the largest number of responses to a
    problem, `ks` are the k of the tables (empty: 1, 2, 4, … and `max_k`), `num_resamples` and `seed` are those of the
    bootstrap. Raises ValueError as `problem_outcomes`."""
    outcomes = {label: problem_outcomes(read(label), max_k=max_k) for label in labels}
    models = {label: evaluate_outcomes(one, ks=ks, num_resamples=num_resamples, seed=seed) for label, one in outcomes.items()}
    comparisons = tuple(_comparisons(outcomes, ks, num_resamples, seed))
    correct_PM = np.stack([one.num_correct_P for one in outcomes.values()], axis=1).tolist()
    scored_PM = np.stack([one.num_scored_P for one in outcomes.values()], axis=1).tolist()
    report = EvaluateReport(
        summary=summary_sentences(models, comparisons),
        notes=notes(models),
        models=models,
        comparisons=comparisons,
        problems=tuple(
            ProblemLine(problem_id=problem_id, num_correct=tuple(correct), num_scored=tuple(scored))
            for problem_id, correct, scored in zip(next(iter(outcomes.values())).problem_ids, correct_PM, scored_PM, strict=True)
        ),
        examples=_examples(read, outcomes),
        settings=flattened(settings),
    )
    figures = {
        "passk": pass_at_k_figure(report.models),
        "solve_rates": solve_rates_figure(outcomes),
        "difference": difference_figure(report.comparisons),
        "efficiency": efficiency_figure(report.comparisons),
    }
    report.write(directory, figures)
    return report


def _comparisons(outcomes: Mapping[str, ProblemOutcomes], ks: Sequence[int], num_resamples: int, seed: int) -> Iterator[Comparison]:
    for earlier, later in itertools.combinations(outcomes, 2):
        found = compare(later, outcomes[later], earlier, outcomes[earlier], ks=ks, num_resamples=num_resamples, seed=seed)
        if found is not None:
            yield found


def _shares(line: ProblemLine) -> Iterator[str]:
    return (f"{correct} / {scored}" for correct, scored in zip(line.num_correct, line.num_scored, strict=True))


def _examples(read: ReadResponses, outcomes: Mapping[str, ProblemOutcomes]) -> tuple[EvaluationExample, ...]:
    chosen = choose_problems(list(outcomes.values()))
    responses = {label: {one.problem_id: one for one in read(label, chosen)} for label in outcomes}
    return tuple(example_of({label: responses[label][problem_id] for label in outcomes}) for problem_id in chosen)
