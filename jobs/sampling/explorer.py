"""Pools for exploration: features, ranks in every order, and the verdicts that are asked for (`jobs.sampling.pipeline`
samples them)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from actors.encoder import HiddenStateEncoder
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import Problem
from jobs.explore_config import ExploreConfig
from jobs.processes.handles import Handle
from jobs.sampling.candidates import PoolStore, sampled_pool
from jobs.sampling.ordering import rank_pool
from jobs.sampling.pipeline import Judge, OnPool, PoolPipeline, PoolSampling
from tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Who does the work. `encoder` is None where the workers make the features, `verifier` where nothing is judged."""

    workers: Sequence[Handle[RolloutWorker]]
    encoder: Handle[HiddenStateEncoder] | None
    verifier: Handle[VerifierPool] | None


class Explorer:
    """explorer = Explorer(...); await explorer.run(problems)      # every problem's pool is then in the store"""

    def __init__(self, config: ExploreConfig, task: Task, store: PoolStore, sources: Sources, on_pool: OnPool) -> None:
        self._config = config
        self._store = store
        self._encoder = sources.encoder
        self._judge = Judge(task, sources.verifier, config.verifier, timeout_s=config.wait_timeout_s)
        novel = config.novel_sampling
        sampling = PoolSampling(
            num_responses=config.pool,
            seed=config.seed,
            prompt=task.prompt,
            timeout_s=config.pool_timeout_s,
            novel=novel if novel.enabled else None,
        )
        self._pipeline = PoolPipeline(sources.workers, sampling, self._keep, on_pool)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Raises the first exception of any loop."""
        await self._pipeline.run(problems)

    async def _keep(self, problem: Problem, batch: pa.RecordBatch) -> None:
        if self._encoder is not None:
            batch, _ = await self._encoder.call(
                HiddenStateEncoder.encode, batch, timeout_s=self._config.wait_timeout_s, waiting_for=f"features of {problem.problem_id}"
            )
        pool = await self.finish(problem, sampled_pool(batch))
        await asyncio.to_thread(self._store.add, pool)

    async def finish(self, problem: Problem, pool: pa.Table) -> pa.Table:
        """`pool` with final answers, its ranks in every order, and the verdicts that the config asks for (those it has
        are kept)."""
        ranked = await asyncio.to_thread(rank_pool, self._judge.answered(problem, pool), self._config)
        return await self._judge.judged(problem, ranked, self._rows_to_verify(ranked))

    def _rows_to_verify(self, pool: pa.Table) -> list[int]:
        if self._config.verify == "none":
            return []
        if self._config.verify == "all":
            return list(range(pool.num_rows))
        ranks = pool[f"rank_{self._config.primary_order}"].to_pylist()
        return [row for row, rank in enumerate(ranks) if rank < self._config.select[-1]]
