"""The asynchronous controller: one asyncio process that owns ids, slots and versions, and no data.

     task ──problem──> [admit] ──request──> [rollout] ──batch──> [score] ──group──> replay
                          ^                    ^                                      │
                    slot  │                    │ weights                              │ batch of P groups
                          └──── [publish] <────┴──────── version ──────── [learn] <───┘

| loop    | consumes          | produces           | waits for               | unblocked by                     |
|---------|-------------------|--------------------|-------------------------|----------------------------------|
| admit   | free slots        | requests           | a slot                  | publish, a dropped group         |
| rollout | requests          | sampled groups     | a request; the engine   | admit; the worker                |
| score   | sampled groups    | groups in replay   | verdicts, features      | rollout; space: the learn loop   |
| learn   | P groups          | a version          | P groups held in replay | score                            |
| publish | a version         | live weights       | a trained version       | learn; every worker's load       |

Checkpoints are taken by the learn loop between two steps; generation goes on meanwhile. All queues are bounded by the number of
slots. Every call of a component has a deadline that names what it waits for, and an exception in any loop ends the run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from buffers.records import GroupRequest, GroupUsage, WeightUpdate
from buffers.replay import InsertResult
from jobs.failures import first_error
from jobs.handles import Handle
from jobs.run import Run, Sampled, Scored, VerdictCounter

STALE = "stale"


@dataclass
class Tally:
    """What happened since the last step was reported."""

    usages: list[GroupUsage] = field(default_factory=list)
    updates: list[WeightUpdate] = field(default_factory=list)
    encode_s: float = 0.0
    verify_s: float = 0.0
    checkpoint_s: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def add_scored(self, scored: Scored) -> None:
        self.encode_s += scored.encode_s
        self.verify_s += sum(verdict.elapsed_s for verdict in scored.verdicts)

    def metrics(self) -> dict[str, float]:
        elapsed_s = time.monotonic() - self.since
        response_tokens = sum(usage.response_tokens for usage in self.usages)
        per_worker = max(1, len({update.worker_id for update in self.updates}))
        return {
            "rollout/groups": float(len(self.usages)),
            "rollout/response_tokens": float(response_tokens),
            "rollout/tokens_per_s": response_tokens / elapsed_s,
            "rollout/idle_s": sum(update.idle_s for update in self.updates) / per_worker,
            "time/load_weights_s": sum(update.load_s for update in self.updates) / per_worker,
            "time/encode_s": self.encode_s,
            "time/verify_s": self.verify_s,
            "time/checkpoint_s": self.checkpoint_s,
            "time/step_s": elapsed_s,
        }


class Controller:
    """Runs the loops until `config.steps` are trained or a stop is asked for.

    controller = Controller(run)
    step = await controller.run(start_step)       # returns the last step trained; a checkpoint of it exists
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._config = run.config
        self._admission = run.admission
        self._requests: asyncio.Queue[GroupRequest] = asyncio.Queue(maxsize=run.admission.capacity)
        self._sampled: asyncio.Queue[Sampled] = asyncio.Queue(maxsize=run.admission.capacity)
        self._trained: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(maxsize=1)
        self._changed = asyncio.Condition()  # slots, held groups, live version or the stop flag changed
        self._held = 0
        self._step = 0
        self._checkpointed_step = -1
        self._stopping = False
        self._stuck_after_s = run.config.rollout.group_timeout_s + 2 * run.config.wait_timeout_s
        self._tally = Tally()
        self._verdicts = VerdictCounter(max_error_rate=run.config.verifier.max_error_rate)

    def stop(self) -> None:
        """Ask for a graceful stop: the step in progress is finished and a checkpoint is written. Call from the event loop."""
        self._stopping = True
        self._stop_note = asyncio.ensure_future(self._notify())

    async def run(self, start_step: int) -> int:
        """Train from `start_step` (the steps already done). Raises the first exception of any loop."""
        self._step = start_step
        self._checkpointed_step = start_step if start_step else -1
        self._held = len(await self._run.held_ids())
        lanes = max(1, self._config.rollout.max_sequences // self._config.responses_per_prompt)
        loops = [self._admit_loop(), self._publish_loop()]
        loops += [self._rollout_loop(worker) for _ in range(lanes) for worker in self._run.components.workers]
        loops += [self._score_loop() for _ in range(self._config.prompts_per_step)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop) for loop in loops]
                await self._learn_loop()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        return self._step

    async def _admit_loop(self) -> None:
        while True:
            await self._until(lambda: self._admission.free_slots > 0 and not self._stopping)
            request = self._run.admit()
            await self._requests.put(request)

    async def _rollout_loop(self, worker: Handle) -> None:
        """One lane: a worker has as many as it can decode groups at once."""
        while True:
            request = await self._requests.get()
            sampled = await self._run.generate(worker, request)
            self._tally.usages.append(sampled.usage)
            await self._sampled.put(sampled)

    async def _score_loop(self) -> None:
        while True:
            sampled = await self._sampled.get()
            scored = await self._run.verify_and_encode(sampled)
            self._verdicts.add(scored.verdicts)
            self._tally.add_scored(scored)
            await self._insert(scored)

    async def _insert(self, scored: Scored) -> None:
        """Put a group into replay, waiting for the next step while it is full."""
        step = self._step
        while (result := await self._run.insert(scored, step)) is InsertResult.FULL:
            await self._step_after(step)
            step = self._step
        async with self._changed:
            if result is InsertResult.ACCEPTED:
                self._held += 1
            elif result is InsertResult.STALE:
                self._admission.drop(scored.request.group_id, STALE)
            self._changed.notify_all()

    async def _step_after(self, step: int) -> None:
        await self._until(lambda: self._step > step)

    async def _learn_loop(self) -> None:
        while self._step < self._config.steps and not self._stopping:
            waited_from = time.monotonic()
            batch = await self._next_batch()
            if batch is None:
                break
            wait_s = time.monotonic() - waited_from
            await self._train(batch, wait_s)
            if self._step % self._config.checkpoint.every == 0:
                await self._checkpoint()
        if self._step != self._checkpointed_step:
            await self._checkpoint()

    async def _next_batch(self) -> Any:
        """The next step's batch, or None when a stop was asked for."""
        while True:
            await self._until(lambda: self._held >= self._config.prompts_per_step or self._stopping)
            if self._stopping:
                return None
            batch, drawn = await self._run.draw(self._step)
            async with self._changed:
                for group_id in drawn.stale_ids:
                    self._admission.drop(group_id, STALE)
                self._held -= len(drawn.group_ids) + len(drawn.stale_ids)
                self._changed.notify_all()
            if drawn.group_ids:
                self._drawn = drawn
                return batch

    async def _train(self, batch: Any, wait_s: float) -> None:
        scored, bonus_metrics = await self._run.add_bonus(batch, self._step)
        report = await self._run.learn(scored, self._step + 1)
        (snapshot, version), _ = await asyncio.gather(self._run.weights(), self._run.log(scored, self._step + 1, report))
        self._admission.trained(self._drawn.group_ids, version=version)
        await self._trained.put((version, snapshot))
        async with self._changed:
            self._step += 1
            self._changed.notify_all()
        metrics = {**report.metrics, **bonus_metrics, **self._tally.metrics(), **self._ledger_metrics(), "time/wait_for_batch_s": wait_s}
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - wait_s - self._tally.checkpoint_s
        self._tally = Tally()
        self._run.report(self._step, metrics)

    def _ledger_metrics(self) -> dict[str, float]:
        ledger = self._admission.ledger
        return {
            "replay/held_groups": float(self._drawn.held_groups),
            "replay/held_mib": self._drawn.held_bytes / 2**20,
            "groups/dropped_stale": float(ledger.dropped_by_reason.get(STALE, 0)),
            "groups/quarantined": float(ledger.quarantined),
        }

    async def _publish_loop(self) -> None:
        while True:
            version, snapshot = await self._trained.get()
            updates = await self._run.load_everywhere(snapshot)
            del snapshot
            self._tally.updates += updates
            async with self._changed:
                self._admission.published(version)
                self._changed.notify_all()

    async def _checkpoint(self) -> None:
        started = time.monotonic()
        await self._run.save_checkpoint(self._step)
        self._checkpointed_step = self._step
        self._tally.checkpoint_s += time.monotonic() - started

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`. Raises when nothing in the whole run has changed for longer than its calls may take, which name
        what they wait for themselves. Not `asyncio.wait_for`: in Python 3.11 that loses a cancellation that meets a notification.
        """
        async with self._changed:
            while not condition():
                try:
                    async with asyncio.timeout(self._stuck_after_s):
                        await self._changed.wait()
                except TimeoutError:
                    raise RuntimeError(self._stuck()) from None

    def _stuck(self) -> str:
        in_flight = ", ".join(f"{r.group_id} ({r.problem.problem_id})" for r in self._admission.in_flight[:5])
        return (
            f"nothing has moved for {self._stuck_after_s:g} s at step {self._step}: {self._held} groups held, "
            f"{self._admission.free_slots} free slots, live version {self._admission.live_version}; in flight: {in_flight or 'none'}"
        )

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
