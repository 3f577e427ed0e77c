from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from buffers.config import Late, ReplayConfig
from buffers.groups import masked_tokens
from buffers.replay import InsertResult, ReplayBuffer, ReplayState, ReplayTooSmall
from buffers.samplers import HeldGroup
from buffers.schema import concat_groups, group_ids, split_groups, with_bonus_detail
from tests.buffers.schema_1 import DETAIL, as_schema_1

MakeGroup = Callable[..., pa.RecordBatch]


def make_replay(max_bytes: int = 1 << 20, *, max_policy_lag: int = 1, late: Late = "mask", **config: str) -> ReplayBuffer:
    return ReplayBuffer(group_size=2, max_policy_lag=max_policy_lag, config=ReplayConfig(max_bytes=max_bytes, **config), late=late)


def size_of(group: pa.RecordBatch) -> int:
    return int(concat_groups([group]).get_total_buffer_size())


def through_files(state: ReplayState) -> ReplayState:
    """As a checkpoint would keep it: rows as Parquet, the rest as JSON."""
    sink = io.BytesIO()
    pq.write_table(state["rows"], sink, row_group_size=3)  # row groups that cut through groups
    small = json.loads(json.dumps({"seen_ranges": state["seen_ranges"], "counters": state["counters"]}))
    return ReplayState(rows=pq.read_table(io.BytesIO(sink.getvalue())), **small)


def test_groups_come_out_once_lowest_id_first(make_group: MakeGroup) -> None:
    replay = make_replay()
    for group_id in (4, 1, 3, 0):
        assert replay.insert(make_group(group_id), version=0) is InsertResult.ACCEPTED
    first = replay.sample(3, version=0)
    assert first.equals(concat_groups([make_group(i) for i in (0, 1, 3)]))
    assert replay.sample(2, version=0) is None
    assert group_ids(replay.sample(1, version=0)).tolist() == [4]
    replay.check_valid()


