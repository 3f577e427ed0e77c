"""What a comparison has found so far. It is read once from the directories of runs and evaluations that are finished,
and kept in a few KB of each: a report can be made from these files alone, by whoever has them.

    OUT/results/NAME.json         what the run NAME spent, and how it went
    OUT/results/NAME@STEP.json    the counts of every problem (`jobs.analysis.problem_counts`)
    OUT/results/base.json         the same for the base model

Each file holds the configuration that it is of, so that it never speaks for another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from jobs.analysis.outcomes import ProblemOutcomes, outcomes_of
from jobs.analysis.problem_counts import ProblemCounts, count
from jobs.analysis.trained import TrainedRun, trained_run
from jobs.compare_config import BASE
from jobs.comparison.experiment import CONFIG_KEY, ComparedRun, Evaluated, Experiment
from jobs.configuration.user_error import UserError
from jobs.directory.atomic import replacing
from jobs.directory.job_dir import read_json
from jobs.directory.metrics import read_metrics
from jobs.reports.compare.report import Found
from jobs.sampling.samples import read_only_model

FOUND_KEY = "found"
T = TypeVar("T")


class Results:
    """Reads each finished evaluation once, and keeps what it says."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._read: dict[str, ProblemOutcomes] = {}

    def read(self) -> Found:
        """Return everything that is finished, and the runs as far as they are. Raises UserError for a damaged file."""
        experiment = self._experiment
        policies: dict[str, dict[int, dict[int, ProblemOutcomes]]] = {}
        if (base := self._outcomes(experiment.base)) is not None:
            policies[BASE] = {0: {0: base}}
        for run in experiment.runs:
            for one in run.evaluations:
                if (outcomes := self._outcomes(one)) is not None:
                    policies.setdefault(run.method, {}).setdefault(one.step, {})[run.seed] = outcomes
        trained = tuple(found for run in experiment.runs if (found := _trained(run)) is not None)
        return Found(policies=policies, runs=trained, num_expected=sum(1 for _ in experiment.evaluations))

    def _outcomes(self, one: Evaluated) -> ProblemOutcomes | None:
        if one.name not in self._read and one.is_done:
            if not one.result.is_file():
                counts = [count(candidates) for candidates in read_only_model(one.directory)]
                _keep(one.result, self._experiment.evaluation, [counted.record() for counted in counts])
            counts = _kept(one.result, lambda records: [ProblemCounts.of_record(record) for record in records])
            self._read[one.name] = outcomes_of(counts, max_k=self._experiment.config.evaluation.samples)
        return self._read.get(one.name)


def _trained(run: ComparedRun) -> TrainedRun | None:
    """Return what a run has logged, and keep it once the run is at its end."""
    kept = _kept(run.result, lambda found: TrainedRun(**found)) if run.result.is_file() else None
    if kept is not None and kept.steps >= run.config.steps:
        return kept
    if not (records := read_metrics(run.directory.metrics)):
        return kept
    found = trained_run(records, name=run.name, method=run.method, seed=run.seed)
    if found.steps >= run.config.steps:
        _keep(run.result, run.config, asdict(found))
    return found


def _keep(file: Path, config: BaseModel, found: Any) -> None:
    with replacing(file) as staging:
        staging.write_text(json.dumps({CONFIG_KEY: config.model_dump(mode="json"), FOUND_KEY: found}), encoding="utf-8")


def _kept(file: Path, parse: Callable[[Any], T]) -> T:
    try:
        return parse(read_json(file)[FOUND_KEY])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} is damaged: delete it, and what it is of is read, or done, again") from None
