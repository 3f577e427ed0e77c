"""What a new process is given in place of one that was lost.

| component           | how its state is found again                                                     |
|---------------------|----------------------------------------------------------------------------------|
| learner             | the newest checkpoint or snapshot, then the rollout log since, trained on again   |
| bonus               | the newest checkpoint, then the rollout log since, absorbed again                 |
| replay              | the groups inserted and not yet drawn: references are kept until they are drawn   |
| encoders, verifier  | they have none                                                                   |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from actors.bonus import BonusScorer
from actors.encoder import HiddenStateEncoder
from actors.learner import Learner
from actors.replay import DrawnBatch, Replay
from actors.verifier import ResizeError, VerifierPool
from jobs.processes.failures import StateLost
from jobs.processes.handles import DataLost, Deadline, Handle
from jobs.processes.supervised import wait_until_loaded
from learners.checkpoint import CheckpointManager, FileEntry

if TYPE_CHECKING:
    from jobs.run.components import Run, Scored


class Stateful(Protocol):
    """A component whose state is a part of a checkpoint (`actors.checkpointed`)."""

    def save_part(self, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]: ...
    def load_part(self, manager: CheckpointManager, step: int, part: str) -> None: ...


class HeldRows:
    """References to the rows of the groups in replay."""

    def __init__(self) -> None:
        self.held: dict[int, Scored] = {}
        """Groups that arrived since this start, by id."""
        self.restored: Any = None
        """A reference to the groups that came with a restored checkpoint; None once none of them is held."""
        self.restored_ids: set[int] = set()
        self.drawn_ids: set[int] = set()
        """The groups of the step in progress."""

    def drawn(self, drawn: DrawnBatch) -> None:
        """Replay has handed out these groups, or has dropped them."""
        self.drawn_ids = set(drawn.group_ids)
        for group_id in (*drawn.group_ids, *drawn.stale_ids):
            self.forget(group_id)
        if not self.restored_ids:
            self.restored = None

    def forget(self, group_id: int) -> None:
        self.held.pop(group_id, None)
        self.restored_ids.discard(group_id)


class Recovery:
    """Restores new processes to where the run is."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.rows = HeldRows()
        self.unlogged: Any = None
        """A reference to the batch of a step that the learner has done and the log has not."""
        self.num_verifiers: int | None = None
        """The size that the verifier pool was last resized to."""
        self.on_rows_lost: Callable[[int, DataLost], None] = _raise
        """on_rows_lost(group_id, error): a group is no longer in replay, because its rows went with a node."""

    async def restore_learner(self, handle: Handle[Learner]) -> None:
        run = self._run
        await self._load(handle)
        managers = (run.directory.checkpoints, run.directory.snapshots)
        manager = max(managers, key=lambda manager: self._newest(manager) or -1)
        step = self._newest(manager)
        if step is not None:
            waiting_for = f"the learner's state of step {step}"
            await run.call(handle, Learner.load_part, manager, step, "learner", waiting_for=waiting_for)
        await self._catch_up(handle, Learner.train_log, since=step or 0)
        if self.unlogged is not None:  # another call needed the learner while the step was being logged
            waiting_for = f"the new learner to go through step {run.step + 1} again"
            await run.call(handle, Learner.step, self.unlogged, run.step, waiting_for=waiting_for)

    async def restore_bonus(self, handle: Handle[BonusScorer]) -> None:
        await self._load(handle)
        manager = self._run.directory.checkpoints
        step = self._newest(manager)
        if step is not None:
            waiting_for = f"the bonus's state of step {step}"
            await self._run.call(handle, BonusScorer.load_part, manager, step, "bonus", waiting_for=waiting_for)
        await self._catch_up(handle, BonusScorer.absorb_log, since=step or 0)

    async def restore_encoder(self, handle: Handle[HiddenStateEncoder]) -> None:
        await self._load(handle)

    async def restore_replay(self, handle: Handle[Replay]) -> None:
        """Give the new replay every held group whose rows are still there, in the order of ids. Every other group that
        was admitted and is not on its way counts as seen."""
        run, rows = self._run, self.rows
        on_their_way = {request.group_id for request in run.books.admission.in_flight} - rows.drawn_ids
        admitted = run.books.admission.ledger.admitted
        await run.call(handle, Replay.take_over, admitted, sorted(on_their_way), waiting_for="the new replay")
        if rows.restored_ids:
            ids = sorted(rows.restored_ids)
            try:
                waiting_for = "the new replay to take restored groups"
                await run.call(handle, Replay.insert_rows, rows.restored, ids, waiting_for=waiting_for)
            except DataLost as error:
                self._rows_lost(ids, error)
        for group_id, scored in sorted(rows.held.items()):
            waiting_for = f"the new replay to take group {group_id}"
            try:  # version 0: whether a group is stale is found when a batch is drawn
                await run.call(handle, Replay.insert, scored.batch, scored.verdicts, 0, waiting_for=waiting_for)
            except DataLost as error:
                self._rows_lost([group_id], error)

    def _rows_lost(self, group_ids: Sequence[int], error: DataLost) -> None:
        for group_id in group_ids:
            self.rows.forget(group_id)
            self.on_rows_lost(group_id, error)

    async def restore_verifier(self, handle: Handle[VerifierPool]) -> None:
        run, timeout_s = self._run, self._run.config.wait_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await run.placed(handle, "verifier")
        except TimeoutError:
            raise Deadline(f"the new verifier pool waited over {timeout_s:g} s for {handle.needs} (wait_timeout_s)") from None
        if self.num_verifiers is not None:
            try:
                await run.call(handle, VerifierPool.resize, self.num_verifiers, waiting_for="the new verifier pool")
            except ResizeError as error:
                wanted = f"not {self.num_verifiers} processes: {error}"
                run.listener.warn(f"the new verifier pool has the size it starts with, {wanted}")

    async def _load(self, handle: Handle[Any]) -> None:
        await wait_until_loaded(handle, timeout_s=self._run.config.rollout.start_timeout_s)

    async def _catch_up(self, handle: Handle[Any], method: Callable[[Any, str, int], int], *, since: int) -> None:
        """Have it go through the steps after `since`, also those that are logged meanwhile."""
        run = self._run
        while since < (step := run.step):
            if not run.config.replay.log_rollouts:
                raise StateLost(
                    f"the {handle.name} was lost at step {step}, its last state is of step {since}, and "
                    "replay.log_rollouts = false keeps nothing to go through again"
                )
            await handle.call(
                method,
                str(run.directory.rollouts),
                step,
                timeout_s=run.config.wait_timeout_s * (step - since),
                waiting_for=f"the new {handle.name} to go through steps {since + 1} to {step} again",
            )
            since = step

    def _newest(self, manager: CheckpointManager) -> int | None:
        """Return the newest state that is not of a step to come: an earlier start may have left one behind."""
        return max((step for step in manager.steps() if step <= self._run.step), default=None)


def _raise(group_id: int, error: DataLost) -> None:
    raise error
