"""The evaluation of a policy while it is trained: what is asked of it, and where the results are kept.

    RUN_DIR/eval/step_000020.parquet      every response, as in the samples.parquet of `jobs.evaluate`

The workers must hold the weights of `step` and get no others until the evaluation ends: every token then comes from
that version, which is checked. The problems and the seed are the same every time, so that only the policy differs
between two evaluations."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from jobs.analysis.candidate_table import candidates_by_problem
from jobs.analysis.evaluation import evaluate_candidates
from jobs.directory.atomic import replacing
from jobs.evaluation_config import EvaluationConfig
from jobs.processes.handles import Handle
from jobs.sampling.evaluator import Evaluator, EvaluatorSettings
from jobs.sampling.job import problems_of, usable_of
from tasks.base import Task


class TrainingEvaluation:
    """Asks the policy its problems. It holds no policy and no worker."""

    def __init__(self, config: EvaluationConfig, task: Task, settings: EvaluatorSettings, directory: Path) -> None:
        """Read the problems. Raises UserError for a split that the task does not have, or that is empty."""
        self._config, self._task = config, task
        self._settings, self._directory = settings, directory
        self.warnings: list[str] = []
        """What the person who starts the run should know of the problems."""
        self.problems = problems_of(task, config.split, config.problems, warn=self.warnings.append)

    def leave_out(self, unusable: Collection[str]) -> None:
        """Do without the problems of these ids. Raises UserError where none are left."""
        self.problems = usable_of(self.problems, unusable)

    def is_due(self, step: int) -> bool:
        """Return whether the policy of `step` is to be evaluated."""
        return self._config.every > 0 and step % self._config.every == 0

    async def run(self, step: int, workers: Sequence[Handle[RolloutWorker]], verifier: Handle[VerifierPool]) -> dict[str, float]:
        """Evaluate the policy of `step`, which `workers` hold, and return the metrics (docs/metrics.md). Where a worker
        or the verifier raises, or a worker sampled under other weights (RuntimeError), nothing is written."""
        tables: dict[str, pa.Table] = {}

        def keep(responses: pa.Table) -> None:
            tables[responses["problem_id"][0].as_py()] = responses

        evaluator = Evaluator(
            self._task, workers, verifier, self._settings, label=f"step {step}", version=step, keep=keep, on_finished=lambda usage: None
        )
        await evaluator.run(self.problems)
        table = pa.concat_tables([tables[problem.problem_id] for problem in self.problems])
        await asyncio.to_thread(self._write, step, table)
        problems = candidates_by_problem(table)
        statistics = await asyncio.to_thread(evaluate_candidates, problems, ks=self._config.k, seed=self._settings.seed)
        return statistics.metrics()

    def _write(self, step: int, table: pa.Table) -> None:
        self._directory.mkdir(exist_ok=True)
        with replacing(self._directory / f"step_{step:06d}.parquet") as staging:
            pq.write_table(table, staging, compression="zstd")
