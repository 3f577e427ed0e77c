"""The report on a comparison of methods. Its figures are overview, passk, differences, learning and training; its
tables lie beside it as table.csv (a row for each method and step), differences.csv and seeds.csv (a row for each
policy)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.analysis.methods import (
    BySeed,
    MethodDifference,
    MethodStatistics,
    method_difference,
    method_statistics,
    spread_of,
    with_correction,
)
from jobs.analysis.seeds import RunSpread
from jobs.analysis.trained import OnlineStatistics, TrainedRun, online_statistics
from jobs.compare_config import BASE, CompareConfig
from jobs.directory.atomic import replacing
from jobs.reports.compare.plots import difference_figure, learning_figure, overview_figure, passk_figure, style_by_method, training_figure
from jobs.reports.compare.summary import (
    difference_table,
    efficiency_table,
    method_table,
    notes,
    online_table,
    spending_table,
    summary_sentences,
    test_table,
)
from jobs.reports.compare.tables import Row, difference_rows, method_rows, policy_rows
from jobs.reports.plots import Drawing
from jobs.reports.report import Report, TextTable
from jobs.reports.text import flattened

CAPTIONS = {
    "overview": "Means over seeds and problems; with few methods bands are 95 % intervals over runs and problems. pass@k is the unbiased "
    "estimate from all samples.",
    "passk": "The same, one method at a time beside the baseline and the base model, with bands: 95 % intervals over runs and problems.",
    "differences": "Paired differences to the baseline with 95 % intervals over runs and problems. An interval that leaves out 0 is a "
    "difference; a filled marker one that survives the correction for the number of methods.",
    "learning": "pass@k of the evaluated policies. Step 0 is the base model.",
    "training": "What the runs logged while they trained: means over seeds and the last five steps.",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a comparison has found so far."""

    policies: Mapping[str, Mapping[int, BySeed]]
    """By method and step. The base model is a method of one step, 0, and one seed."""
    runs: tuple[TrainedRun, ...]
    num_expected: int
    """The number of evaluations of the whole comparison."""

    @property
    def num_evaluated(self) -> int:
        """The number of evaluations that are finished."""
        return sum(len(by_seed) for by_step in self.policies.values() for by_seed in by_step.values())


@dataclass(frozen=True, kw_only=True)
class CompareReport(Report):
    """What the methods achieve, in the order of the configuration, the base model first."""

    template = "compare/page.html.jinja"
    title = "Comparison of methods"
    captions = CAPTIONS

    baseline: str
    step: int
    """The step whose policies are compared: the last that is evaluated."""
    statistics: Mapping[str, tuple[MethodStatistics, ...]]
    """By method, by increasing step."""
    differences: tuple[MethodDifference, ...]
    """Each method less the baseline at `step`."""
    base_difference: MethodDifference | None
    """The base model less the baseline; no method, so it is no part of the correction."""
    policies: tuple[Row, ...]
    """One for each evaluated policy: the numbers of single runs."""
    online: Mapping[str, OnlineStatistics]
    """By method: the second half of the steps, while it trained."""
    runs: tuple[TrainedRun, ...]
    failures: Mapping[str, str]
    confidence: float = 0.95
    num_resamples: int
    seed: int

    @property
    def last(self) -> dict[str, MethodStatistics]:
        """The statistics that are compared: those of `step`, and of the base model."""
        return {name: one for name, steps in self.statistics.items() for one in steps if one.step == (0 if name == BASE else self.step)}

    @property
    def all_differences(self) -> tuple[MethodDifference, ...]:
        """The differences of the methods, then that of the base model."""
        return (*self.differences, *([self.base_difference] if self.base_difference else []))

    def page_values(self) -> dict[str, Any]:
        """Return the tables."""
        return {
            "results": method_table(self.last),
            "tests": test_table(self.all_differences),
            "measures": difference_table(self.all_differences),
            "efficiency": efficiency_table(self.all_differences),
            "online": online_table(self.online),
            "spending": spending_table(self.runs, self.last),
            "runs": _runs_table(self.runs),
            "policies": _policies_table(self.policies),
        }

    def table(self) -> TextTable:
        """Return a row for each method."""
        return method_table(self.last, few_ks=True)

    def write(self, directory: Path, figures: Mapping[str, Drawing | None]) -> None:
        """Write the tables as CSV too."""
        super().write(directory, figures)
        tables = {"table": method_rows(self.statistics), "differences": difference_rows(self.all_differences), "seeds": self.policies}
        for name, rows in tables.items():
            _write_csv(directory / f"{name}.csv", rows)


