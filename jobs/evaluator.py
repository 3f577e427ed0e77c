"""Pools for evaluation: sampled, and judged whole (`jobs.pool_pipeline`). The same for `jobs.evaluate` and for a training run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from actors.config import VerifierConfig
from buffers.records import Problem
from jobs.handles import Handle
from jobs.pool_pipeline import Judge, OnPool, PoolPipeline, PoolSampling
from jobs.pools import sampled_pool
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
        workers: Sequence[Handle],
        verifier: Handle,
        settings: EvaluatorSettings,
        *,
        label: str,
        keep: Callable[[pa.Table], None],
        on_pool: OnPool,
    ) -> None:
        self._label = label
        self._keep = keep
        self._judge = Judge(task, verifier, settings.verifier, timeout_s=settings.wait_timeout_s)
        sampling = PoolSampling(num_responses=settings.samples, seed=settings.seed, prompt=task.prompt, timeout_s=settings.pool_timeout_s)
        self._pipeline = PoolPipeline(workers, sampling, self._finish, on_pool)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Raises the first exception of any loop."""
        await self._pipeline.run(problems)

    async def _finish(self, problem: Problem, batch: pa.RecordBatch) -> None:
        pool = self._judge.answered(problem, sampled_pool(batch).drop_columns(["feature"]))
        judged = await self._judge.judged(problem, pool, range(pool.num_rows))
        labelled = judged.add_column(0, MODEL, pa.array([self._label] * judged.num_rows, pa.string()))
        await asyncio.to_thread(self._keep, labelled)
