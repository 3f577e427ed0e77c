"""The run's side of `jobs.directory.run_state`: once a second, say how things are, and do what is asked for.

    control = Control(run_dir, run_id, config, warn=console.warn)
    control.enter("starting")
    await controller.run(step, alongside=[control.loop(controller)])
    control.enter("finished")

| asked by                              | what follows                                                     |
|---------------------------------------|------------------------------------------------------------------|
| `jobs.scale` (desired.json)           | so many rollout workers, verifier processes, encoders             |
| `jobs.stop` (desired.json)            | the step in progress is finished, a checkpoint written            |
| `autoscale.policy = "queue"`          | a rollout worker more or less (`jobs.run.autoscale`)                  |
| Ray: a node is about to go            | its rollout workers leave before its deadline (`jobs.run.preemption`) |
| a wait far beyond its usual time      | a warning that names it (`jobs.run.watchdog`)                         |
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from jobs.config import RunConfig
from jobs.directory.run_state import Desired, RunPhase, RunStatus, WorkerStatus, read_desired, write_desired, write_status
from jobs.processes.failures import kind_of, reason
from jobs.run.autoscale import decide
from jobs.run.controller import Controller
from jobs.run.fleet import Member, WorkerState
from jobs.run.preemption import draining_nodes

TICK_S = 1.0
DRAIN_MARGIN_S = 5.0
"""A worker on a node that goes leaves so much earlier than the node."""
NEVER_LATE = ("admit",)
"""Loops that wait most of the time where all is well: a slot is free when a step was trained on."""
SHOWN_METRICS = ("reward/mean", "reward/pass@1", "reward/pass@K", "rollout/tokens_per_s", "time/step_s", "policy/lag_mean", "bonus/mean")


class Control:
    """Writes status.json, reads desired.json."""

    def __init__(self, directory: Path, run_id: str, config: RunConfig, *, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._config = config
        self._warn = warn
        self._controller: Controller | None = None
        self._changing: asyncio.Task[None] | None = None
        self._verifiers = config.verifier.num_workers
        self._last_change: float | None = None
        self._metrics: dict[str, float] = {}
        asked = read_desired(directory)
        self.desired = self._asked = asked.model_copy(update={"stop": False})
        """What is being done, and what was last asked for: a wish that could not be met is not tried again before
        others come."""
        if asked.stop:
            write_desired(directory, self.desired)
        now = time.time()
        self._status = RunStatus(
            run_id=run_id,
            phase="starting",
            pid=os.getpid(),
            host=platform.node(),
            started=now,
            updated=now,
            step=0,
            steps=config.steps,
        )

    def enter(self, phase: RunPhase, detail: str = "", *, step: int | None = None) -> None:
        """Say so at once."""
        self._status = self._status.model_copy(update={"phase": phase, "detail": detail} | ({} if step is None else {"step": step}))
        self.write()

    def stepped(self, metrics: dict[str, float]) -> None:
        """A step was reported."""
        self._metrics = {name: metrics[name] for name in SHOWN_METRICS if name in metrics}

    def write(self) -> None:
        """Best effort: a status that cannot be written (a full disk) is told by what cannot be written next."""
        self._status = self._status.model_copy(update={"updated": time.time(), **self._now()})
        try:
            write_status(self._directory, self._status)
        except OSError as error:
            self._warn(f"status.json cannot be written: {error.strerror}")

    async def loop(self, controller: Controller) -> None:
        """Never returns."""
        self._controller = controller
        self.enter("training", step=controller.step)
        while True:
            await asyncio.sleep(TICK_S)
            if controller.is_stopping and self._status.phase == "training":
                self.enter("stopping")
            await self._read_desired(controller)
            self._reconcile(controller)
            await self._autoscale(controller)
            await self._leave_draining_nodes(controller)
            for overdue in controller.waits.overdue():
                if overdue.loop in NEVER_LATE:
                    continue
                under_way = controller.rollouts.longest_under_way() if overdue.loop == "learn" else []
                self._warn("; ".join([str(overdue), *(["longest under way: " + ", ".join(under_way)] if under_way else [])]))
            self.write()

    async def _read_desired(self, controller: Controller) -> None:
        try:
            asked = await asyncio.to_thread(read_desired, self._directory)
        except ValueError as error:
            self._warn(str(error))
            return
        if asked == self._asked:
            return
        self.desired = self._asked = asked
        if asked.stop:
            controller.stop()
        if asked.rollout is not None and asked.rollout != controller.rollouts.desired:
            await controller.scale("rollout", asked.rollout, by="jobs.scale")

    def _reconcile(self, controller: Controller) -> None:
        """Verifiers and encoders to the number asked for, one change at a time, beside everything else."""
        if self._changing is not None:
            if not self._changing.done():
                return
            error = self._changing.exception()
            self._changing = None
            if error is not None:
                self._warn(f"the number of verifiers or encoders could not be changed: {reason(error)} ({kind_of(error)})")
                self.desired = self.desired.model_copy(update={"verifier": None, "encoder": None})
        num_encoders = len(controller.encoders)
        verifier = self.desired.verifier or self._verifiers
        encoder = (self.desired.encoder or num_encoders) if num_encoders else 0
        if (verifier, encoder) != (self._verifiers, num_encoders):
            self._changing = asyncio.create_task(self._resize(controller, verifier, encoder))

    async def _resize(self, controller: Controller, verifier: int, encoder: int) -> None:
        if verifier != self._verifiers:
            await controller.scale("verifier", verifier, by="jobs.scale")
            self._verifiers = verifier
        if encoder != len(controller.encoders):
            await controller.scale("encoder", encoder, by="jobs.scale")

    async def _autoscale(self, controller: Controller) -> None:
        config = self._config.autoscale
        meter, serving = controller.meter, len(controller.rollouts.fleet.serving)
        meter.workers_idle(controller.rollouts.lane_idle_share())
        if config.policy == "off" or serving < controller.rollouts.desired:  # while workers start, waiting says nothing of their number
            meter.take()
            return
        if meter.elapsed_s < config.interval_s:
            return
        current, now = controller.rollouts.desired, time.monotonic()
        since_change_s = None if self._last_change is None else now - self._last_change
        desired = decide(meter.take(), current, config, last_change_s=since_change_s)
        if desired != current:
            self._last_change = now
            await controller.scale("rollout", desired, by="autoscale")

    async def _leave_draining_nodes(self, controller: Controller) -> None:
        located = {worker.name: worker.node_id for worker in controller.rollouts.workers.values() if worker.node_id is not None}
        if not located:
            return
        draining = await asyncio.to_thread(draining_nodes)
        for name, node_id in located.items():
            if node_id in draining:
                deadline = draining[node_id]
                within_s = self._config.supervision.drain_timeout_s
                if deadline:
                    within_s = max(0.0, min(within_s, deadline - time.time() - DRAIN_MARGIN_S))
                await controller.rollouts.drain(name, "its node is about to go", within_s=within_s)

    def _now(self) -> dict[str, object]:
        """What the controller knows, as fields of RunStatus."""
        controller = self._controller
        if controller is None:
            return {"desired": self._desired_counts(None)}
        checkpoint = controller.last_checkpoint
        return {
            "step": controller.step,
            "trained_version": controller.trained_version,
            "live_version": controller.live_version,
            "workers": (*self._rollouts(controller), *self._encoders(controller)),
            "desired": self._desired_counts(controller),
            "queues": controller.queues(),
            "tokens": controller.token_counts(),
            "metrics": self._metrics,
            "last_checkpoint": checkpoint[0] if checkpoint else None,
            "checkpoint_time": checkpoint[1] if checkpoint else None,
            "waits": tuple(controller.waits.current()),
            "faults": tuple(controller.faults),
        }

    def _desired_counts(self, controller: Controller | None) -> dict[str, int]:
        asked: Desired = self.desired
        return {
            "rollout": controller.rollouts.desired if controller else asked.rollout or self._config.rollout.workers,
            "verifier": asked.verifier or self._verifiers,
            "encoder": (asked.encoder or self._config.encoder.replicas) if self._uses_encoders() else 0,
        }

    def _uses_encoders(self) -> bool:
        return self._config.bonus.feature_source == "encoder"

    def _rollouts(self, controller: Controller) -> list[WorkerStatus]:
        """Those that are there, and the last few that were lost; not those that left as they were asked to."""
        members = controller.rollouts.fleet.members.values()
        return [self._worker(controller, member) for member in members if member.was_lost or member.state is not WorkerState.DEAD]

    def _worker(self, controller: Controller, member: Member) -> WorkerStatus:
        worker = controller.rollouts.workers.get(member.name)
        beat = worker.beat if worker else None
        return WorkerStatus(
            name=member.name,
            role="rollout",
            state=member.state,
            since=time.time() - (time.monotonic() - member.since),
            version=member.version if member.version >= 0 else None,
            groups=len(worker.groups) if worker else 0,
            sampled_tokens=beat.sampled_tokens if beat else 0,
            rss_mib=beat.rss_bytes / 2**20 if beat else None,
            detail=member.detail,
        )

    def _encoders(self, controller: Controller) -> list[WorkerStatus]:
        return [
            WorkerStatus(
                name=handle.name,
                role="encoder",
                state="serving",
                since=self._status.started,
                groups=controller.encoders.groups_in(handle.name),
            )
            for handle in controller.encoders.handles
        ]
