"""The run's side of `jobs.directory.run_state`: once a second, it says how the run is and does what is asked for.

    control = Control(run_dir, run_id, config, warn=console.warn)
    control.enter("starting")
    await controller.train(step, alongside=[control.loop(controller)])
    control.enter("finished")

| asked by                         | what follows                                                          |
|----------------------------------|-----------------------------------------------------------------------|
| `jobs.scale` (desired.json)      | the run has that many rollout workers, verifier processes, encoders   |
| `jobs.stop` (desired.json)       | the step in progress is finished and a checkpoint written             |
| `autoscale.policy = "queue"`     | there is one rollout worker more or less (`jobs.run.autoscale`)       |
| Ray: a node is about to leave    | its rollout workers leave before its deadline (`jobs.run.preemption`) |
| a wait far beyond its usual time | a warning names it (`jobs.run.watchdog`)                              |
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from jobs.config import RunConfig
from jobs.configuration.user_error import refusing
from jobs.directory.run_state import DESIRED, Desired, RunPhase, RunStatus, WorkerStatus, read_desired, write_desired, write_status
from jobs.processes.failures import kind_of, reason
from jobs.run.autoscale import decide
from jobs.run.controller import Controller
from jobs.run.fleet import Member, WorkerState
from jobs.run.preemption import draining_nodes
from jobs.run.prometheus import Exporter, status_values

TICK_S = 1.0
DRAIN_MARGIN_S = 5.0
"""A worker leaves this many seconds before its node does."""
NEVER_LATE = ("admit",)
"""These loops wait most of the time where all is well: a slot becomes free only after a training step."""
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
        self._some_start = False
        self._told = ""
        self._metrics: dict[str, float] = {}
        self._known: dict[str, float] = {}  # the newest value of every metric
        self._exporter = Exporter(run_id)
        with refusing(OSError, ValueError):
            asked = read_desired(directory)
        self.desired = self._asked = asked.model_copy(update={"stop": False})
        """`desired` is what the run aims at, `_asked` what was last asked for. A wish that could not be met is not
        tried again before another comes."""
        if asked.stop:
            write_desired(directory, self.desired)
        now = time.time()
        self._status = RunStatus(
            run_id=run_id, phase="starting", pid=os.getpid(), host=platform.node(), started=now, updated=now, step=0, steps=config.steps
        )

    def enter(self, phase: RunPhase, detail: str = "", *, step: int | None = None) -> None:
        """Write the phase down at once."""
        self._status = self._status.model_copy(update={"phase": phase, "detail": detail} | ({} if step is None else {"step": step}))
        self.write()

    def wishes(self) -> list[str]:
        """Return what people asked for in an earlier start and still holds, where the configuration has another
        number."""
        configured = {"rollout": self._config.rollout.workers, "verifier": self._verifiers, "encoder": self._config.encoder.replicas}
        asked = {role: number for role in configured if (number := getattr(self.desired, role)) not in (None, configured[role])}
        return [
            f"the run is to have {number} of role {role}, as repexp scale asked for before, and not {configured[role]}: delete "
            f"{self._directory / DESIRED} for the configured number"
            for role, number in asked.items()
        ]

    def checkpointed(self, step: int, at: float | None = None) -> None:
        """Note the newest checkpoint, and when it was written, if that is known."""
        self._status = self._status.model_copy(update={"last_checkpoint": step, "checkpoint_time": at})

    def stepped(self, metrics: dict[str, float]) -> None:
        """Keep the metrics of a step for the status screen, and for Prometheus."""
        self._metrics = {name: metrics[name] for name in SHOWN_METRICS if name in metrics}
        self._known |= metrics

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Keep the metrics of an evaluation for Prometheus."""
        self._known |= metrics

    def export(self) -> None:
        """Give Prometheus the newest values."""
        if (controller := self._controller) is not None:
            self._known |= controller.books.metrics() | controller.run.faults.metrics()
            self._known["publication/refused"] = float(controller.rollouts.num_refused)
        self._exporter.export({**self._known, **status_values(self._status)})

    def scraped_at(self, address: str) -> None:
        """Say in the status where Prometheus finds the run."""
        self._status = self._status.model_copy(update={"metrics_address": address})

    def write(self) -> None:
        """Write status.json. Where the disk is full, warn: the run does not fail for it."""
        self._status = self._status.model_copy(update={"updated": time.time(), **self._now()})
        try:
            write_status(self._directory, self._status)
        except OSError as error:
            self._warn(f"status.json cannot be written: {error.strerror}")

    async def loop(self, controller: Controller) -> None:
        """Write and obey, once a second. Never returns."""
        self._controller = controller
        self.enter("training", step=controller.run.step)
        self.export()
        try:
            await self._obey(controller)
        finally:
            if self._changing is not None:
                self._changing.cancel()
                await asyncio.gather(self._changing, return_exceptions=True)

    async def _obey(self, controller: Controller) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if controller.is_stopping and self._status.phase == "training":
                self.enter("stopping")
            await self._read_desired(controller)
            self._reconcile(controller)
            await self._autoscale(controller)
            await self._leave_draining_nodes(controller)
            for overdue in controller.run.waits.overdue():
                if overdue.loop in NEVER_LATE:
                    continue
                under_way = controller.rollouts.longest_under_way() if overdue.loop == "learn" else []
                self._warn("; ".join([str(overdue), *(["longest under way: " + ", ".join(under_way)] if under_way else [])]))
            self.write()
            self.export()

    async def _read_desired(self, controller: Controller) -> None:
        try:
            asked = await asyncio.to_thread(read_desired, self._directory)
        except (OSError, ValueError) as error:
            if str(error) != self._told:
                self._warn(str(error))
            self._told = str(error)
            return
        self._told = ""
        if asked == self._asked:
            return
        before, self._asked = self._asked, asked
        if asked.stop:
            self.desired = self.desired.model_copy(update={"stop": True})
            controller.stop()
        if asked.model_copy(update={"stop": before.stop}) == before:  # no numbers were asked for
            return
        self.desired = asked
        others_changed = (asked.verifier, asked.encoder) != (before.verifier, before.encoder)
        asks_for_workers = asked.rollout != before.rollout or not others_changed  # an old wish does not undo what autoscaling did
        if asks_for_workers and asked.rollout is not None and asked.rollout != controller.rollouts.desired:
            await controller.scale("rollout", asked.rollout, by="jobs.scale")

    def _reconcile(self, controller: Controller) -> None:
        """Bring verifiers and encoders to the number asked for, one change at a time, beside everything else."""
        if self._changing is not None:
            if not self._changing.done():
                return
            error = self._changing.exception()
            self._changing = None
            if error is not None:
                self._warn(f"the number of verifiers or encoders could not be changed: {reason(error)} ({kind_of(error)})")
                self.desired = self.desired.model_copy(update={"verifier": None, "encoder": None})
        num_encoders = len(controller.run.encoders)
        verifier = self.desired.verifier or self._verifiers
        encoder = (self.desired.encoder or num_encoders) if num_encoders else 0
        if (verifier, encoder) != (self._verifiers, num_encoders):
            self._changing = asyncio.create_task(self._resize(controller, verifier, encoder))

    async def _resize(self, controller: Controller, verifier: int, encoder: int) -> None:
        if verifier != self._verifiers:
            await controller.scale("verifier", verifier, by="jobs.scale")
            self._verifiers = verifier
        if encoder != len(controller.run.encoders):
            await controller.scale("encoder", encoder, by="jobs.scale")

    async def _autoscale(self, controller: Controller) -> None:
        config = self._config.autoscale
        meter, serving = controller.meter, len(controller.rollouts.fleet.serving)
        meter.workers_idle(controller.rollouts.lane_idle_share())
        before, self._some_start = self._some_start, serving < controller.rollouts.desired
        if config.policy == "off" or (before and not self._some_start):  # what was measured meanwhile says nothing of all of them
            meter.take()
            return
        if meter.elapsed_s < config.interval_s:
            return
        current, now = controller.rollouts.desired, time.monotonic()
        since_change_s = None if self._last_change is None else now - self._last_change
        desired = decide(meter.take(), current, config, last_change_s=since_change_s)
        if self._some_start:  # those that start were asked for already; one that finds no place may be given up
            desired = min(desired, current)
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
        controller = self._controller
        if controller is None:
            return {"desired": self._desired_counts(None)}
        return {
            "step": controller.run.step,
            "trained_version": controller.trained_version,
            "live_version": controller.books.admission.live_version,
            "workers": (*self._rollouts(controller), *self._encoders(controller)),
            "desired": self._desired_counts(controller),
            "queues": controller.queues(),
            "tokens": controller.books.tokens.counts(),
            "metrics": self._metrics,
            "waits": tuple(controller.run.waits.current()),
            "faults": tuple(controller.run.faults.newest),
        }

    def _desired_counts(self, controller: Controller | None) -> dict[str, int]:
        asked: Desired = self.desired
        return {
            "rollout": controller.rollouts.desired if controller else asked.rollout or self._config.rollout.workers,
            "verifier": asked.verifier or self._verifiers,
            "encoder": (asked.encoder or self._config.encoder.replicas) if self._uses_encoders() else 0,
        }

    def _uses_encoders(self) -> bool:
        return self._config.feature_source == "encoder"

    def _rollouts(self, controller: Controller) -> list[WorkerStatus]:
        """Return the workers that are there and the last few that were lost; not those that left as they were asked
        to."""
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
                groups=controller.run.encoders.groups_in(handle.name),
            )
            for handle in controller.run.encoders.handles
        ]
