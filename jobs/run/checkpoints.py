"""Saving and restoring a whole run."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.learner import Learner
from actors.replay import Replay
from jobs.run.components import Run
from jobs.run.recovery import Stateful
from learners.checkpoint import FileEntry


async def save_checkpoint(run: Run) -> None:
    """Save every part, then the policy's model card, the books and the manifest.

    The books are read after replay was saved. So they have in flight every group that the saved replay holds. A group
    that arrived in between is in flight without being held: a restored run samples it again, so it is neither lost nor
    doubled.
    """
    step = run.step
    files: list[FileEntry] = []
    for part, handle in run.stateful.items():
        waiting_for = f"part '{part}' of the checkpoint of step {step}"
        files += await run.call(handle, Stateful.save_part, run.directory.checkpoints, step, part, waiting_for=waiting_for)
    files.append(await asyncio.to_thread(run.directory.add_model_card, step))
    meta = {"run_id": run.directory.run_id, **run.books.state_dict()}
    await asyncio.to_thread(run.directory.checkpoints.commit, step, files, meta)


async def save_learner(run: Run) -> None:
    """Save the learner's state alone. A lost learner is restored from it sooner than from the last checkpoint."""
    step, snapshots = run.step, run.directory.snapshots
    waiting_for = f"the learner's snapshot of step {step}"
    files = await run.call(run.learner, Learner.save_part, snapshots, step, "learner", waiting_for=waiting_for)
    await asyncio.to_thread(snapshots.commit, step, files, {})


async def restore_checkpoint(run: Run, step: int) -> None:
    """Load every part and the books. Engines get the weights before anything is admitted (`jobs.run.rollouts`)."""
    run.step = step
    checkpoints = run.directory.checkpoints
    meta: dict[str, Any] = checkpoints.meta(step)
    for part, handle in run.stateful.items():
        waiting_for = f"part '{part}' of the checkpoint of step {step}"
        await run.call(handle, Stateful.load_part, checkpoints, step, part, waiting_for=waiting_for)
    await forget_log_after(run, step)
    rows = run.recovery.rows
    rows.restored, ids = await run.call(run.replay, Replay.held_rows, returns=2, waiting_for="replay's rows")
    rows.restored_ids = set(ids)
    run.books.load_state_dict(meta, held=ids)


async def forget_log_after(run: Run, step: int) -> None:
    """Remove what an earlier start logged beyond `step`: these steps will be trained again."""
    await run.call(run.replay, Replay.forget_log_after, step, waiting_for="the rollout log")
