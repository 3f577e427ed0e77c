"""The components of a run as the controller sees them, and their state in and out of a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from buffers.admission import Admission
from jobs.config import RunConfig
from jobs.handles import Handle
from learners.checkpoint import CheckpointManager, FileEntry
from tasks.stream import ProblemStream

START_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Components:
    """Handles of everything that owns data. `encoder` is None when the bonus is off."""

    workers: Sequence[Handle]
    encoder: Handle | None
    verifier: Handle
    replay: Handle
    learner: Handle

    @property
    def stateful(self) -> dict[str, Handle]:
        """The parts of a checkpoint, by name."""
        parts = {"learner": self.learner, "replay": self.replay}
        return parts | ({"encoder": self.encoder} if self.encoder else {})


async def save_checkpoint(
    components: Components, manager: CheckpointManager, step: int, admission: Admission, stream: ProblemStream, *, timeout_s: float
) -> None:
    """Save every part, then the ledger, then the manifest.

    The ledger is read after replay was saved: every group the saved replay holds is then in the ledger, and a group that
    arrived in between is in flight without being held, so it is sampled again after a restore, never lost and never doubled.
    """
    files: list[FileEntry] = []
    for part, handle in components.stateful.items():
        files += await handle.call(
            "save_part", manager, step, part, timeout_s=timeout_s, waiting_for=f"part '{part}' of the checkpoint of step {step}"
        )
    meta = {"admission": admission.state_dict(), "stream": stream.state_dict()}
    await asyncio.to_thread(manager.commit, step, files, meta)


async def restore_checkpoint(
    components: Components, manager: CheckpointManager, step: int, admission: Admission, stream: ProblemStream, *, timeout_s: float
) -> None:
    """Load every part and the ledger, and publish the restored weights to the engines before anything is admitted."""
    meta: dict[str, Any] = manager.meta(step)
    for part, handle in components.stateful.items():
        await handle.call(
            "load_part", manager, step, part, timeout_s=timeout_s, waiting_for=f"part '{part}' of the checkpoint of step {step}"
        )
    held = await components.replay.call("held_ids", timeout_s=timeout_s, waiting_for="the restored replay's group ids")
    await components.replay.call("forget_log_after", step, timeout_s=timeout_s, waiting_for="the rollout log")
    admission.load_state_dict(meta["admission"], held=held)
    stream.load_state_dict(meta["stream"])
    await publish(components, timeout_s=timeout_s)


async def publish(components: Components, *, timeout_s: float) -> list[Any]:
    """Send the learner's current weights to every engine; returns the workers' update reports."""
    snapshot, _ = await components.learner.call("publish", returns=2, timeout_s=timeout_s, waiting_for="the learner's weights")
    return await load_everywhere(components, snapshot, timeout_s=timeout_s)


async def load_everywhere(components: Components, snapshot: Any, *, timeout_s: float) -> list[Any]:
    return await asyncio.gather(
        *(
            worker.call("update", snapshot, timeout_s=timeout_s, waiting_for=f"{worker.name} to load new weights")
            for worker in components.workers
        )
    )


def make_admission(config: RunConfig) -> Admission:
    return Admission(
        prompts_per_step=config.prompts_per_step,
        group_size=config.responses_per_prompt,
        max_policy_lag=config.max_policy_lag,
        max_attempts=config.max_attempts,
    )
