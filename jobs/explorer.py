"""From problems to finished pools: sampling on every worker, the rest beside it.

    problem ──> [sample] ──pool──> [finish]: features, answers, orders, verdicts ──> a file
                  one a worker        two at once

| loop   | consumes      | produces       | waits for                  | unblocked by        |
|--------|---------------|----------------|----------------------------|---------------------|
| sample | problems      | sampled pools  | a whole pool; room behind  | the worker; finish  |
| finish | sampled pools | files          | a pool; encoder, verifier  | sample              |

A worker samples one pool at a time, seeded by its problem, so that a pool is the same whenever and wherever it is sampled.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from buffers.records import GroupRequest, GroupUsage, Problem, Verdict
from jobs.explore_config import ExploreConfig
from jobs.failures import first_error
from jobs.handles import Handle
from jobs.ordering import rank_pool
from jobs.pools import PoolStore, known_verdicts, sampled_pool, with_columns, with_verdicts
from jobs.run import VerdictCounter
from tasks.base import Task

FINISHERS = 2

OnPool = Callable[[GroupUsage], None]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Who does the work. `encoder` is None where the workers make the features, `verifier` where nothing is judged."""

    workers: Sequence[Handle]
    encoder: Handle | None
    verifier: Handle | None


class Explorer:
    """explorer = Explorer(...); await explorer.run(problems)      # every problem's pool is then in the store"""

    def __init__(self, config: ExploreConfig, task: Task, store: PoolStore, sources: Sources, on_pool: OnPool) -> None:
        self._config = config
        self._task = task
        self._store = store
        self._sources = sources
        self._on_pool = on_pool
        self._verdicts = VerdictCounter(max_error_rate=config.verifier.max_error_rate)
        self._sampled: asyncio.Queue[tuple[Problem, pa.RecordBatch, GroupUsage]] = asyncio.Queue(maxsize=FINISHERS)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Raises the first exception of any loop."""
        numbered = iter(enumerate(problems))
        try:
            async with asyncio.TaskGroup() as group:
                finishers = [group.create_task(self._finish_loop()) for _ in range(FINISHERS)]
                async with asyncio.TaskGroup() as sampling:
                    for worker in self._sources.workers:
                        sampling.create_task(self._sample_loop(worker, numbered))
                await self._sampled.join()
                for task in finishers:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None

    async def _sample_loop(self, worker: Handle, numbered: Iterator[tuple[int, Problem]]) -> None:
        for number, problem in numbered:
            batch, usage = await self._sample(worker, number, problem)
            await self._sampled.put((problem, batch, usage))

    async def _sample(self, worker: Handle, number: int, problem: Problem) -> tuple[pa.RecordBatch, GroupUsage]:
        config = self._config
        request = GroupRequest(group_id=number, problem=problem, num_responses=config.pool, admitted_version=0)
        seed = zlib.crc32(f"{config.seed}/{problem.problem_id}".encode())
        messages = self._task.prompt(problem)
        method, extra = ("sample_novel_pool", (config.novel_sampling,)) if config.novel_sampling.enabled else ("sample_pool", ())
        batch, usage = await worker.call(
            method,
            request,
            messages,
            seed,
            *extra,
            timeout_s=config.pool_timeout_s,
            waiting_for=f"the pool of {problem.problem_id} on {worker.name}",
        )
        return batch, usage

    async def _finish_loop(self) -> None:
        while True:
            problem, batch, usage = await self._sampled.get()
            if self._sources.encoder is not None:
                batch, _ = await self._call(self._sources.encoder, "encode", batch, waiting_for=f"features of {problem.problem_id}")
            pool = await self.finish(problem, sampled_pool(batch))
            await asyncio.to_thread(self._store.add, pool)
            self._on_pool(usage)
            self._sampled.task_done()

    async def finish(self, problem: Problem, pool: pa.Table) -> pa.Table:
        """`pool` with final answers, its ranks in every order, and the verdicts that the config asks for (those it has are kept)."""
        texts = pool["response_text"].to_pylist()
        answers = [self._task.final_answer(problem, text) for text in texts]
        pool = with_columns(pool, {"final_answer": answers})
        ranked = await asyncio.to_thread(rank_pool, pool, self._config)
        known = known_verdicts(pool)
        wanted = [row for row in self._rows_to_verify(ranked) if row not in known]
        if self._sources.verifier is None or not wanted:
            return with_verdicts(ranked, known)
        verdicts: list[Verdict] = await self._call(
            self._sources.verifier, "verify", problem, [texts[row] for row in wanted], waiting_for=f"verdicts on {problem.problem_id}"
        )
        self._verdicts.add(verdicts)
        return with_verdicts(ranked, known | dict(zip(wanted, verdicts, strict=True)))

    def _rows_to_verify(self, pool: pa.Table) -> list[int]:
        if self._config.verify == "none":
            return []
        if self._config.verify == "all":
            return list(range(pool.num_rows))
        ranks = pool[f"rank_{self._config.primary_order}"].to_pylist()
        return [row for row, rank in enumerate(ranks) if rank < self._config.select[-1]]

    async def _call(self, handle: Handle, method: str, *args: Any, waiting_for: str) -> Any:
        return await handle.call(method, *args, timeout_s=self._config.wait_timeout_s, waiting_for=waiting_for)