def test_an_insert_repeated_is_a_duplicate_even_after_sampling_and_eviction(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    assert replay.insert(make_group(0), version=0) is InsertResult.DUPLICATE
    replay.sample(1, version=0)
    assert replay.insert(make_group(0), version=0) is InsertResult.DUPLICATE
    replay.insert(make_group(1), version=0)
    replay.evict(version=5)
    assert replay.insert(make_group(1), version=5) is InsertResult.DUPLICATE
    assert replay.counters.duplicates == 3
    replay.check_valid()


@pytest.mark.parametrize("late", ["wait", "drop"])
def test_the_oldest_token_decides_whether_a_group_is_stale(make_group: MakeGroup, late: Late) -> None:
    replay = make_replay(max_policy_lag=1, late=late)
    assert replay.insert(make_group(0, (1, 3), (3,)), version=3) is InsertResult.STALE
    assert replay.insert(make_group(1, (2, 3), (3,)), version=3) is InsertResult.ACCEPTED
    assert replay.insert(make_group(2, (3,), (3,)), version=3) is InsertResult.ACCEPTED
    assert replay.sample(2, version=4) is None
    assert [group_ids(group).tolist() for group in replay.evict(version=4)] == [[1]]
    assert group_ids(replay.sample(1, version=4)).tolist() == [2]
    assert (replay.counters.evicted, replay.counters.refused_stale, replay.counters.stale) == (1, 1, 2)


def test_with_mask_the_newest_token_decides_and_older_ones_are_marked(make_group: MakeGroup) -> None:
    replay = make_replay(max_policy_lag=1)
    assert replay.insert(make_group(0, (0, 1), (1,)), version=3) is InsertResult.STALE
    assert replay.insert(make_group(1, (1, 3), (3,)), version=3) is InsertResult.ACCEPTED
    assert replay.insert(make_group(2, (2,), (1, 1)), version=3) is InsertResult.ACCEPTED
    assert replay.insert(make_group(3, (4,), (4, 4)), version=3) is InsertResult.ACCEPTED
    assert [group_ids(group).tolist() for group in replay.evict(version=4)] == [[2]]
    batch = replay.sample(2, version=4)
    assert group_ids(batch).tolist() == [1, 3]
    assert batch.column("trained_from_version").to_pylist() == [3, None, None, None]
    assert masked_tokens(batch).tolist() == [1, 0]
    replay.check_valid()


def test_groups_that_are_due_come_out_whatever_the_sampler(make_group: MakeGroup) -> None:
    for num_due, expected in ((0, [3, 4, 5]), (2, [1, 2, 5]), (3, [1, 2, 3])):  # the sampler is not asked for nothing
        replay = make_replay(late="wait", sampler="tests.buffers.test_replay:Newest")
        for group_id in range(1, 6):
            replay.insert(make_group(group_id), version=0)
        assert group_ids(replay.sample(3, version=0, num_due=num_due)).tolist() == expected


class Newest:
    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> list[int]:
        assert num_groups > 0
        return [group.group_id for group in held[-num_groups:]]


def test_a_stale_insert_stays_stale_when_retried(make_group: MakeGroup) -> None:
    replay = make_replay(max_policy_lag=0)
    results = [replay.insert(make_group(0), version=version) for version in (1, 1, 2)]
    assert results == [InsertResult.STALE] * 3


def test_a_group_over_the_cap_is_refused_and_changes_nothing(make_group: MakeGroup) -> None:
    size = size_of(make_group(1))
    replay = make_replay(2 * size)
    replay.insert(make_group(1), version=0)
    replay.insert(make_group(2), version=0)
    before = replay.state_dict()
    assert replay.insert(make_group(3), version=0) is InsertResult.FULL
    after = replay.state_dict()
    assert after["rows"].equals(before["rows"])
    assert after["seen_ranges"] == before["seen_ranges"]
    assert replay.nbytes == 2 * size
    replay.sample(1, version=0)
    assert replay.insert(make_group(3), version=0) is InsertResult.ACCEPTED
    replay.check_valid()


def test_a_group_larger_than_the_cap_names_both_numbers(make_group: MakeGroup) -> None:
    size = size_of(make_group(0))
    with pytest.raises(ValueError, match=rf"{size} bytes.*max_bytes = {size - 1}"):
        make_replay(size - 1).insert(make_group(0), version=0)


def test_inserting_slices_holds_only_their_rows(make_group: MakeGroup) -> None:
    big = concat_groups([make_group(i) for i in range(100)])
    replay = make_replay()
    for group in split_groups(big)[:2]:
        replay.insert(group, version=0)
    assert replay.nbytes == size_of(make_group(0)) + size_of(make_group(1))
    held = replay.state_dict()["rows"]
    assert held.get_total_buffer_size() == replay.nbytes


@pytest.mark.parametrize("ids", [(0, 1), ()])
def test_an_insert_of_other_than_one_group_is_refused(make_group: MakeGroup, ids: tuple[int, ...]) -> None:
    batch = concat_groups([make_group(i) for i in ids]) if ids else make_group(0).slice(0, 0)
    with pytest.raises(ValueError, match="insert takes one group"):
        make_replay().insert(batch, version=0)


def test_part_of_a_group_is_not_inserted(make_group: MakeGroup) -> None:
    replay = make_replay()
    with pytest.raises(ValueError, match="1 adjacent rows"):
        replay.insert(make_group(0).slice(1), version=0)
    assert replay.num_groups == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_restored_buffer_gives_the_same_next_outputs(make_group: MakeGroup, seed: int) -> None:
    rng = random.Random(seed)
    straight = make_replay(max_policy_lag=2)
    for group_id in rng.sample(range(20), 12):
        straight.insert(make_group(group_id, (rng.randrange(5),), ()), version=3)
    straight.sample(2, version=3)
    restored = make_replay(max_policy_lag=2)
    restored.load_state_dict(through_files(straight.state_dict()))
    assert (restored.counters, restored.nbytes, restored.held_ids) == (straight.counters, straight.nbytes, straight.held_ids)
    for version in range(3, 8):
        new = make_group(rng.randrange(30), (version,), (version,))
        assert restored.insert(new, version=version) is straight.insert(new, version=version)
        assert restored.evict(version=version) == straight.evict(version=version)
        ours, theirs = restored.sample(2, version=version), straight.sample(2, version=version)
        assert (ours is None and theirs is None) or ours.equals(theirs)
    restored.check_valid()


def test_a_buffer_that_takes_over_knows_every_group_but_those_that_never_arrived(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.take_over(6, [4, 0, 9])
    replay.check_valid()
    refused = {group_id for group_id in range(8) if replay.insert(make_group(group_id), version=0) is InsertResult.DUPLICATE}
    assert refused == {1, 2, 3, 5}
    assert replay.held_ids == [0, 4, 6, 7]
    assert (replay.counters.taken_over, replay.counters.inserted) == (4, 4)
    replay.check_valid()
    restored = make_replay()
    restored.load_state_dict(through_files(replay.state_dict()))
    assert restored.insert(make_group(3), version=0) is InsertResult.DUPLICATE
    assert group_ids(restored.sample(4, version=0)).tolist() == [0, 4, 6, 7]
    restored.check_valid()


@pytest.mark.parametrize(("seen_below", "not_seen", "num_seen"), [(0, [], 0), (3, [0, 1, 2], 0), (3, [], 3), (3, [2, 2], 2)])
def test_what_is_taken_over_may_be_nothing_or_everything(
    make_group: MakeGroup, seen_below: int, not_seen: list[int], num_seen: int
) -> None:
    replay = make_replay()
    replay.take_over(seen_below, not_seen)
    replay.check_valid()
    results = [replay.insert(make_group(group_id), version=0) for group_id in range(seen_below)]
    assert results.count(InsertResult.DUPLICATE) == num_seen
    replay.check_valid()


def test_groups_that_will_not_come_any_more_leave_no_gaps(make_group: MakeGroup) -> None:
    buffer = make_replay()
    for group_id in range(1, 20, 2):
        buffer.insert(make_group(group_id), version=0)
    buffer.forget_below(19)
    buffer.check_valid()
    assert buffer.state_dict()["seen_ranges"] == [[0, 20]]
    restored = make_replay()
    restored.load_state_dict(buffer.state_dict())
    assert restored.insert(make_group(19), version=0) is InsertResult.DUPLICATE
    assert restored.insert(make_group(20), version=0) is InsertResult.ACCEPTED


def test_a_buffer_in_use_does_not_take_over(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    replay.sample(1, version=0)
    with pytest.raises(ValueError, match="has seen 1 groups of its own"):
        replay.take_over(5, [])


def test_a_buffer_saved_before_there_was_any_taking_over_is_restored(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    state = replay.state_dict()
    del state["counters"]["taken_over"]
    restored = make_replay()
    restored.load_state_dict(state)
    assert restored.held_ids == [0]


def test_an_empty_buffer_is_saved_and_restored() -> None:
    restored = make_replay()
    restored.load_state_dict(through_files(make_replay().state_dict()))
    assert restored.num_groups == 0


def test_saved_rows_of_another_major_version_are_refused(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    state = replay.state_dict()
    state["rows"] = state["rows"].replace_schema_metadata({"repexp.schema": "3.0"})
    with pytest.raises(ValueError, match=r"3\.0.*2\.1"):
        make_replay().load_state_dict(state)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_the_rows_of_a_checkpoint_of_schema_1_are_converted(make_group: MakeGroup, version: str) -> None:
    replay, restored = make_replay(), make_replay()
    for group_id in (0, 1):
        replay.insert(make_group(group_id), version=0)
    state = through_files(replay.state_dict())
    old = as_schema_1(state["rows"], version)
    if version == "1.0":
        old = old.drop_columns([*DETAIL, "reward_format", "reward_length"])
    state["rows"] = old
    restored.load_state_dict(state)
    restored.check_valid()
    assert restored.sample(2, version=0).equals(replay.sample(2, version=0))


def test_scored_rows_of_schema_1_are_refused_not_emptied(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    state = replay.state_dict()
    detail = {"leverage": np.array([0.1, 0.2]), "group_spread": np.array([0.3, 0.3])}
    scored = with_bonus_detail(concat_groups(state["rows"].to_batches()), detail)
    state["rows"] = as_schema_1(pa.Table.from_batches([scored]))
    with pytest.raises(ValueError, match="rows of rollout schema 1 with values in leverage, group_spread cannot be converted to schema 2"):
        make_replay().load_state_dict(state)


def test_a_saved_buffer_larger_than_the_cap_is_refused(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    with pytest.raises(ReplayTooSmall, match=r"^the saved groups take \d+ bytes, but replay\.max_bytes = 10: raise it$"):
        make_replay(10).load_state_dict(replay.state_dict())


def test_check_valid_names_what_is_broken(make_group: MakeGroup) -> None:
    replay = make_replay()
    replay.insert(make_group(0), version=0)
    replay._held[5] = replay._held[0]
    with pytest.raises(AssertionError, match="group 5"):
        replay.check_valid()
