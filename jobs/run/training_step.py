"""One training step, as both trainers do it: bonus, gradient, log, weights, books.

draw ──batch──> bonus ──> learner ──> rollout log ──> weights of the new version
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.replay import DrawnBatch, Logged
from buffers.records import GroupUsage, StepReport, WeightUpdate
from buffers.rollout_log import RolloutLogError
from jobs.directory.events import EventKind
from jobs.processes.restart_budget import RestartBudget
from jobs.run.components import Run, Scored
from jobs.run.watchdog import FIRST_WAIT_S


@dataclass
class StepUsage:
    """What happened since the last step was reported."""

    usages: list[GroupUsage] = field(default_factory=list)
    updates: list[WeightUpdate] = field(default_factory=list)
    encode_s: float = 0.0
    verify_s: float = 0.0
    checkpoint_s: float = 0.0
    publish_s: float = 0.0
    num_published: int = 0
    since: float = field(default_factory=time.monotonic)

    def add_scored(self, scored: Scored) -> None:
        self.encode_s += scored.encode_s
        self.verify_s += sum(verdict.elapsed_s for verdict in scored.verdicts)

    def published(self, since: float) -> None:
        """Note that the learner has handed out its weights, which were asked for at `since`."""
        self.num_published += 1
        self.publish_s += time.monotonic() - since

    def metrics(self, group_size: int) -> dict[str, float]:
        elapsed_s = time.monotonic() - self.since
        response_tokens = sum(usage.response_tokens - usage.resumed_tokens for usage in self.usages)
        lengths = [usage.response_tokens / group_size for usage in self.usages]
        per_worker = max(1, len({update.worker_id for update in self.updates}))
        sizes = {"publication/mib": self.updates[-1].nbytes / 2**20} if self.updates else {}
        return {
            **sizes,
            "publication/calls": float(self.num_published + len(self.updates)),
            "time/publish_s": self.publish_s,
            "rollout/groups": float(len(self.usages)),
            "rollout/response_tokens": float(response_tokens),
            **({"rollout/tokens_mean": sum(lengths) / len(lengths)} if lengths else {}),
            "rollout/tokens_per_s": response_tokens / elapsed_s,
            "rollout/idle_s": sum(update.idle_s for update in self.updates) / per_worker,
            "time/check_weights_s": sum(update.check_s for update in self.updates) / per_worker,
            "time/load_weights_s": sum(update.load_s for update in self.updates) / per_worker,
            "time/encode_s": self.encode_s,
            "time/verify_s": self.verify_s,
            "time/checkpoint_s": self.checkpoint_s,
            "time/step_s": elapsed_s,
        }


@dataclass(frozen=True, kw_only=True)
class TrainedStep:
    """A step that is trained and written down. `snapshot` refers to the weights of `version`."""

    version: int
    snapshot: Any
    metrics: Mapping[str, float]
    logged: Logged


class TrainingStep:
    """Does the steps of a run, one after the other.

    trained = await TrainingStep(run).train(batch, drawn, usage)
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._log_budget = RestartBudget("rollout log", run.config.supervision)
        self._log_was_cut = False

    async def train(self, batch: Any, drawn: DrawnBatch, usage: StepUsage) -> TrainedStep:
        """Train step `run.step + 1` on `batch` (a reference), which `run.draw` has taken out of replay."""
        run = self._run
        scored, bonus_metrics = await run.add_bonus(batch, run.step)
        run.listener.note(EventKind.ABSORBED, step=run.step + 1, groups=len(drawn.group_ids))
        report = await run.learn(scored)
        logged = await self._log(scored, report)
        del batch, scored
        asked = time.monotonic()
        snapshot, version = await run.weights()
        usage.published(asked)
        run.books.trained(drawn.group_ids, step=run.step, version=version)
        return TrainedStep(version=version, snapshot=snapshot, metrics={**report.metrics, **bonus_metrics}, logged=logged)

    async def _log(self, batch: Any, report: StepReport) -> Logged:
        """Write the step down. While the disk is full, wait for as long as the budget allows."""
        run = self._run
        while True:
            try:
                logged = await run.log(batch, report)
            except RolloutLogError as error:
                run.faults.trouble("rollout log", error)
                delay_s = self._log_budget.failed(error)
                with run.waits.waiting("log", f"room for the rollout log of step {run.step + 1}", usual_s=FIRST_WAIT_S):
                    await asyncio.sleep(delay_s)
                continue
            self._log_budget.worked()
            if logged.removed_steps and not self._log_was_cut:
                limit = f"replay.log_max_mib = {run.config.replay.log_max_mib:g}"
                run.listener.warn(f"the rollout log has reached {limit}: its oldest steps are removed")
                self._log_was_cut = True
            return logged
