"""What a comparison has found so far, read from the directories of its runs and evaluations. What is done as a whole is
kept (`jobs.comparison.kept`), and is read from there from then on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.analysis.outcomes import ProblemOutcomes, outcomes_of
from jobs.analysis.problem_counts import ProblemCounts, count
from jobs.analysis.trained import TrainedRun, trained_run
from jobs.compare_config import BASE
from jobs.comparison import kept
from jobs.comparison.experiment import ComparedRun, Evaluated, Experiment
from jobs.config import RunConfig
from jobs.directory.metrics import read_metrics
from jobs.reports.compare.report import Found
from jobs.sampling.samples import read_only_model

Counts = tuple[ProblemCounts, ...]


class Results:
    """Reads each finished evaluation once."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._counts: dict[str, Counts] = {}
        self._outcomes: dict[str, ProblemOutcomes] = {}

    def read(self) -> Found:
        """Return everything that is finished, and the runs as far as they are; keep what is done as a whole. Raises
        UserError for a damaged file."""
        experiment = self._experiment
        policies: dict[str, dict[int, dict[int, ProblemOutcomes]]] = {}
        trained = []
        if (base := self._outcomes_of(experiment.base)) is not None:
            policies[BASE] = {0: {0: base}}
            self._keep(experiment.base.kept_in, (experiment.base,))
        for run in experiment.runs:
            for one in run.evaluations:
                if (outcomes := self._outcomes_of(one)) is not None:
                    policies.setdefault(run.method, {}).setdefault(one.step, {})[run.seed] = outcomes
            if (found := _trained(run)) is not None:
                trained.append(found)
                if not run.waiting:
                    self._keep(run.kept_in, run.evaluations, config=run.config, trained=found)
        return Found(policies=policies, runs=tuple(trained), num_expected=sum(1 for _ in experiment.evaluations))

    def _outcomes_of(self, one: Evaluated) -> ProblemOutcomes | None:
        if one.name not in self._outcomes and one.is_done:
            known = kept.read(one.kept_in)
            if known is not None and one.step in known.policies:
                self._counts[one.name] = known.policies[one.step]
            else:
                self._counts[one.name] = tuple(count(candidates) for candidates in read_only_model(one.directory))
            self._outcomes[one.name] = outcomes_of(self._counts[one.name], max_k=self._experiment.config.evaluation.samples)
        return self._outcomes.get(one.name)

    def _keep(
        self, file: Path, evaluations: Sequence[Evaluated], *, config: RunConfig | None = None, trained: TrainedRun | None = None
    ) -> None:
        known = kept.read(file)
        before = {} if known is None else known.policies
        if before.keys() >= {one.step for one in evaluations}:
            return
        unit = kept.Kept(
            evaluation=self._experiment.evaluation_of(file.stem).model_dump(mode="json"),
            policies={**before, **{one.step: self._counts[one.name] for one in evaluations}},
            config=None if config is None else config.model_dump(mode="json"),
            trained=trained,
        )
        kept.write(file, unit)


def _trained(run: ComparedRun) -> TrainedRun | None:
    """Return what the run logged, from where its policies are read, too."""
    known = kept.read(run.kept_in)
    if known is not None and known.policies.keys() >= {one.step for one in run.evaluations}:
        return known.trained
    if records := read_metrics(run.directory.metrics):
        return trained_run(records, name=run.name, method=run.method, seed=run.seed)
    return None if known is None else known.trained
