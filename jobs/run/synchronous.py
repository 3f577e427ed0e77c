"""The synchronous trainer: the same components called one after the other. What max_policy_lag = 0 must equal, bit for
bit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs.run.control
from buffers.admission import FILTERED
from buffers.records import GroupRequest, WeightUpdate
from buffers.replay import InsertResult
from buffers.tokens import TokenWaste
from jobs.directory.events import EventKind
from jobs.directory.run_state import Desired, read_desired
from jobs.processes.handles import Handle
from jobs.processes.verdict_counter import VerdictCounter
from jobs.run.components import Run, Sampled
from jobs.run.control import Control
from jobs.run.controller import Tally
from jobs.run.evaluations import Evaluation

KEEPS_ITS_PROCESSES = "jobs.scale: a run with --synchronous keeps the processes it was started with"


class SynchronousTrainer:
    """generate, verify and encode, score, learn, publish; then the next step. Takes what `Controller` takes."""

    def __init__(self, run: Run, *, evaluation: Evaluation | None = None) -> None:
        self._run = run
        self._evaluation = evaluation
        self._verdicts = VerdictCounter(max_error_rate=run.config.verifier.max_error_rate)
        self._stopping = False
        self._workers: list[Handle] = []

    def stop(self) -> None:
        self._stopping = True

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    @property
    def step(self) -> int:
        return self._run.step

    async def run(self, start_step: int) -> int:
        """A lost rollout worker ends the run: there is nobody to go on with."""
        run, config = self._run, self._run.config
        run.step = start_step
        self._workers = [run.factory.rollout_worker(number) for number in range(config.rollout.workers)]
        try:
            timeout_s = config.rollout.start_timeout_s
            await asyncio.gather(
                *(worker.call("start", timeout_s=timeout_s, waiting_for=f"{worker.name} to start") for worker in self._workers)
            )
            if start_step:
                await self._load((await run.weights())[0])
            while run.step < config.steps and not self._stopping:
                await self._train()
                if self._evaluation is not None and self._evaluation.is_due(run.step):
                    run.evaluated(run.step, await self._evaluation.run(run.step, self._workers, run.verifier))
                if run.step % config.checkpoint.every == 0 or run.step == config.steps or self._stopping:
                    await run.save_checkpoint()
                    run.note(EventKind.CHECKPOINT, step=run.step)
            return run.step
        finally:
            closing = (worker.call("close", timeout_s=20, waiting_for=f"{worker.name} to close") for worker in self._workers)
            await asyncio.gather(*closing, return_exceptions=True)

    async def _train(self) -> None:
        run, tally = self._run, Tally()
        generate_s = 0.0
        while requests := await self._requests():  # again for groups that were filtered out
            began = time.monotonic()
            sampled = await self._sample(requests)
            generate_s += time.monotonic() - began
            tally.usages += [group.usage for group in sampled]
            for group in sampled:
                await self._score(group, tally)
        batch, drawn = await run.draw(run.step)
        run.note(EventKind.BATCH, step=run.step + 1, group_ids=list(drawn.group_ids))
        batch, bonus_metrics = await run.add_bonus(batch, run.step)
        run.note(EventKind.ABSORBED, step=run.step + 1, groups=len(drawn.group_ids))
        report = await run.learn(batch)
        await run.log(batch, report)
        run.admission.trained(drawn.group_ids, version=report.version)
        run.observations.trained(drawn.group_ids, report.version)
        for group_id in drawn.group_ids:
            run.tokens.trained(group_id)
        asked = time.monotonic()
        snapshot, version = await run.weights()
        tally.published(asked)
        run.note(EventKind.TRAINED, step=run.step, version=version)
        tally.updates = await self._load(snapshot)
        run.note(EventKind.PUBLISHED, version=version, workers=len(self._workers))
        run.observations.live(version)
        run.admission.published(version)
        metrics = {**report.metrics, **bonus_metrics, **tally.metrics(), **run.tokens.metrics(), "time/generate_s": generate_s}
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - generate_s - tally.encode_s
        run.report(run.step, metrics)

    async def _requests(self) -> list[GroupRequest]:
        """What the step still lacks: groups that a restored checkpoint left in flight without their rows, then new
        ones."""
        run, held = self._run, set(await self._run.held_ids())
        requests = [request for request in run.admission.in_flight if request.group_id not in held]
        while len(held) + len(requests) < run.config.prompts_per_step:
            requests.append(run.admit())
        return requests

    async def _sample(self, requests: Sequence[GroupRequest]) -> list[Sampled]:
        """In their order, by the workers in turn; by each one after the other where groups are isolated."""
        at_once = 1 if self._run.config.isolates_groups else len(requests)
        turns = [(worker, asyncio.Semaphore(at_once)) for worker in self._workers]

        async def sample(place: int, request: GroupRequest) -> Sampled:
            worker, turn = turns[place % len(turns)]
            async with turn:
                self._run.note(EventKind.DISPATCHED, group_id=request.group_id, worker=worker.name, tries=1, resumed_tokens=0)
                return await self._run.generate(worker, request)

        return await asyncio.gather(*(sample(place, request) for place, request in enumerate(requests)))

    async def _score(self, group: Sampled, tally: Tally) -> None:
        """From responses to a group in replay, or to one that is filtered out."""
        run, group_id, usage = self._run, group.request.group_id, group.usage
        run.tokens.started(usage.worker_id, group_id)
        run.tokens.finished(usage.worker_id, group_id, usage.response_tokens)
        run.note(EventKind.COMPLETED, group_id=group_id, worker=usage.worker_id, tokens=usage.response_tokens, aborted=0)
        scored = await run.verify_and_encode(group)
        self._verdicts.add(scored.verdicts)
        tally.add_scored(scored)
        result = await run.insert(scored, run.step)
        run.note(EventKind.INSERTED, group_id=group_id, result=result.value)
        if result is InsertResult.FILTERED:
            run.note(EventKind.DROPPED, group_id=group_id, reason=FILTERED)
            run.tokens.dropped(group_id, TokenWaste.FILTERED)
            run.admission.filter(group_id)
            run.observations.filtered(group_id)
        elif result is not InsertResult.ACCEPTED:
            raise RuntimeError(f"replay refused group {group_id} of a synchronous step: {result}")

    async def _load(self, snapshot: Any) -> list[WeightUpdate]:
        """Every engine takes the weights and proves that it holds them."""
        timeout_s = self._run.config.wait_timeout_s
        loads = (
            worker.call("update", snapshot, timeout_s=timeout_s, waiting_for=f"{worker.name} to load new weights")
            for worker in self._workers
        )
        return list(await asyncio.gather(*loads))


async def watch(trainer: SynchronousTrainer, control: Control, directory: Path, warn: Callable[[str], None]) -> None:
    """Never returns. Once a second: say in status.json how far the run is, and stop it where that is asked for. The
    number of its processes stays what it is at the start."""
    started_with = control.desired
    told = ""
    while True:
        control.enter("stopping" if trainer.is_stopping else "training", step=trainer.step)
        await asyncio.sleep(jobs.run.control.TICK_S)
        try:
            asked = await asyncio.to_thread(read_desired, directory)
            news = "" if _same_numbers(asked, started_with) else KEEPS_ITS_PROCESSES
        except ValueError as error:
            asked, news = Desired(), str(error)
        if asked.stop:
            trainer.stop()
        if news not in ("", told):
            warn(news)
        told = news


def _same_numbers(one: Desired, other: Desired) -> bool:
    return one.model_copy(update={"stop": other.stop}) == other
