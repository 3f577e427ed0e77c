"""The report on the samples of one or more models: numbers, figures, a page to read.

    report = write_report(store, ["base", "trained"], settings, Path("runs/evaluation"), max_k=256)

writes report.json (every number that is shown), report.html (one file, opens anywhere), and for each figure a PNG and a
JSON with what it draws: passk, solve_rates, difference, efficiency."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.analysis.bootstrap import NUM_RESAMPLES
from jobs.analysis.candidate_table import CandidatePool, candidate_pools
from jobs.analysis.comparison import Comparison, compare
from jobs.analysis.evaluation import EvaluationReport, evaluate_outcomes
from jobs.analysis.outcomes import ProblemOutcomes, problem_outcomes
from jobs.reports.evaluate.examples import EvaluationExample, choose_problems, example_of
from jobs.reports.evaluate.html import render_html
from jobs.reports.evaluate.plots import difference_figure, efficiency_figure, pass_at_k_figure, solve_rates_figure
from jobs.reports.evaluate.summary import notes, summary_sentences
from jobs.reports.explore.summary import flattened
from jobs.reports.page import json_bytes, write_figure, write_file
from jobs.sampling.candidates import PoolStore

STATISTICS_COLUMNS = (
    *("model", "task", "problem_id", "question", "reference_answer", "index", "response_ids", "response_text", "finish_reason"),
    *("mean_logprob", "verdict_status", "final_answer", "base_mean_logprob"),
)


@dataclass(frozen=True, kw_only=True)
class ProblemLine:
    """One problem: correct and scored responses of every model, in their order."""

    problem_id: str
    num_correct: tuple[int, ...]
    num_scored: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """All that a report shows. `models` are in the order they were named in; each is compared with those before it."""

    summary: tuple[str, ...]
    notes: tuple[str, ...]
    models: Mapping[str, EvaluationReport]
    comparisons: tuple[Comparison, ...]
    problems: tuple[ProblemLine, ...]
    examples: tuple[EvaluationExample, ...]
    settings: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_report(
    store: PoolStore,
    labels: Sequence[str],
    settings: Mapping[str, Any],
    directory: Path,
    *,
    max_k: int,
    ks: Sequence[int] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> EvaluateReport:
    """Write the report on the compacted pools of `store` into `directory`, each file whole or not at all."""
    outcomes = {label: problem_outcomes(_pools(store, label), max_k=max_k) for label in labels}
    report = EvaluateReport(
        **_statistics(outcomes, ks, num_resamples, seed),
        problems=_problem_lines(list(outcomes.values())),
        examples=tuple(_examples(store, outcomes)),
        settings=flattened(settings),
    )
    figures = {
        "passk": pass_at_k_figure(report.models),
        "solve_rates": solve_rates_figure(outcomes),
        "difference": difference_figure(report.comparisons),
        "efficiency": efficiency_figure(report.comparisons),
    }
    for name, drawing in figures.items():
        write_figure(directory / name, drawing)
    record = report.to_json()
    write_file(directory / "report.json", json_bytes(record))
    drawn = {name: drawing for name, drawing in figures.items() if drawing is not None}
    write_file(directory / "report.html", render_html(report, drawn).encode())
    return report


def _statistics(outcomes: Mapping[str, ProblemOutcomes], ks: Sequence[int], num_resamples: int, seed: int) -> dict[str, Any]:
    models = {label: evaluate_outcomes(one, ks=ks, num_resamples=num_resamples, seed=seed) for label, one in outcomes.items()}
    pairs = itertools.combinations(outcomes, 2)
    compared = [
        compare(later, outcomes[later], earlier, outcomes[earlier], ks=ks, num_resamples=num_resamples, seed=seed)
        for earlier, later in pairs
    ]
    comparisons = tuple(comparison for comparison in compared if comparison is not None)
    return {
        "summary": summary_sentences(models, comparisons),
        "notes": notes(models),
        "models": models,
        "comparisons": comparisons,
    }


def _pools(store: PoolStore, label: str) -> Iterator[CandidatePool]:
    for table in store.read_pools(lambda key: key[0] == label, STATISTICS_COLUMNS):
        yield from candidate_pools(table)


def _problem_lines(outcomes: Sequence[ProblemOutcomes]) -> tuple[ProblemLine, ...]:
    """Every model has the same problems, in the same order."""
    return tuple(
        ProblemLine(
            problem_id=problem_id,
            num_correct=tuple(int(one.num_correct_P[row]) for one in outcomes),
            num_scored=tuple(int(one.num_scored_P[row]) for one in outcomes),
        )
        for row, problem_id in enumerate(outcomes[0].problem_ids)
    )


def _examples(store: PoolStore, outcomes: Mapping[str, ProblemOutcomes]) -> Iterator[EvaluationExample]:
    chosen = choose_problems(list(outcomes.values()))
    pools: dict[tuple[str, str], CandidatePool] = {}
    for table in store.read_pools(lambda key: key[1] in chosen, STATISTICS_COLUMNS):
        (pool,) = candidate_pools(table)
        pools[table["model"][0].as_py(), pool.problem_id] = pool
    for problem_id in chosen:
        yield example_of({label: pools[label, problem_id] for label in outcomes})
