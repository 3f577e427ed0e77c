"""Saving and restoring a whole run."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

from actors.learner import Learner
from actors.replay import Replay
from jobs.run.components import Run
from jobs.run.recovery import Stateful
from learners.checkpoint import FileEntry


async def save_checkpoint(run: Run) -> None:
    """Save every part and the policy's model card, then the books and the manifest.

    The books are read after replay was saved. So they have in flight every group that the saved replay holds. A group
    that arrived in between is in flight without being held: a restored run samples it again, so it is neither lost nor
    doubled. If rows were lost in between, what was saved has groups of which the books know nothing any more. Replay is
    saved again then.
    """
    step, num_lost = run.step, run.books.num_rows_lost
    files = {part: await _save_part(run, part) for part in run.stateful}
    card = await asyncio.to_thread(run.directory.add_model_card, step)
    while run.books.num_rows_lost > num_lost:
        num_lost = run.books.num_rows_lost
        files["replay"] = await _save_part(run, "replay")
    meta = {"run_id": run.directory.run_id, **run.books.state_dict()}
    await asyncio.to_thread(run.directory.checkpoints.commit, step, [*chain.from_iterable(files.values()), card], meta)


async def _save_part(run: Run, part: str) -> list[FileEntry]:
    waiting_for = f"part '{part}' of the checkpoint of step {run.step}"
    return await run.call(run.stateful[part], Stateful.save_part, run.directory.checkpoints, run.step, part, waiting_for=waiting_for)


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
