"""Candidates for exploration: features, ranks in every order, and the verdicts that the configuration asks for."""

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
from jobs.sampling.candidates import CandidateStore, sampled_candidates
from jobs.sampling.ordering import rank_candidates
from jobs.sampling.pipeline import CandidateSampling, Judge, OnFinished, SamplingPipeline
from tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The processes at work. Without `encoder` the workers make the features; without `verifier` nothing is judged."""

    workers: Sequence[Handle[RolloutWorker]]
    encoder: Handle[HiddenStateEncoder] | None
    verifier: Handle[VerifierPool] | None


class Explorer:
    """Fills a store: after `run` it has the candidates of every problem."""

    def __init__(self, config: ExploreConfig, task: Task, store: CandidateStore, sources: Sources, on_finished: OnFinished) -> None:
        self._config = config
        self._store = store
        self._encoder = sources.encoder
        self._judge = Judge(task, sources.verifier, config.verifier, timeout_s=config.wait_timeout_s)
        novel = config.novel_sampling
        sampling = CandidateSampling(
            num_responses=config.pool,
            seed=config.seed,
            prompt=task.prompt,
            timeout_s=config.pool_timeout_s,
            novel=novel if novel.enabled else None,
        )
        self._pipeline = SamplingPipeline(sources.workers, sampling, self._keep, on_finished)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Sample and keep the candidates of all `problems`. Raises the first exception of any loop."""
        await self._pipeline.run(problems)

    async def _keep(self, problem: Problem, batch: pa.RecordBatch) -> None:
        if self._encoder is not None:
            batch, _ = await self._encoder.call(
                HiddenStateEncoder.encode, batch, timeout_s=self._config.wait_timeout_s, waiting_for=f"features of {problem.problem_id}"
            )
        candidates = await self.finish(problem, sampled_candidates(batch))
        await asyncio.to_thread(self._store.add, candidates)

    async def finish(self, problem: Problem, candidates: pa.Table) -> pa.Table:
        """Return `candidates` with final answers, ranks in every order, and the verdicts asked for or there before."""
        answered = await self._judge.answered(problem, candidates)
        ranked = await asyncio.to_thread(rank_candidates, answered, self._config)
        return await self._judge.judged(problem, ranked, self._rows_to_verify(ranked))

    def _rows_to_verify(self, candidates: pa.Table) -> list[int]:
        if self._config.verify == "none":
            return []
        if self._config.verify == "all":
            return list(range(candidates.num_rows))
        ranks = candidates[f"rank_{self._config.primary_order}"].to_pylist()
        return [row for row, rank in enumerate(ranks) if rank < self._config.select[-1]]
