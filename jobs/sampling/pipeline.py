"""From problems to finished pools: sampling on every worker, the rest beside it.

    problem ──> [sample] ──pool──> [finish]: features, answers, verdicts, … ──> a file
                  one a worker        two at once

| loop   | consumes      | produces       | waits for                  | unblocked by        |
|--------|---------------|----------------|----------------------------|---------------------|
| sample | problems      | sampled pools  | a whole pool; room behind  | the worker; finish  |
| finish | sampled pools | what is kept   | a pool; encoder, verifier  | sample              |

A worker samples one pool at a time, seeded by its problem, so that a pool is the same whenever and wherever it is
sampled.

    pipeline = PoolPipeline(workers, sampling, finish, on_pool)
    await pipeline.run(problems)                        # `finish` has then had every problem's pool

`Judge` is what `finish` asks for answers and verdicts.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from actors.config import NovelSamplingConfig, VerifierConfig
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import GroupRequest, GroupUsage, Problem, Verdict
from jobs.processes.failures import first_error
from jobs.processes.handles import Handle
from jobs.processes.verdict_counter import VerdictCounter
from jobs.sampling.candidates import known_verdicts, with_columns, with_verdicts
from tasks.base import Task

FINISHERS = 2

OnPool = Callable[[GroupUsage], None]
Finish = Callable[[Problem, pa.RecordBatch], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class PoolSampling:
    """How the responses to one problem are sampled."""

    num_responses: int
    seed: int
    prompt: Callable[[Problem], list[dict[str, str]]]
    timeout_s: float
    """A pool that is not sampled by then ends the job with a message that names it."""
    novel: NovelSamplingConfig | None = None
    """How responses are steered towards novelty; None: they are not."""

    def seed_of(self, problem: Problem) -> int:
        return zlib.crc32(f"{self.seed}/{problem.problem_id}".encode())


class PoolPipeline:
    """See the module."""

    def __init__(self, workers: Sequence[Handle[RolloutWorker]], sampling: PoolSampling, finish: Finish, on_pool: OnPool) -> None:
        self._workers = workers
        self._sampling = sampling
        self._finish = finish
        self._on_pool = on_pool
        self._sampled: asyncio.Queue[tuple[Problem, pa.RecordBatch, GroupUsage]] = asyncio.Queue(maxsize=FINISHERS)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Raises the first exception of any loop."""
        numbered = iter(enumerate(problems))
        try:
            async with asyncio.TaskGroup() as group:
                finishers = [group.create_task(self._finish_loop()) for _ in range(FINISHERS)]
                async with asyncio.TaskGroup() as sampling:
                    for worker in self._workers:
                        sampling.create_task(self._sample_loop(worker, numbered))
                await self._sampled.join()
                for task in finishers:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None

    async def _sample_loop(self, worker: Handle[RolloutWorker], numbered: Iterator[tuple[int, Problem]]) -> None:
        for number, problem in numbered:
            batch, usage = await self._sample(worker, number, problem)
            await self._sampled.put((problem, batch, usage))

    async def _sample(self, worker: Handle[RolloutWorker], number: int, problem: Problem) -> tuple[pa.RecordBatch, GroupUsage]:
        sampling = self._sampling
        request = GroupRequest(group_id=number, problem=problem, num_responses=sampling.num_responses, admitted_version=0)
        prompt, seed = sampling.prompt(problem), sampling.seed_of(problem)
        timeout_s, waiting_for = sampling.timeout_s, f"the pool of {problem.problem_id} on {worker.name}"
        if sampling.novel is None:
            return await worker.call(RolloutWorker.sample_pool, request, prompt, seed, timeout_s=timeout_s, waiting_for=waiting_for)
        return await worker.call(
            RolloutWorker.sample_novel_pool, request, prompt, seed, sampling.novel, timeout_s=timeout_s, waiting_for=waiting_for
        )

    async def _finish_loop(self) -> None:
        while True:
            problem, batch, usage = await self._sampled.get()
            await self._finish(problem, batch)
            self._on_pool(usage)
            self._sampled.task_done()


class Judge:
    """Final answers by the task, verdicts by the verifier pool; ends the job where too many responses cannot be scored.

    judge = Judge(task, verifier, config, timeout_s=900)
    pool = judge.answered(problem, pool)
    pool = await judge.judged(problem, pool, rows)
    """

    def __init__(self, task: Task, verifier: Handle[VerifierPool] | None, config: VerifierConfig, *, timeout_s: float) -> None:
        """`verifier` None: nothing is judged."""
        self._task = task
        self._verifier = verifier
        self._timeout_s = timeout_s
        self._verdicts = VerdictCounter(max_error_rate=config.max_error_rate)

    def answered(self, problem: Problem, pool: pa.Table) -> pa.Table:
        """`pool` with the final answer that each response states."""
        return with_columns(pool, {"final_answer": [self._task.final_answer(problem, text) for text in pool["response_text"].to_pylist()]})

    async def judged(self, problem: Problem, pool: pa.Table, rows: Sequence[int]) -> pa.Table:
        """`pool` with verdicts on `rows`; those it has are kept. Raises VerifierFailure where too many could not be
        scored."""
        known = known_verdicts(pool)
        wanted = [row for row in rows if row not in known]
        if self._verifier is None or not wanted:
            return with_verdicts(pool, known)
        texts = pool["response_text"].to_pylist()
        verdicts: list[Verdict] = await self._verifier.call(
            VerifierPool.verify,
            problem,
            [texts[row] for row in wanted],
            timeout_s=self._timeout_s,
            waiting_for=f"verdicts on {problem.problem_id}",
        )
        self._verdicts.add(verdicts)
        return with_verdicts(pool, known | dict(zip(wanted, verdicts, strict=True)))
