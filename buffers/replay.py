"""Replay: whole verified groups, held until they are trained on or too old. One actor owns it; it has no lock or clock.
A policy version is the number of the weights. For every token that is trained on,

    version of the weights being trained - version that sampled the token  <=  max_policy_lag

Slow groups have older tokens. `late` says what becomes of them:

| late | a group with older tokens                                                                                  |
|------|------------------------------------------------------------------------------------------------------------|
| mask | is handed out, its older tokens marked as not to be trained on; it is stale once all of its tokens are older |
| wait | is stale; the caller waits for groups before they are too old, and has them handed out first             |
| drop | is stale: never handed out, and to be sampled again                                                        |"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import TypedDict

import pyarrow as pa

from buffers.config import Late, ReplayConfig
from buffers.groups import concat_groups, group_ids, list_column_arrays, validate_groups, version_range
from buffers.id_ranges import IdRanges
from buffers.samplers import HeldGroup, choose_checked, sampler_of
from buffers.schema import ROLLOUT_SCHEMA, check_schema, conform_checkpoint, with_trained_from


class ReplayTooSmall(ValueError):
    """The groups of a checkpoint do not fit; the message names the key."""


class InsertResult(StrEnum):
    """The answer to an insert. Only ACCEPTED changes the rows held."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # the id was accepted before: an insert can be repeated when its answer was lost
    STALE = "stale"  # the group is too old already: its slot should be dropped and its problem admitted again
    FILTERED = "filtered"  # nothing can be learnt from it: its slot should go to another problem (`actors.replay`)
    FULL = "full"  # it would exceed max_bytes: the producer keeps the group and tries again


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayCounters:
    """Numbers of groups since the run began or a lost buffer was replaced: inserted - sampled - evicted are held."""

    taken_over: int = 0  # count as seen, but were in the lost buffer
    passed: int = 0  # count as seen, but never came: they were dropped or filtered before
    inserted: int = 0
    sampled: int = 0
    evicted: int = 0  # became stale while held
    refused_stale: int = 0  # were stale when offered
    duplicates: int = 0
    refused_full: int = 0

    @property
    def stale(self) -> int:
        return self.evicted + self.refused_stale


class ReplayState(TypedDict):
    """Everything that a fresh buffer needs: rows as an Arrow table, the rest small integers that JSON can hold."""

    rows: pa.Table
    seen_ranges: list[list[int]]
    counters: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    batch: pa.RecordBatch
    about: HeldGroup
    newest_version: int
    nbytes: int


