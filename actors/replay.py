"""The replay actor: owns the replay buffer and the rollout log.

    inserted = replay.insert(encoded, verdicts, version)          # a producer; FULL means: wait and try again
    inserted = replay.insert(encoded, verdicts, version, filterable=True)   # FILTERED: the group goes to the log only
    batch, drawn = replay.sample(num_groups, version)             # the learn loop; stale groups are taken out first
    replay.log(step, scored, advantages)                          # after the gradient: one Parquet file a step

A replay that takes the place of a lost one is first told which groups are known. Then it is given the groups that the
lost one held:

    replay.take_over(seen_below, not_seen)
    replay.insert(encoded, verdicts, version)                     # or insert_rows, of what `held_rows` returned"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from actors.checkpointed import Checkpointed
from buffers import schema
from buffers.config import Late, ReplayConfig
from buffers.groups import masked_tokens
from buffers.records import GroupOutcome, Verdict
from buffers.replay import InsertResult, ReplayBuffer, ReplayState, ReplayTooSmall
from buffers.rollout_log import RolloutLog
from learners.checkpoint import CheckpointManager, FileEntry
from tasks.rewards import RewardConfig, reward_terms


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnBatch:
    """The groups that `sample` took out: those of the batch (none when too few are held) and those found stale."""

    group_ids: tuple[int, ...]
    masked_tokens: tuple[int, ...]
    """Of each group of the batch, the response tokens that are too old to be trained on."""
    stale_ids: tuple[int, ...]
    held_groups: int
    held_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Logged:
    """The rollout log after a step: its bytes, and the steps removed from it so far because it grew too large."""

    nbytes: int = 0
    removed_steps: int = 0


class Replay(Checkpointed):
    """Holds whole groups between verification and gradient, and records the fate of each."""

    def __init__(
        self,
        *,
        group_size: int,
        prompts_per_step: int,
        max_policy_lag: int,
        late: Late = "mask",
        config: ReplayConfig,
        log_directory: str,
        rewards: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
        max_response_tokens: int = 0,
    ) -> None:
        """`rewards` measures length against `max_response_tokens`."""
        self._config, self._rewards = config, rewards
        self._max_response_tokens, self._prompts_per_step = max_response_tokens, prompts_per_step
        self._buffer = ReplayBuffer(group_size=group_size, max_policy_lag=max_policy_lag, config=config, late=late)
        self._log = RolloutLog(fs.LocalFileSystem(), log_directory) if config.log_rollouts else None
        self._aside: list[pa.RecordBatch] = []  # stale or filtered groups, with that outcome; not yet in the log
        self._removed_steps = 0
        self._checkpoints: CheckpointManager | None = None  # the manager of the last save

    def insert(self, batch: pa.RecordBatch, verdicts: Sequence[Verdict], version: int, filterable: bool = False) -> InsertResult:
        """Offer one group with its verdicts. FULL means that nothing changed: offer it again. A STALE group goes to the
        log as such. A `filterable` group is FILTERED, and logged too, if its scored rewards are all equal before
        shaping. Raises ReplayTooSmall when replay is full with fewer groups than a step needs: it would never empty."""
        batch = with_rewards(batch, verdicts, self._rewards, self._max_response_tokens)
        if filterable and len({verdict.reward for verdict in verdicts if verdict.reward is not None}) <= 1:
            self._set_aside(batch, GroupOutcome.FILTERED)
            return InsertResult.FILTERED
        result = self._buffer.insert(batch, version=version)
        if result is InsertResult.STALE:
            self._set_aside(batch, GroupOutcome.STALE)
        if result is InsertResult.FULL and self._buffer.num_groups < self._prompts_per_step:
            fault = f"replay is full with {self._buffer.num_groups} groups and a step needs prompts_per_step = {self._prompts_per_step}"
            raise ReplayTooSmall(f"{fault}: raise replay.max_bytes = {self._config.max_bytes}")
        return result

    def _set_aside(self, group: pa.RecordBatch, outcome: GroupOutcome) -> None:
        if _id_of(group) not in map(_id_of, self._aside):
            self._aside.append(schema.with_outcome(group, 0, outcome))

    def sample(self, num_groups: int, version: int, none_below: int = 0, num_due: int = 0) -> tuple[pa.RecordBatch | None, DrawnBatch]:
        """Evict the groups that are stale at `version`, then take `num_groups` groups, the lowest `num_due` among them;
        None while there are fewer. `none_below` says that no group below it will be offered any more."""
        self._buffer.forget_below(none_below)
        stale = self._buffer.evict(version=version)
        for group in stale:
            self._set_aside(group, GroupOutcome.STALE)
        batch = self._buffer.sample(num_groups, version=version, num_due=num_due)
        ids = () if batch is None else tuple(schema.group_ids(batch).tolist())
        return batch, DrawnBatch(
            group_ids=ids,
            masked_tokens=() if batch is None else tuple(masked_tokens(batch).tolist()),
            stale_ids=tuple(map(_id_of, stale)),
            held_groups=self._buffer.num_groups,
            held_bytes=self._buffer.nbytes,
        )

    def log(self, step: int, batch: pa.RecordBatch, advantages: Sequence[float]) -> Logged:
        """Write the groups trained on in `step`, and the stale or filtered groups set aside since the step before. The
        call may be repeated when its answer was lost, also by a replay that took over: the groups set aside that an
        earlier call wrote stay. Raises RolloutLogError, and then nothing has changed."""
        if self._log is None:
            self._aside = []
            return Logged()
        written = self._written_aside(step)
        ids = {_id_of(group) for group in written}
        late = [(group, GroupOutcome(group.column("outcome")[0].as_py())) for group in self._aside if _id_of(group) not in ids]
        new = [schema.with_outcome(group, step, outcome) for group, outcome in late]
        self._log.append(step, [trained_rows(batch, step, advantages), *written, *new])
        self._aside = []
        max_bytes = int(self._config.log_max_mib * 2**20)
        if self._log.nbytes > max_bytes and self._checkpoints is not None:
            self._removed_steps += self._log.prune(max_bytes, keep_after=self._checkpoints.latest() or 0)
        return Logged(nbytes=self._log.nbytes, removed_steps=self._removed_steps)

    def _written_aside(self, step: int) -> list[pa.RecordBatch]:
        if self._log is None or not self._log.has(step):
            return []
        outcomes = (outcome for outcome in GroupOutcome if outcome is not GroupOutcome.TRAINED)
        return [group for outcome in outcomes for group in schema.split_groups(self._log.batch(step, outcome))]

    def save_part(self, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]:
        self._checkpoints = manager
        return super().save_part(manager, step, part)

    def take_over(self, seen_below: int, not_seen: Sequence[int]) -> None:
        """Take the place of a replay that was lost: it saw every group below `seen_below` but those in `not_seen`.
        Raises ValueError if this replay has seen a group."""
        self._buffer.take_over(seen_below, not_seen)

    def insert_rows(self, rows: pa.Table, ids: Sequence[int]) -> None:
        """Insert the groups `ids` of `rows`, which `held_rows` returned. Stale ones are found when a batch is drawn.
        Raises ValueError for a group that is not in `rows` or does not fit."""
        groups = {_id_of(group): group for group in schema.split_groups(schema.concat_groups(rows.to_batches()))} if len(rows) else {}
        for group_id in ids:
            if group_id not in groups:
                raise ValueError(f"group {group_id} is not among the rows: {sorted(groups)}")
            result = self._buffer.insert(groups[group_id], version=0)
            if result is InsertResult.FULL:
                raise ValueError(f"group {group_id} does not fit into replay.max_bytes = {self._config.max_bytes}")

    def held_ids(self) -> list[int]:
        return self._buffer.held_ids

    def held_rows(self) -> tuple[pa.Table, list[int]]:
        """Return the rows of the groups held, and their ids."""
        return self._buffer.held_rows(), self._buffer.held_ids

    def save(self, directory: Path) -> None:
        state = self._buffer.state_dict()
        _write_table(directory / "replay.arrow", state["rows"])
        _write_table(directory / "aside.arrow", pa.Table.from_batches(self._aside, schema=schema.ROLLOUT_SCHEMA))
        (directory / "replay.json").write_text(json.dumps({"seen_ranges": state["seen_ranges"], "counters": state["counters"]}))

    def load(self, directory: Path) -> None:
        rows = _read_table(directory / "replay.arrow")
        aside = directory / "aside.arrow"
        self._aside = schema.conform_checkpoint(_read_table(aside)).to_batches() if aside.exists() else []
        numbers = json.loads((directory / "replay.json").read_text())
        self._buffer.load_state_dict(ReplayState(rows=rows, seen_ranges=numbers["seen_ranges"], counters=numbers["counters"]))

    def forget_log_after(self, step: int) -> None:
        """Drop the log of the steps after `step`, which a resumed run trains again."""
        if self._log is not None:
            self._log.truncate(step)


def with_rewards(batch: pa.RecordBatch, verdicts: Sequence[Verdict], config: RewardConfig, max_response_tokens: int) -> pa.RecordBatch:
    """Return the group with its verdicts, and with its rewards as `config` shapes them."""
    batch = schema.with_verdicts(batch, verdicts)
    if not config.is_shaped:
        return batch
    lengths = pc.list_value_length(batch.column("response_ids")).to_pylist()
    terms = [reward_terms(verdict, length, max_response_tokens, config) for verdict, length in zip(verdicts, lengths, strict=True)]
    formats, lengths = [term.format for term in terms], [term.length for term in terms]
    return schema.with_shaped_rewards(batch, reward=[term.total for term in terms], format_term=formats, length_term=lengths)


def trained_rows(batch: pa.RecordBatch, step: int, advantages: Sequence[float]) -> pa.RecordBatch:
    """Return `batch` as the log keeps it: its bonuses (or 0), one advantage a row, and `step`, which trained on it."""
    bonus = batch.column("bonus").fill_null(0.0).to_numpy()
    return schema.with_outcome(schema.with_scores(batch, bonus, list(advantages)), step, GroupOutcome.TRAINED)


def _id_of(group: pa.RecordBatch) -> int:
    return int(schema.group_ids(group)[0])


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _read_table(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
