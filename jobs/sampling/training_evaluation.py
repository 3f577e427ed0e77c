"""The evaluation of a training run, while it goes on: what is asked of the policy, and where the results go.

    evaluation = TrainingEvaluation(config.evaluation, task, settings, run_directory / "eval")
    if evaluation.is_due(step):
        metrics = await evaluation.run(step, workers, verifier)       # beside the other loops (`jobs.run.evaluations`)

    RUN_DIR/eval/step_000020.parquet      every response, as in the samples.parquet of `jobs.evaluate`

The workers must hold the weights of `step` and be given no others until it is over: every token is then of that
version, which is checked. The problems and the seed are the same every time, so that what differs between two
evaluations is the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from jobs.analysis.candidate_table import candidate_pools
from jobs.analysis.evaluation import evaluate_pools
from jobs.directory.atomic import replacing
from jobs.evaluation_config import EvaluationConfig
from jobs.processes.handles import Handle
from jobs.sampling.evaluator import Evaluator, EvaluatorSettings
from jobs.sampling.job import problems_of
from tasks.base import Task


class TrainingEvaluation:
    """See the module. Holds no policy and no worker."""

    def __init__(self, config: EvaluationConfig, task: Task, settings: EvaluatorSettings, directory: Path) -> None:
        """Reads the problems. Raises ConfigError for a split that the task does not have, or that is empty."""
        self._config = config
        self._task = task
        self._settings = settings
        self._directory = directory
        self._problems = problems_of(task, config.split, config.problems)

    def is_due(self, step: int) -> bool:
        return self._config.every > 0 and step % self._config.every == 0

    async def run(self, step: int, workers: Sequence[Handle[RolloutWorker]], verifier: Handle[VerifierPool]) -> dict[str, float]:
        """Evaluate the policy of `step`, which `workers` hold; returns the metrics (docs/metrics.md).

        Raises what a worker or the verifier raises, and RuntimeError where a worker sampled under other weights;
        nothing is then written."""
        pools: dict[str, pa.Table] = {}

        def keep(pool: pa.Table) -> None:
            pools[pool["problem_id"][0].as_py()] = pool

        evaluator = Evaluator(
            self._task, workers, verifier, self._settings, label=f"step {step}", version=step, keep=keep, on_pool=lambda usage: None
        )
        await evaluator.run(self._problems)
        table = pa.concat_tables([pools[problem.problem_id] for problem in self._problems])
        await asyncio.to_thread(self._write, step, table)
        report = await asyncio.to_thread(evaluate_pools, candidate_pools(table), ks=self._config.k, seed=self._settings.seed)
        return report.metrics()

    def _write(self, step: int, table: pa.Table) -> None:
        self._directory.mkdir(exist_ok=True)
        with replacing(self._directory / f"step_{step:06d}.parquet") as staging:
            pq.write_table(table, staging, compression="zstd")
