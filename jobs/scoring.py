"""The steps of a group and of a batch that the asynchronous controller and the synchronous trainer share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from actors.replay import Drawn
from buffers.records import GroupRequest, GroupUsage, StepReport, Verdict
from buffers.replay import InsertResult
from jobs.components import Components
from jobs.config import RunConfig
from jobs.handles import Handle
from tasks.base import Task


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


async def generate(config: RunConfig, task: Task, worker: Handle, request: GroupRequest) -> Sampled:
    batch, usage = await worker.call(
        "generate",
        request,
        task.prompt(request.problem),
        returns=2,
        timeout_s=config.rollout.group_timeout_s,
        waiting_for=f"group {request.group_id} ({request.problem.problem_id}) on {worker.name}",
    )
    return Sampled(request=request, batch=batch, usage=usage)


async def verify_and_encode(config: RunConfig, components: Components, sampled: Sampled) -> Scored:
    """Verification and encoding run side by side once a group's responses are in."""
    request, timeout_s = sampled.request, config.wait_timeout_s
    verifying = components.verifier.call(
        "verify_batch", request.problem, sampled.batch, timeout_s=timeout_s, waiting_for=f"verdicts of group {request.group_id}"
    )
    if components.encoder is None:
        return Scored(request=request, batch=sampled.batch, verdicts=await verifying, encode_s=0.0)
    encoding = components.encoder.call(
        "encode", sampled.batch, returns=2, timeout_s=timeout_s, waiting_for=f"features of group {request.group_id}"
    )
    verdicts, (batch, encode_s) = await asyncio.gather(verifying, encoding)
    return Scored(request=request, batch=batch, verdicts=verdicts, encode_s=encode_s)


async def insert(config: RunConfig, components: Components, scored: Scored, version: int) -> InsertResult:
    result: InsertResult = await components.replay.call(
        "insert",
        scored.batch,
        scored.verdicts,
        version,
        timeout_s=config.wait_timeout_s,
        waiting_for=f"replay to take group {scored.request.group_id}",
    )
    return result


async def draw(config: RunConfig, components: Components, version: int) -> tuple[Any, Drawn]:
    """A step's batch (a reference; its value is None while too few groups are held) and what was taken out."""
    batch, drawn = await components.replay.call(
        "sample", config.prompts_per_step, version, returns=2, timeout_s=config.wait_timeout_s, waiting_for="a batch from replay"
    )
    return batch, drawn


async def add_bonus(config: RunConfig, components: Components, batch: Any) -> tuple[Any, dict[str, float]]:
    """Score the step's batch and absorb it into the covariance: one call, once a step, in the order of steps."""
    if components.encoder is None:
        return batch, {}
    scored, metrics = await components.encoder.call(
        "score", batch, returns=2, timeout_s=config.wait_timeout_s, waiting_for="the step's bonuses"
    )
    return scored, metrics


async def learn(config: RunConfig, components: Components, batch: Any, step: int) -> StepReport:
    report: StepReport = await components.learner.call("step", batch, timeout_s=config.wait_timeout_s, waiting_for=f"training step {step}")
    return report


async def log(config: RunConfig, components: Components, batch: Any, step: int, report: StepReport) -> None:
    await components.replay.call(
        "log", step, batch, report.advantages, timeout_s=config.wait_timeout_s, waiting_for=f"the rollout log of step {step}"
    )


async def weights(config: RunConfig, components: Components) -> tuple[Any, int]:
    """The learner's current weights (a reference) and their version."""
    snapshot, version = await components.learner.call(
        "publish", returns=2, timeout_s=config.wait_timeout_s, waiting_for="the learner's weights"
    )
    return snapshot, version


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
