"""What a comparison has found so far, read from the directories of its runs and evaluations."""

from __future__ import annotations

from jobs.analysis.outcomes import ProblemOutcomes, problem_outcomes
from jobs.analysis.trained import TrainedRun, trained_run
from jobs.compare_config import BASE
from jobs.comparison.experiment import ComparedRun, Evaluated, Experiment
from jobs.directory.metrics import read_metrics
from jobs.reports.compare.report import Found
from jobs.sampling.samples import read_only_model


class Results:
    """Reads each finished evaluation once."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._read: dict[str, ProblemOutcomes] = {}

    def read(self) -> Found:
        """Return everything that is finished, and the runs as far as they are."""
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
            self._read[one.name] = problem_outcomes(read_only_model(one.directory), max_k=self._experiment.config.evaluation.samples)
        return self._read.get(one.name)


def _trained(run: ComparedRun) -> TrainedRun | None:
    records = read_metrics(run.directory.metrics)
    return trained_run(records, name=run.name, method=run.method, seed=run.seed) if records else None
