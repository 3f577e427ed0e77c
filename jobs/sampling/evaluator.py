"""Pools for evaluation: sampled, and judged whole (`jobs.sampling.pipeline`). The same for `jobs.evaluate` and for a
training run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from actors.config import VerifierConfig
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import Problem
from jobs.processes.handles import Handle
from jobs.sampling.candidates import sampled_pool
from jobs.sampling.pipeline import Judge, OnPool, PoolPipeline, PoolSampling
from tasks.base import Task

MODEL = "model"
POOL_KEY = (MODEL, "problem_id")
"""What tells one pool of samples from another."""


@dataclass(frozen=True, kw_only=True)
class EvaluatorSettings:
    """What is asked of a model, and how long it may take."""

    samples: int
    seed: int
    verifier: VerifierConfig
    pool_timeout_s: float
    wait_timeout_s: float


class Evaluator:
    """One model's samples.

    evaluator = Evaluator(task, workers, verifier, settings, label="base", keep=store.add, on_pool=bar.advance)
    await evaluator.run(problems)               # `keep` has then had every problem's pool, judged whole
    """

    def __init__(
        self,
        task: Task,
        workers: Sequence[Handle[RolloutWorker]],
        verifier: Handle[VerifierPool],
        settings: EvaluatorSettings,
        *,
        label: str,
        version: int = 0,
        keep: Callable[[pa.Table], None],
        on_pool: OnPool,
    ) -> None:
        """`label` names the model in the samples, `version` is the one that the workers hold (0: as they were
        started)."""
        self._label = label
        self._version = version
        self._keep = keep
        self._judge = Judge(task, verifier, settings.verifier, timeout_s=settings.wait_timeout_s)
        sampling = PoolSampling(num_responses=settings.samples, seed=settings.seed, prompt=task.prompt, timeout_s=settings.pool_timeout_s)
        self._pipeline = PoolPipeline(workers, sampling, self._finish, on_pool)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Raises the first exception of any loop."""
        await self._pipeline.run(problems)

    async def _finish(self, problem: Problem, batch: pa.RecordBatch) -> None:
        if others := set(pc.list_flatten(batch.column("version_values")).to_pylist()) - {self._version}:
            raise RuntimeError(
                f"the evaluation of version {self._version} was sampled in part under version {min(others)}: {problem.problem_id}"
            )
        pool = self._judge.answered(problem, sampled_pool(batch).drop_columns(["feature"]))
        judged = await self._judge.judged(problem, pool, range(pool.num_rows))
        labelled = judged.add_column(0, MODEL, pa.array([self._label] * judged.num_rows, pa.string()))
        await asyncio.to_thread(self._keep, labelled)