class ReplayBuffer:
    """Holds whole groups under a byte cap. Each is handed out once, and no token to train on is beyond the lag bound.

    replay = ReplayBuffer(group_size=8, max_policy_lag=2, config=ReplayConfig())
    while replay.insert(group, version=live_version) is InsertResult.FULL:  # a producer, once a group is scored
        wait_until_something_is_sampled()

    for stale in replay.evict(version=learner_version):  # the learner
        drop_and_readmit(stale)
    batch = replay.sample(prompts_per_step, version=learner_version)
    if batch is not None:
        train(batch)

    Which of the groups held a batch takes is the sampler's choice: by default the lowest ids, so that the same inserts
    and samples give the same batches in any order of arrival among the groups held."""

    def __init__(self, *, group_size: int, max_policy_lag: int, config: ReplayConfig, late: Late = "mask") -> None:
        self._group_size = group_size
        self._max_policy_lag = max_policy_lag
        self._late = late
        self._max_bytes = config.max_bytes
        self._sampler = sampler_of(config)
        self._sampler_name = config.sampler
        self._held: dict[int, _Held] = {}
        self._seen = IdRanges()
        self._counters = ReplayCounters()

    @property
    def num_groups(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held. Each group is copied in, so it keeps no larger parent alive."""
        return sum(held.nbytes for held in self._held.values())

    @property
    def counters(self) -> ReplayCounters:
        return self._counters

    @property
    def held_ids(self) -> list[int]:
        return sorted(self._held)

    def insert(self, batch: pa.RecordBatch, *, version: int) -> InsertResult:
        """Offer one whole group at the learner's `version`. Raises ValueError if the batch is not one well-formed
        group, and ReplayTooSmall if it is larger than `max_bytes` alone."""
        check_schema(batch.schema)
        validate_groups(batch, self._group_size)
        if batch.num_rows != self._group_size:
            raise ValueError(f"insert takes one group of {self._group_size} rows, not {batch.num_rows} rows: use split_groups")
        group_id = int(group_ids(batch)[0])
        if group_id in self._seen:
            return self._count(InsertResult.DUPLICATE, "duplicates")
        held = _hold(batch)
        if held.nbytes > self._max_bytes:
            raise ReplayTooSmall(f"group {group_id} takes {held.nbytes} bytes, but replay.max_bytes = {self._max_bytes}: raise it")
        if self._is_stale(held, version):
            return self._count(InsertResult.STALE, "refused_stale")
        if self.nbytes + held.nbytes > self._max_bytes:
            return self._count(InsertResult.FULL, "refused_full")
        self._held[group_id] = held
        self._seen.add(group_id)
        return self._count(InsertResult.ACCEPTED, "inserted")

    def sample(self, num_groups: int, *, version: int, num_due: int = 0) -> pa.RecordBatch | None:
        """Take out `num_groups` groups that may be trained on at `version`, sorted by id: the lowest `num_due`, and
        others that the sampler chooses. Return None, unchanged, if there are fewer. Raises ExtensionError, and changes
        nothing, if the sampler does not choose that many of these groups."""
        if num_groups < 1:
            raise ValueError(f"num_groups = {num_groups} must be at least 1")
        valid = [self._held[group_id].about for group_id in self.held_ids if not self._is_stale(self._held[group_id], version)]
        if len(valid) < num_groups:
            return None
        ids = [group.group_id for group in valid[:num_due]]
        if num_due < num_groups:
            ids += choose_checked(self._sampler, valid[num_due:], num_groups - num_due, name=self._sampler_name)
        self._counters = replace(self._counters, sampled=self._counters.sampled + num_groups)
        batch = concat_groups([self._held.pop(group_id).batch for group_id in sorted(ids)])
        return with_trained_from(batch, version - self._max_policy_lag)

    def evict(self, *, version: int) -> list[pa.RecordBatch]:
        """Take out and return the groups that are too old to be trained on at `version`, lowest id first."""
        stale = [group_id for group_id in self.held_ids if self._is_stale(self._held[group_id], version)]
        self._counters = replace(self._counters, evicted=self._counters.evicted + len(stale))
        return [self._held.pop(group_id).batch for group_id in stale]

    def forget_below(self, group_id: int) -> None:
        """Count every id below `group_id` as seen. Groups that never came would otherwise stay gaps for ever."""
        before = len(self._seen)
        self._seen.add_below(group_id)
        self._counters = replace(self._counters, passed=self._counters.passed + len(self._seen) - before)

    def take_over(self, seen_below: int, not_seen: Iterable[int]) -> None:
        """Take the place of a buffer that was lost, and refuse the groups that it saw as duplicates. It saw the ids
        below `seen_below` but those in `not_seen`. Raises ValueError if this buffer has seen a group."""
        if self._seen.ranges:
            raise ValueError(f"a buffer that has seen {len(self._seen)} groups of its own cannot take over from another")
        expected = sorted({group_id for group_id in not_seen if 0 <= group_id < seen_below})
        gaps = pairwise([-1, *expected, seen_below])
        self._seen = IdRanges((before + 1, after) for before, after in gaps if before + 1 < after)
        self._counters = replace(self._counters, taken_over=len(self._seen))

    def check_valid(self) -> None:
        """Raise AssertionError with the broken invariant."""
        self._seen.check_valid()
        assert self.nbytes <= self._max_bytes, f"{self.nbytes} bytes held, over the cap of {self._max_bytes}"
        for group_id, held in self._held.items():
            assert group_id in self._seen, f"group {group_id} is held but not remembered as seen"
            assert group_ids(held.batch).tolist() == [group_id], f"group {group_id} is held under another id"
            assert held == _hold(held.batch), f"group {group_id}: what is known of it changed"
            validate_groups(held.batch, self._group_size)
        counters = self._counters
        left = counters.inserted - counters.sampled - counters.evicted
        assert left == self.num_groups, f"{counters} leave {left} groups, but {self.num_groups} are held"
        known = counters.taken_over + counters.passed + counters.inserted
        assert len(self._seen) == known, f"{len(self._seen)} ids seen, which is not what {counters} add up to"

    def held_rows(self) -> pa.Table:
        """Return the rows of the groups held, lowest id first."""
        return pa.Table.from_batches([self._held[group_id].batch for group_id in self.held_ids], schema=ROLLOUT_SCHEMA)

    def state_dict(self) -> ReplayState:
        return ReplayState(rows=self.held_rows(), seen_ranges=[list(each) for each in self._seen.ranges], counters=asdict(self._counters))

    def load_state_dict(self, state: ReplayState) -> None:
        """Replace everything held. Raises ValueError for rows of other settings, ReplayTooSmall without room."""
        rows = conform_checkpoint(state["rows"])
        held = {}
        for first in range(0, rows.num_rows, self._group_size):  # a chunk of a table read from a file may split a group
            group = concat_groups(rows.slice(first, self._group_size).to_batches())
            validate_groups(group, self._group_size)
            held[int(group_ids(group)[0])] = _hold(group)
        nbytes = sum(group.nbytes for group in held.values())
        if nbytes > self._max_bytes:
            raise ReplayTooSmall(f"the saved groups take {nbytes} bytes, but replay.max_bytes = {self._max_bytes}: raise it")
        self._held = held
        self._seen = IdRanges((start, stop) for start, stop in state["seen_ranges"])
        self._counters = ReplayCounters(**state["counters"])
        self.check_valid()

    def _is_stale(self, held: _Held, version: int) -> bool:
        decides = held.newest_version if self._late == "mask" else held.about.oldest_version
        return decides < version - self._max_policy_lag

    def _count(self, result: InsertResult, name: str) -> InsertResult:
        self._counters = replace(self._counters, **{name: getattr(self._counters, name) + 1})
        return result


def _hold(group: pa.RecordBatch) -> _Held:
    own = concat_groups([group])
    (oldest,), (newest,) = version_range(own)
    about = HeldGroup(
        group_id=int(group_ids(own)[0]),
        task=own.column("task")[0].as_py(),
        problem_id=own.column("problem_id")[0].as_py(),
        oldest_version=int(oldest),
        num_tokens=len(list_column_arrays(own, "response_ids")[0]),
        rewards=tuple(own.column("reward").to_pylist()),
    )
    return _Held(batch=own, about=about, newest_version=int(newest), nbytes=own.get_total_buffer_size())
