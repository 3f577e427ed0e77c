"""From problems to finished candidates: one loop samples on each worker, two loops finish what was sampled.

    problem ──> [sample] ──candidates──> [finish]: features, answers, verdicts, … ──> a file
                 one a worker               two at once

| loop   | consumes           | produces           | waits for                           | unblocked by        |
|--------|--------------------|--------------------|-------------------------------------|---------------------|
| sample | problems           | sampled candidates | all candidates of a problem; a slot | the worker; finish  |
| finish | sampled candidates | what is kept       | candidates; encoder, verifier       | sample              |

A worker samples one problem at a time, seeded by the problem. The candidates of a problem are therefore the same
whenever and wherever they are sampled. `Judge` gives `finish` answers and verdicts."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from tasks.mixture import verifies_for_answer

FINISHERS = 2

OnFinished = Callable[[GroupUsage], None]
"""on_finished(usage), after the candidates of each problem."""
Finish = Callable[[Problem, pa.RecordBatch], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class CandidateSampling:
    """How the candidates of a problem are sampled."""

    num_responses: int
    seed: int
    prompt: Callable[[Problem], list[dict[str, str]]]
    timeout_s: float
    """A problem that takes longer ends the job with a message that names it."""
    novel: NovelSamplingConfig | None = None
    """How the responses are steered towards novelty; None: they are not."""

    def seed_of(self, problem: Problem) -> int:
        """Return the seed of a problem, which depends on nothing but the problem and the job's seed."""
        return zlib.crc32(f"{self.seed}/{problem.problem_id}".encode())


class SamplingPipeline:
    """Samples and finishes the candidates of many problems. See the module."""

    def __init__(
        self, workers: Sequence[Handle[RolloutWorker]], sampling: CandidateSampling, finish: Finish, on_finished: OnFinished
    ) -> None:
        self._workers, self._sampling = workers, sampling
        self._finish, self._on_finished = finish, on_finished
        self._sampled: asyncio.Queue[tuple[Problem, pa.RecordBatch, GroupUsage]] = asyncio.Queue(maxsize=FINISHERS)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Finish all `problems`. Raises the first exception of any loop."""
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
        limits: dict[str, Any] = {
            "timeout_s": sampling.timeout_s,
            "waiting_for": f"the candidates of {problem.problem_id} on {worker.name}",
        }
        if sampling.novel is None:
            return await worker.call(RolloutWorker.sample_pool, request, prompt, seed, **limits)
        return await worker.call(RolloutWorker.sample_novel_pool, request, prompt, seed, sampling.novel, **limits)

    async def _finish_loop(self) -> None:
        while True:
            problem, batch, usage = await self._sampled.get()
            await self._finish(problem, batch)
            self._on_finished(usage)
            self._sampled.task_done()


class Judge:
    """Gives candidates their final answers, by the task, and their verdicts, by the verifier pool. It ends the job
    where too many responses cannot be scored."""

    def __init__(self, task: Task, verifier: Handle[VerifierPool] | None, config: VerifierConfig, *, timeout_s: float) -> None:
        """Without a `verifier` nothing is judged."""
        self._task, self._verifier, self._config, self._timeout_s = task, verifier, config, timeout_s
        self._verdicts = VerdictCounter(max_error_rate=config.max_error_rate)

    async def answered(self, problem: Problem, candidates: pa.Table) -> pa.Table:
        """Return `candidates` with the final answer that each of them states. Where a task reads it by `verify`, the
        verifier pool does so; without a verifier such answers are unknown."""
        texts = candidates["response_text"].to_pylist()
        if not verifies_for_answer(self._task, problem):
            shortened = [self._config.shortened(text, self._config.max_response_chars) for text in texts]
            answers = [self._task.final_answer(problem, text) for text in shortened]
        elif self._verifier is None:
            answers = [None] * len(texts)
        else:
            answers = [verdict.whole_answer for verdict in await self._verdicts_on(problem, texts)]
        return with_columns(candidates, {"final_answer": answers})

    async def judged(self, problem: Problem, candidates: pa.Table, rows: Sequence[int]) -> pa.Table:
        """Return `candidates` with old verdicts and those on `rows`. Raises VerifierFailure for too many errors."""
        known = known_verdicts(candidates)
        wanted = [row for row in rows if row not in known]
        if self._verifier is None or not wanted:
            return with_verdicts(candidates, known)
        texts = candidates["response_text"].to_pylist()
        verdicts = await self._verdicts_on(problem, [texts[row] for row in wanted])
        self._verdicts.add(verdicts)
        return with_verdicts(candidates, known | dict(zip(wanted, verdicts, strict=True)))

    async def _verdicts_on(self, problem: Problem, texts: Sequence[str]) -> list[Verdict]:
        assert self._verifier is not None
        verdicts: list[Verdict] = await self._verifier.call(
            VerifierPool.verify, problem, texts, timeout_s=self._timeout_s, waiting_for=f"verdicts on {problem.problem_id}"
        )
        return verdicts
