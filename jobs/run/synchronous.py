"""The synchronous trainer calls the same components one after the other. With max_policy_lag = 0 the asynchronous
controller must equal it, bit for bit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs.run.control
from actors.rollout import RolloutWorker
from buffers.records import GroupRequest, WeightUpdate
from buffers.replay import InsertResult
from jobs.directory.events import EventKind
from jobs.directory.run_state import Desired, read_desired
from jobs.processes.build import all_ready, close_all
from jobs.processes.failures import FailureKind, kind_of
from jobs.processes.handles import Handle
from jobs.run.books import DropReason
from jobs.run.checkpoints import save_checkpoint
from jobs.run.components import Run, Sampled
from jobs.run.control import Control
from jobs.run.evaluations import Evaluation
from jobs.run.training_step import StepUsage, TrainingStep

KEEPS_ITS_PROCESSES = "repexp scale: a run with --synchronous keeps the processes it was started with"


class SynchronousTrainer:
    """Generates, verifies, encodes, scores, learns and publishes; then does the next step. Takes what `Controller`
    takes."""

    def __init__(self, run: Run, *, evaluation: Evaluation | None = None) -> None:
        self.run = run
        self._evaluation = evaluation
        self._training = TrainingStep(run)
        self._stopping = False
        self._workers: list[Handle[RolloutWorker]] = []

    def stop(self) -> None:
        self._stopping = True

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    async def train(self, start_step: int) -> int:
        """Train from `start_step` and return the last step. A lost rollout worker ends the run: no other can take
        over."""
        run, config = self.run, self.run.config
        run.step = start_step
        self._workers = [run.launch(run.components.rollout_worker(number)) for number in range(config.rollout.workers)]
        try:
            await all_ready(self._workers, [], timeout_s=config.rollout.start_timeout_s)
            if start_step:
                await self._load((await run.weights())[0])
            while run.step < config.steps and not self._stopping:
                await self._train()
                if self._evaluation is not None and self._evaluation.is_due(run.step):
                    run.listener.evaluated(run.step, await self._evaluation.run(run.step, self._workers, run.verifier))
                if run.step % config.checkpoint.every == 0 or run.step == config.steps or self._stopping:
                    began = time.monotonic()
                    await save_checkpoint(run)
                    run.listener.note(EventKind.CHECKPOINT, step=run.step, seconds=time.monotonic() - began)
            return run.step
        finally:
            await close_all(self._workers)

    async def _train(self) -> None:
        run, config, usage = self.run, self.run.config, StepUsage()
        generate_s = 0.0
        while requests := self._requests():  # again for groups that were filtered out
            began = time.monotonic()
            sampled = await self._sample(requests)  # fewer, where a problem cannot be used
            generate_s += time.monotonic() - began
            usage.usages += [group.usage for group in sampled]
            for group in sampled:
                await self._score(group, usage)
        batch, drawn = await run.draw(run.step)
        trained = await self._training.train(batch, drawn, usage)
        usage.updates = await self._load(trained.snapshot)
        run.books.live(trained.version, workers=len(self._workers))
        metrics = {
            **trained.metrics,
            **usage.metrics(config.responses_per_prompt),
            **run.books.tokens.metrics(),
            "time/generate_s": generate_s,
        }
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - generate_s - usage.encode_s
        run.listener.stepped(run.step, metrics)

    def _requests(self) -> list[GroupRequest]:
        """Return what the step still lacks: groups that a restored checkpoint left in flight without their rows, then
        new ones."""
        books = self.run.books
        requests = [request for request in books.admission.in_flight if request.group_id not in books.held]
        while len(books.held) + len(requests) < self.run.config.prompts_per_step:
            requests.append(books.admit())
        return requests

    async def _sample(self, requests: Sequence[GroupRequest]) -> list[Sampled]:
        """Sample groups in their order, by the workers in turn; one at a time on each where groups are isolated. The
        groups of problems that cannot be used are dropped."""
        run = self.run
        at_once = 1 if run.config.isolates_groups else len(requests)
        turns = [(worker, asyncio.Semaphore(at_once)) for worker in self._workers]

        async def sample(place: int, request: GroupRequest) -> Sampled | None:
            worker, turn = turns[place % len(turns)]
            async with turn:
                run.books.submitted(request)
                run.books.dispatched(request, worker.name, tries=1, resumed_tokens=0)
                try:
                    sampled = await run.generate(worker, request, timeout_s=run.config.rollout.group_timeout_s)
                except Exception as error:
                    if kind_of(error) is not FailureKind.DATA:
                        raise
                    run.books.returned(request, worker.name, None)
                    run.faults.unusable(request.group_id, error, at_most=run.config.supervision.max_data_failures)
                    run.books.dropped(request.group_id, DropReason.DATA)
                    return None
                run.faults.usable()
                return sampled

        found = await asyncio.gather(*(sample(place, request) for place, request in enumerate(requests)))
        return [sampled for sampled in found if sampled is not None]

    async def _score(self, group: Sampled, usage: StepUsage) -> None:
        run, request = self.run, group.request
        of_group = replace(group.usage, sampled_tokens=0)  # the worker's total has those of evaluations, too
        run.books.returned(request, group.usage.worker_id, of_group)
        scored = await run.verify_and_encode(group)
        usage.add_scored(scored)
        result = await run.insert(scored, run.step)
        if result not in (InsertResult.ACCEPTED, InsertResult.FILTERED):
            raise RuntimeError(f"replay refused group {request.group_id} of a synchronous step: {result}")
        run.books.inserted(request, result)

    async def _load(self, snapshot: Any) -> list[WeightUpdate]:
        loads = (
            self.run.call(worker, RolloutWorker.update, snapshot, waiting_for=f"{worker.name} to load new weights")
            for worker in self._workers
        )
        updates = await asyncio.gather(*loads)
        for update in updates:
            self.run.books.loaded(update)
        return updates


async def watch(trainer: SynchronousTrainer, control: Control, directory: Path, warn: Callable[[str], None]) -> None:
    """Once a second, say in status.json how far the run is, and stop it where that is asked for. Never returns. The
    number of the run's processes stays what it is at the start."""
    started_with = control.desired
    told = ""
    while True:
        control.enter("stopping" if trainer.is_stopping else "training", step=trainer.run.step)
        control.export()
        await asyncio.sleep(jobs.run.control.TICK_S)
        try:
            asked = await asyncio.to_thread(read_desired, directory)
            news = "" if _same_numbers(asked, started_with) else KEEPS_ITS_PROCESSES
        except (OSError, ValueError) as error:
            asked, news = Desired(), str(error)
        if asked.stop:
            trainer.stop()
        if news not in ("", told):
            warn(news)
        told = news


def _same_numbers(one: Desired, other: Desired) -> bool:
    return one.model_copy(update={"stop": other.stop, "serial": other.serial}) == other