def write_report(found: Found, config: CompareConfig, directory: Path, *, failures: Mapping[str, str]) -> CompareReport:
    """Write the report on what was found so far into `directory`."""
    order = [name for name in (BASE, *config.methods) if name in found.policies]
    spreads = _spreads(found)
    statistics = {name: _statistics(name, found.policies[name], config, spreads) for name in order}
    statistics = {name: steps for name, steps in statistics.items() if steps}
    step = max((one.step for steps in statistics.values() for one in steps), default=0)
    differences = with_correction(list(_differences(found, config, order, step, spreads[step])))
    base_difference = _base_difference(found, config, step, spreads[step])
    ks = next(iter(statistics.values()))[0].ks if statistics else (1,)
    report = CompareReport(
        summary=summary_sentences(differences, base_difference, config, step, spreads[step]),
        notes=notes(found.num_evaluated, found.num_expected, statistics, config, failures),
        settings=flattened(config.model_dump(mode="json")),
        baseline=config.baseline,
        step=step,
        statistics=statistics,
        differences=differences,
        base_difference=base_difference,
        policies=tuple(policy_rows({name: found.policies[name] for name in order}, ks)),
        online=online_statistics(
            found.runs, config.baseline, steps=step, num_resamples=config.evaluation.resamples, seed=config.evaluation.seed
        ),
        runs=found.runs,
        failures=dict(failures),
        num_resamples=config.evaluation.resamples,
        seed=config.evaluation.seed,
    )
    styles = style_by_method((BASE, *config.methods), BASE)
    figures = {
        "overview": overview_figure(report.last, styles),
        "passk": passk_figure(report.last, BASE, config.baseline),
        "differences": difference_figure(report.differences, styles),
        "learning": learning_figure(statistics, styles, BASE, ks),
        "training": training_figure(found.runs, styles),
    }
    report.write(directory, figures)
    return report


def _spreads(found: Found) -> dict[int, RunSpread]:
    """Return by step how runs of a method differ, over all methods. The base model, step 0, is not a run."""
    steps = {step for by_step in found.policies.values() for step in by_step} - {0}
    spreads = {
        step: spread_of({name: by_step[step] for name, by_step in found.policies.items() if step in by_step}) for step in sorted(steps)
    }
    return {0: spread_of({})} | spreads


def _statistics(
    method: str, by_step: Mapping[int, BySeed], config: CompareConfig, spreads: Mapping[int, RunSpread]
) -> tuple[MethodStatistics, ...]:
    asked = config.evaluation
    found = (
        method_statistics(method, by_step[step], spreads[step], step=step, ks=asked.k, num_resamples=asked.resamples, seed=asked.seed)
        for step in sorted(by_step)
    )
    return tuple(one for one in found if one is not None)


def _differences(found: Found, config: CompareConfig, order: Sequence[str], step: int, spread: RunSpread) -> Iterator[MethodDifference]:
    others = found.policies.get(config.baseline, {}).get(step)
    for method in order:
        by_seed = found.policies[method].get(step)
        if method in (BASE, config.baseline) or by_seed is None or others is None:
            continue
        difference = _difference(method, by_seed, config, others, step, spread)
        if difference is not None:
            yield difference


def _base_difference(found: Found, config: CompareConfig, step: int, spread: RunSpread) -> MethodDifference | None:
    """Return the base model less the baseline."""
    others = found.policies.get(config.baseline, {}).get(step)
    base = found.policies.get(BASE, {}).get(0)
    if base is None or others is None or step == 0:
        return None
    return _difference(BASE, base, config, others, step, spread)


def _difference(
    method: str, by_seed: BySeed, config: CompareConfig, others: BySeed, step: int, spread: RunSpread
) -> MethodDifference | None:
    asked = config.evaluation
    return method_difference(
        method, by_seed, config.baseline, others, spread, step=step, ks=asked.k, num_resamples=asked.resamples, seed=asked.seed
    )


def _runs_table(runs: Sequence[TrainedRun]) -> TextTable:
    rows = [(run.method, str(run.seed), str(run.steps), f"{run.tokens:,.0f}", f"{run.seconds:,.0f}") for run in runs]
    return TextTable(headings=("method", "seed", "steps", "tokens", "seconds"), rows=rows)


def _policies_table(policies: Sequence[Row]) -> TextTable:
    headings = list(policies[0]) if policies else []
    rows = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in policies]
    return TextTable(headings=headings, rows=rows)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that may lack columns of others; such a cell is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as staging:
        staging.write_text(text.getvalue(), encoding="utf-8")
