"""The replay actor: owns the replay buffer and the rollout log.

inserted = replay.insert(encoded, verdicts, version)         # a producer; FULL means: wait and try again
batch, drawn = replay.sample(num_groups, version)             # the learn loop; stale groups are taken out first
replay.log(step, scored, advantages)                          # after the gradient: one Parquet file a step

In place of a replay that was lost, a new one first learns which groups are known, then gets those that were held again:

replay.take_over(seen_below, not_seen)
replay.insert(encoded, verdicts, version)                     # or insert_rows, of what `held_rows` once said
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from actors.checkpointed import Checkpointed
from buffers.config import ReplayConfig
from buffers.records import GroupOutcome, Verdict
from buffers.replay import InsertResult, ReplayBuffer, ReplayState
from buffers.rollout_log import RolloutLog
from buffers.schema import ROLLOUT_SCHEMA, concat_groups, group_ids, split_groups, with_outcome, with_scores, with_verdicts
from learners.checkpoint import CheckpointManager, FileEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What `sample` took out: the groups of the batch (empty when too few are held) and those found stale."""

    group_ids: tuple[int, ...]
    stale_ids: tuple[int, ...]
    held_groups: int
    held_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Logged:
    """The rollout log after a step: its bytes, and steps removed from it so far for want of room."""

    nbytes: int = 0
    removed_steps: int = 0


class Replay(Checkpointed):
    """Whole groups between verification and gradient, and the record of what became of each."""

    def __init__(self, *, group_size: int, prompts_per_step: int, max_policy_lag: int, config: ReplayConfig, log_directory: str) -> None:
        self._config = config
        self._prompts_per_step = prompts_per_step
        self._buffer = ReplayBuffer(group_size=group_size, max_policy_lag=max_policy_lag, config=config)
        self._log = RolloutLog(fs.LocalFileSystem(), log_directory) if config.log_rollouts else None
        self._stale: list[pa.RecordBatch] = []  # taken out, not yet in the log
        self._removed_steps = 0
        self._checkpoints: CheckpointManager | None = None  # the one that this was last saved with

    def insert(self, batch: pa.RecordBatch, verdicts: Sequence[Verdict], version: int) -> InsertResult:
        """Offer one group with its verdicts. FULL: nothing changed, offer it again; STALE: it goes to the log as such.

        Raises ValueError when replay is full with less than one step's groups: waiting would then wait for ever.
        """
        batch = with_verdicts(batch, verdicts)
        result = self._buffer.insert(batch, version=version)
        if result is InsertResult.STALE:
            self._stale.append(batch)
        if result is InsertResult.FULL and self._buffer.num_groups < self._prompts_per_step:
            raise ValueError(
                f"replay is full with {self._buffer.num_groups} groups and a step needs prompts_per_step = {self._prompts_per_step}: "
                f"raise replay.max_bytes = {self._config.max_bytes}"
            )
        return result

    def sample(self, num_groups: int, version: int) -> tuple[pa.RecordBatch | None, Drawn]:
        """Evict what is stale at `version`, then take `num_groups` groups; None while there are fewer."""
        stale = self._buffer.evict(version=version)
        self._stale += stale
        batch = self._buffer.sample(num_groups, version=version)
        drawn = Drawn(
            group_ids=() if batch is None else tuple(int(group_id) for group_id in group_ids(batch)),
            stale_ids=tuple(_id_of(group) for group in stale),
            held_groups=self._buffer.num_groups,
            held_bytes=self._buffer.nbytes,
        )
        return batch, drawn

    def log(self, step: int, batch: pa.RecordBatch, advantages: Sequence[float]) -> Logged:
        """Write the groups trained on in `step`, and those dropped as stale since the step before.

        May be repeated when its answer was lost, also by a replay that took over: the stale groups that an earlier call wrote stay.
        Where it raises (RolloutLogError), nothing has changed.
        """
        if self._log is None:
            self._stale = []
            return Logged()
        written = split_groups(self._log.batch(step, GroupOutcome.STALE)) if self._log.has(step) else []
        ids = {_id_of(group) for group in written}
        stale = [with_outcome(group, step, GroupOutcome.STALE) for group in self._stale if _id_of(group) not in ids]
        self._log.append(step, [trained_rows(batch, step, advantages), *written, *stale])
        self._stale = []
        max_bytes = int(self._config.log_max_mib * 2**20)
        if self._log.nbytes > max_bytes and self._checkpoints is not None:
            self._removed_steps += self._log.prune(max_bytes, keep_after=self._checkpoints.latest() or 0)
        return Logged(nbytes=self._log.nbytes, removed_steps=self._removed_steps)

    def save_part(self, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]:
        self._checkpoints = manager
        return super().save_part(manager, step, part)

    def take_over(self, seen_below: int, not_seen: Sequence[int]) -> None:
        """In place of a replay that was lost: every group below `seen_below` but those in `not_seen` was in it.

        Raises ValueError unless this replay is as new.
        """
        self._buffer.take_over(seen_below, not_seen)

    def insert_rows(self, rows: pa.Table, ids: Sequence[int]) -> None:
        """Take the groups `ids` out of what `held_rows` said. Whether one is stale is found when a batch is drawn.

        Raises ValueError for a group that is not in `rows` or does not fit.
        """
        groups = {_id_of(group): group for group in split_groups(concat_groups(rows.to_batches()))} if len(rows) else {}
        for group_id in ids:
            if group_id not in groups:
                raise ValueError(f"group {group_id} is not among the rows: {sorted(groups)}")
            result = self._buffer.insert(groups[group_id], version=0)
            if result is InsertResult.FULL:
                raise ValueError(f"group {group_id} does not fit into replay.max_bytes = {self._config.max_bytes}")

    def held_ids(self) -> list[int]:
        return self._buffer.held_ids

    def held_rows(self) -> tuple[pa.Table, list[int]]:
        """The groups held, bulk, and their ids."""
        return self._buffer.held_rows(), self._buffer.held_ids

    def save(self, directory: Path) -> None:
        state = self._buffer.state_dict()
        _write_table(directory / "replay.arrow", state["rows"])
        _write_table(directory / "stale.arrow", pa.Table.from_batches(self._stale, schema=ROLLOUT_SCHEMA))
        (directory / "replay.json").write_text(json.dumps({"seen_ranges": state["seen_ranges"], "counters": state["counters"]}))

    def load(self, directory: Path) -> None:
        rows = _read_table(directory / "replay.arrow")
        self._stale = _read_table(directory / "stale.arrow").to_batches()
        numbers = json.loads((directory / "replay.json").read_text())
        self._buffer.load_state_dict(ReplayState(rows=rows, seen_ranges=numbers["seen_ranges"], counters=numbers["counters"]))

    def forget_log_after(self, step: int) -> None:
        """On resume: drop the log of steps that will be trained again."""
        if self._log is not None:
            self._log.truncate(step)


def trained_rows(batch: pa.RecordBatch, step: int, advantages: Sequence[float]) -> pa.RecordBatch:
    """`batch` as the rollout log keeps it: its bonuses (0 where there were none), one advantage a row, and that `step` trained on it."""
    bonus = batch.column("bonus").fill_null(0.0).to_numpy()
    return with_outcome(with_scores(batch, bonus, list(advantages)), step, GroupOutcome.TRAINED)


def _id_of(group: pa.RecordBatch) -> int:
    return int(group_ids(group)[0])


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _read_table(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
