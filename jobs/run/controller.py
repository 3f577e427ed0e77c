"""The asynchronous controller: one asyncio process that owns ids, slots, versions and the desired state, and no data.

     task ──problem──> [admit] ──request──> [rollouts] ──batch──> [score] ──group──> replay
                          ^                    ^                                      │
                    slot  │                    │ weights                              │ batch of P groups
                          └──── [publish] <────┴──────── version ──────── [learn] <───┘

| loop     | consumes          | produces           | waits for                 | unblocked by                     |
|----------|-------------------|--------------------|---------------------------|----------------------------------|
| admit    | free slots        | requests           | a slot                    | publish, a dropped group         |
| rollouts | requests          | sampled groups     | see `jobs.run.rollouts`   | admit; the workers               |
| score    | sampled groups    | groups in replay   | verdicts, features        | rollouts; space: a draw          |
| learn    | P groups          | a version          | P groups held in replay   | score                            |
| publish  | a version         | live weights       | a trained version         | learn; every serving worker      |

The learn loop takes checkpoints between two steps, while generation continues. All queues are bounded by the number of
slots. Every call of a component has a deadline that names what it waits for; `jobs.run.recovery` and
`jobs.run.rollouts` say what a lost process costs. With `deterministic = true` drawing, publishing and saving also wait
for what `jobs.run.fixed_order` says. A bug in any loop ends the run with its own traceback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any

from actors.replay import DrawnBatch
from buffers.records import GroupRequest, WeightUpdate
from buffers.replay import InsertResult, ReplayTooSmall
from jobs.directory.events import EventKind
from jobs.processes.failures import first_error
from jobs.processes.handles import DataLost
from jobs.processes.restart_budget import RestartBudget
from jobs.processes.supervised import CallGivenUp
from jobs.run.autoscale import Meter
from jobs.run.books import DropReason
from jobs.run.changes import Changes, first_of
from jobs.run.checkpoints import save_checkpoint, save_learner
from jobs.run.components import Run, Sampled, Scored
from jobs.run.evaluations import Evaluation, Evaluations
from jobs.run.rollouts import Rollouts
from jobs.run.step_metrics import memory_metrics, run_metrics
from jobs.run.training_step import StepUsage, TrainingStep
from jobs.run.watchdog import FIRST_WAIT_S
from jobs.run.worker import GroupWork
from learners.checkpoint import CheckpointError


class Controller:
    """Runs the loops until `config.steps` are trained or a stop is asked for.

    controller = Controller(run)
    step = await controller.train(start_step)       # returns the last step trained; a checkpoint of it exists
    """

    def __init__(
        self, run: Run, *, workers: int | None = None, evaluation: Evaluation | None = None, evaluated: Collection[int] = ()
    ) -> None:
        """`workers`: how many are wanted at first, if not `rollout.workers`. `evaluation`: of the policy, now and then.
        `evaluated`: the steps whose evaluations an earlier start has made."""
        self.run = run
        self.config = run.config
        self.books = run.books
        self.rollouts = Rollouts(run, self, desired=workers or run.config.rollout.workers)
        self.evaluations = Evaluations(run, evaluation, done=evaluated)
        self._saved_step: int | None = None
        self.trained_version = 0
        self.meter = Meter()
        self._training = TrainingStep(run)
        self._sampled: asyncio.Queue[Sampled] = asyncio.Queue(maxsize=run.books.admission.capacity)
        self._trained: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(maxsize=1)
        self._changes = Changes(run)  # of slots, held groups, the live version, the stop flag
        self._stopping = False
        self._stop_asked = asyncio.Event()
        self._usage = StepUsage()
        self._checkpoint_budget = RestartBudget("checkpoint", run.config.supervision)

    def stop(self) -> None:
        """Ask for a graceful stop: the step in progress is finished and a checkpoint is written. Call from the event
        loop."""
        self._stopping = True
        self._stop_asked.set()
        self._changes.notify_soon()

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    async def scale(self, role: str, count: int, *, by: str) -> None:
        """Change the number of rollout workers, verifier processes or encoders, as `by` wishes."""
        self.run.listener.note(EventKind.DESIRED, role=role, count=count, by=by)
        if role == "rollout":
            await self.rollouts.scale(count)
        elif role == "verifier":
            await self.run.resize_verifier(count)
        else:
            await self.run.encoders.resize(count, timeout_s=self.config.rollout.start_timeout_s)

    def queues(self) -> dict[str, int]:
        """Return the number of groups by where they are, and of free slots."""
        sampling = sum(len(worker.groups) for worker in self.rollouts.workers.values())
        return {
            "requests": self.rollouts.requests.qsize(),
            "sampling": sampling,
            "sampled": self._sampled.qsize(),
            "held": len(self.books.held),
            "free_slots": self.books.admission.free_slots,
        }

    async def train(self, start_step: int, *, alongside: Sequence[Coroutine[Any, Any, None]] = ()) -> int:
        """Train from `start_step` (the steps already done), with the coroutines `alongside`, which end with it. Raise
        the first exception of any loop."""
        run = self.run
        run.step = self.trained_version = start_step
        if start_step:
            self._saved_step = start_step
            snapshot, version = await run.weights()
            await self.rollouts.publish(version, snapshot)
            self.evaluations.offer(start_step, snapshot)
            del snapshot
        for request in self.books.admission.in_flight:
            if request.group_id not in self.books.held:
                self._submit(request)
        run.recovery.on_rows_lost = self._lost_from_replay
        loops = [self._admit_loop(), self._publish_loop(), self.rollouts.run_loop(), self.evaluations.run_loop(), *alongside]
        loops += [self._score_loop() for _ in range(self.config.prompts_per_step)]
        try:
            async with asyncio.TaskGroup() as group:
                learning = group.create_task(self._learn_loop())
                tasks = [group.create_task(loop) for loop in loops]
                await asyncio.wait([learning])
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        return run.step

    # ---- the loops ----

    async def _admit_loop(self) -> None:
        books = self.books
        while True:
            with self._waiting("admit", "a free slot"):
                await self._changes.until(lambda: books.admission.free_slots > 0 and (not self._stopping or books.order is not None))
            self._submit(books.admit())

    def _submit(self, request: GroupRequest) -> None:
        self.books.submitted(request)
        self.rollouts.submit(request)

    async def _score_loop(self) -> None:
        while True:
            sampled = await self._sampled.get()
            try:
                await self._score(sampled)
            except DataLost as error:
                self._sample_again(sampled.request.group_id, error)
            except CallGivenUp as error:
                self.run.faults.note("group", str(sampled.request.group_id), error)
                self.books.dropped(sampled.request.group_id, DropReason.LOST)
                await self._changes.notify()

    async def _score(self, sampled: Sampled) -> None:
        """Take a group from its responses into replay. Raise DataLost or CallGivenUp."""
        with self._waiting("score", f"verdicts and features of group {sampled.request.group_id}"):
            scored = await self.run.verify_and_encode(sampled)
        self._usage.add_scored(scored)
        await self._insert(scored)

    async def _insert(self, scored: Scored) -> None:
        """Put a group into replay. While replay is full, wait until a batch, or stale groups alone, have left it."""
        group_id = scored.request.group_id
        removed = self.books.num_removed  # before replay is asked: what leaves meanwhile makes room, too
        while (result := await self.run.insert(scored, self.run.step)) is InsertResult.FULL:
            with self._waiting("insert", f"room in replay for group {group_id}"):
                self._require_room()
                await self._until_room(group_id, removed)
            removed = self.books.num_removed
        self.books.inserted(scored.request, result)
        await self._changes.notify()

    async def _until_room(self, group_id: int, removed: int) -> None:
        """Wait until more than `removed` times something has left replay."""
        self.books.waiting_for_room.add(group_id)
        try:
            await self._changes.notify()  # the learner may have waited for this very group
            await self._changes.until(lambda: self.books.num_removed > removed)
        finally:
            self.books.waiting_for_room.discard(group_id)

    def _waiting(self, loop: str, waiting_for: str) -> AbstractContextManager[None]:
        return self.run.waits.waiting(loop, waiting_for, usual_s=FIRST_WAIT_S)

    def _require_room(self) -> None:
        """Raise ReplayTooSmall where a group that waits for room would be waited for itself."""
        if self.books.order is not None:
            raise ReplayTooSmall(
                f"replay is full and deterministic = true holds up to {self.books.admission.capacity} groups: "
                f"raise replay.max_bytes = {self.config.replay.max_bytes}"
            )

    async def _learn_loop(self) -> None:
        run = self.run
        while run.step < self.config.steps and not self._stopping:
            waited_from = time.monotonic()
            with self.meter.learner_waits(), self._waiting("learn", f"{self.config.prompts_per_step} groups in replay"):
                batch, drawn = await self._next_batch()
            if drawn is None:
                break
            wait_s = time.monotonic() - waited_from
            with self._waiting("train", f"training step {run.step + 1}"):
                await self._train(batch, drawn, wait_s)
            await self._save_what_is_due()
        if run.step != self._saved_step:
            await self._checkpoint()
        with self._waiting("evaluate", "the last evaluation"):
            await first_of(self.evaluations.finished(), self._stop_asked.wait())

    async def _next_batch(self) -> tuple[Any, DrawnBatch | None]:
        while True:
            await self._changes.until(lambda: self.books.next_batch_is_in(self.run.step) or self._stopping)
            if self._stopping:
                return None, None
            batch, drawn = await self.run.draw(self.run.step)
            await self._changes.notify()
            if drawn.group_ids:
                return batch, drawn

    async def _train(self, batch: Any, drawn: DrawnBatch, wait_s: float) -> None:
        run = self.run
        trained = await self._training.train(batch, drawn, self._usage)
        del batch
        version, snapshot, metrics, logged = trained.version, trained.snapshot, trained.metrics, trained.logged
        del trained
        self.trained_version = version
        self.evaluations.offer(run.step, snapshot)
        with self._waiting("hand over", f"the publication of version {version - 1}"):
            await self._trained.put((version, snapshot))
        del snapshot
        await self._changes.notify()
        metrics = {
            **metrics,
            **self._usage.metrics(self.config.responses_per_prompt),
            **run_metrics(run, self.rollouts, drawn, logged),
            **await memory_metrics(run, self.rollouts),
        }
        metrics["time/wait_for_batch_s"] = wait_s
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - wait_s - self._usage.checkpoint_s
        self._usage = StepUsage()
        run.listener.stepped(run.step, metrics)

    async def _publish_loop(self) -> None:
        books = self.books
        while True:
            version, snapshot = await self._trained.get()
            if books.order is not None:
                with self._waiting("publish", f"every group of version {version - 1} to be in replay"):
                    await self._changes.until(books.order.may_publish)
            await self.rollouts.publish(version, snapshot)
            del snapshot
            with self._waiting("publish", f"every serving worker to load version {version}"):
                await self.rollouts.published(version)
            books.live(version, workers=len(self.rollouts.fleet.serving))
            await self._changes.notify()

    # ---- checkpoints ----

    async def _save_what_is_due(self) -> None:
        every, learner_every = self.config.checkpoint.every, self.config.checkpoint.learner_every
        try:
            if self.run.step % every == 0:
                await self._checkpoint()
            elif learner_every and self.run.step % learner_every == 0:
                await save_learner(self.run)
                self._checkpoint_budget.worked()
        except CheckpointError as error:  # such as a full disk: the run tries again when the next checkpoint is due
            self.run.faults.trouble("checkpoint", error)
            self._checkpoint_budget.failed(error)

    async def _checkpoint(self) -> None:
        run = self.run
        if (order := self.books.order) is not None:
            with self._waiting("checkpoint", f"version {run.step} to be live"):
                await self._changes.until(lambda: order.may_save(run.step))
        started = time.monotonic()
        with self._waiting("checkpoint", f"the checkpoint of step {run.step}"):
            await save_checkpoint(run)
        self._checkpoint_budget.worked()
        seconds = time.monotonic() - started
        run.listener.note(EventKind.CHECKPOINT, step=run.step, seconds=seconds)
        self._saved_step = run.step
        self._usage.checkpoint_s += seconds

    # ---- what the rollout workers tell (`jobs.run.rollouts.Observer`) ----

    def sampled(self, sampled: Sampled) -> None:
        self.run.faults.usable()
        self._usage.usages.append(sampled.usage)
        self._sampled.put_nowait(sampled)

    def dropped(self, work: GroupWork, reason: DropReason, error: Exception | None) -> None:
        """Raise `error` where problem after problem cannot be used."""
        group_id = work.request.group_id
        if error is not None and reason is DropReason.DATA:
            self.run.faults.unusable(group_id, error, at_most=self.config.supervision.max_data_failures)
        elif error is not None:
            self.run.faults.note("group", str(group_id), error)
        self.books.dropped(group_id, reason)
        self._changes.notify_soon()

    def updated(self, update: WeightUpdate) -> None:
        self.books.loaded(update)
        self._usage.updates.append(update)

    def _sample_again(self, group_id: int, error: DataLost) -> None:
        """The rows of a group that was sampled went with a node."""
        self.run.faults.note("score", "data", error)
        self._submit(self.books.rows_lost(group_id))

    def _lost_from_replay(self, group_id: int, error: DataLost) -> None:
        """A replay was lost, and the new one cannot have this group of it."""
        self._sample_again(group_id, error)
        self._changes.notify_soon()
