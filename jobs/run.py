"""A run's parts, and the steps of a group and of a batch, which both trainers go through.

    request ──generate──> Sampled ──verify_and_encode──> Scored ──insert──> replay          (a group)
    draw ──> add_bonus ──> learn ──> log, weights ──> load_everywhere                       (a step)

Bulk data is passed on as references. Every step has a deadline that names what it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.replay import Drawn
from buffers.admission import Admission
from buffers.records import GroupRequest, GroupUsage, StepReport, Verdict, WeightUpdate
from buffers.replay import InsertResult
from jobs.config import RunConfig
from jobs.handles import Handle
from learners.checkpoint import CheckpointManager, FileEntry
from tasks.base import Task
from tasks.stream import ProblemStream

Report = Callable[[int, dict[str, float]], None]


class VerifierFailure(RuntimeError):
    """Too many responses could not be scored: training on would be training on nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """A generated group: `batch` is a reference to its rows."""

    request: GroupRequest
    batch: Any
    usage: GroupUsage


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A group ready for replay."""

    request: GroupRequest
    batch: Any
    verdicts: list[Verdict]
    encode_s: float


@dataclass(frozen=True, kw_only=True)
class Components:
    """Handles of everything that owns data. `bonus` is None when the bonus is off; there are no encoders where the rollout workers
    make the features."""

    workers: Sequence[Handle]
    encoders: Sequence[Handle]
    bonus: Handle | None
    verifier: Handle
    replay: Handle
    learner: Handle

    @property
    def stateful(self) -> dict[str, Handle]:
        """The parts of a checkpoint, by name."""
        parts = {"learner": self.learner, "replay": self.replay}
        return parts | ({"bonus": self.bonus} if self.bonus else {})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a trainer works with: configuration, components, and the state the controller's process owns.

    `report(step, metrics)` is called after every step.
    """

    config: RunConfig
    components: Components
    task: Task
    stream: ProblemStream
    admission: Admission
    checkpoints: CheckpointManager
    report: Report

    def admit(self) -> GroupRequest:
        """Take a free slot for the next problem. Raises RuntimeError without one."""
        return self.admission.admit(lambda: next(self.stream))

    async def generate(self, worker: Handle, request: GroupRequest) -> Sampled:
        batch, usage = await worker.call(
            "generate",
            request,
            self.task.prompt(request.problem),
            returns=2,
            timeout_s=self.config.rollout.group_timeout_s,
            waiting_for=f"group {request.group_id} ({request.problem.problem_id}) on {worker.name}",
        )
        return Sampled(request=request, batch=batch, usage=usage)

    async def verify_and_encode(self, sampled: Sampled) -> Scored:
        """Verification and encoding run side by side once a group's responses are in."""
        request, encoders = sampled.request, self.components.encoders
        verifying = self._call(
            self.components.verifier, "verify_batch", request.problem, sampled.batch, waiting_for=f"verdicts of group {request.group_id}"
        )
        if not encoders:
            return Scored(request=request, batch=sampled.batch, verdicts=await verifying, encode_s=0.0)
        encoder = encoders[request.group_id % len(encoders)]
        encoding = self._call(encoder, "encode", sampled.batch, returns=2, waiting_for=f"features of group {request.group_id}")
        verdicts, (batch, encode_s) = await asyncio.gather(verifying, encoding)
        return Scored(request=request, batch=batch, verdicts=verdicts, encode_s=encode_s)

    async def insert(self, scored: Scored, version: int) -> InsertResult:
        waiting_for = f"replay to take group {scored.request.group_id}"
        result: InsertResult = await self._call(
            self.components.replay, "insert", scored.batch, scored.verdicts, version, waiting_for=waiting_for
        )
        return result

    async def held_ids(self) -> list[int]:
        """Groups in replay."""
        ids: list[int] = await self._call(self.components.replay, "held_ids", waiting_for="replay's group ids")
        return ids

    async def draw(self, version: int) -> tuple[Any, Drawn]:
        """A step's batch (a reference; its value is None while too few groups are held) and what was taken out."""
        batch, drawn = await self._call(
            self.components.replay, "sample", self.config.prompts_per_step, version, returns=2, waiting_for="a batch from replay"
        )
        return batch, drawn

    async def add_bonus(self, batch: Any, version: int) -> tuple[Any, dict[str, float]]:
        """Score the step's batch, about to be trained on by policy `version`, and absorb it: one call, once a step, in the order of
        steps."""
        if self.components.bonus is None:
            return batch, {}
        scored, metrics = await self._call(self.components.bonus, "score", batch, version, returns=2, waiting_for="the step's bonuses")
        return scored, metrics

    async def learn(self, batch: Any, step: int) -> StepReport:
        report: StepReport = await self._call(self.components.learner, "step", batch, waiting_for=f"training step {step}")
        return report

    async def log(self, batch: Any, step: int, report: StepReport) -> None:
        await self._call(self.components.replay, "log", step, batch, report.advantages, waiting_for=f"the rollout log of step {step}")

    async def forget_log_after(self, step: int) -> None:
        """What an earlier start logged beyond `step` will be trained again."""
        await self._call(self.components.replay, "forget_log_after", step, waiting_for="the rollout log")

    async def weights(self) -> tuple[Any, int]:
        """The learner's current weights (a reference) and their version."""
        snapshot, version = await self._call(self.components.learner, "publish", returns=2, waiting_for="the learner's weights")
        return snapshot, version

    async def load_everywhere(self, snapshot: Any) -> list[WeightUpdate]:
        """Every engine takes the weights and proves that it holds them."""
        loads = (self._call(w, "update", snapshot, waiting_for=f"{w.name} to load new weights") for w in self.components.workers)
        return list(await asyncio.gather(*loads))

    async def save_checkpoint(self, step: int) -> None:
        """Save every part, then the ledger, then the manifest.

        The ledger is read after replay was saved: every group the saved replay holds is then in the ledger, and a group that
        arrived in between is in flight without being held, so it is sampled again after a restore, never lost and never doubled.
        """
        files: list[FileEntry] = []
        for part, handle in self.components.stateful.items():
            waiting_for = f"part '{part}' of the checkpoint of step {step}"
            files += await self._call(handle, "save_part", self.checkpoints, step, part, waiting_for=waiting_for)
        meta = {"admission": self.admission.state_dict(), "stream": self.stream.state_dict()}
        await asyncio.to_thread(self.checkpoints.commit, step, files, meta)

    async def restore_checkpoint(self, step: int) -> None:
        """Load every part and the ledger, and publish the restored weights to the engines before anything is admitted."""
        meta: dict[str, Any] = self.checkpoints.meta(step)
        for part, handle in self.components.stateful.items():
            waiting_for = f"part '{part}' of the checkpoint of step {step}"
            await self._call(handle, "load_part", self.checkpoints, step, part, waiting_for=waiting_for)
        await self.forget_log_after(step)
        self.admission.load_state_dict(meta["admission"], held=await self.held_ids())
        self.stream.load_state_dict(meta["stream"])
        snapshot, _ = await self.weights()
        await self.load_everywhere(snapshot)

    async def _call(self, handle: Handle, method: str, *args: Any, waiting_for: str, returns: int = 1) -> Any:
        return await handle.call(method, *args, timeout_s=self.config.wait_timeout_s, waiting_for=waiting_for, returns=returns)


def make_admission(config: RunConfig) -> Admission:
    return Admission(
        prompts_per_step=config.prompts_per_step,
        group_size=config.responses_per_prompt,
        max_policy_lag=config.max_policy_lag,
        max_attempts=config.max_attempts,
    )


@dataclass
class VerdictCounter:
    """Stops the run when the share of responses without a score exceeds the configured rate."""

    max_error_rate: float
    num_verdicts: int = 0
    num_unscored: int = 0
    MIN_VERDICTS = 50

    def add(self, verdicts: list[Verdict]) -> None:
        self.num_verdicts += len(verdicts)
        unscored = [verdict for verdict in verdicts if not verdict.status.is_scored]
        self.num_unscored += len(unscored)
        if unscored and self.num_verdicts >= self.MIN_VERDICTS and self.num_unscored > self.max_error_rate * self.num_verdicts:
            raise VerifierFailure(
                f"{self.num_unscored} of {self.num_verdicts} responses could not be scored, more than verifier.max_error_rate = "
                f"{self.max_error_rate}; the last: {unscored[-1].status} ({unscored[-1].detail})"
            )
