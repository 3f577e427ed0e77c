"""Reading a batch, and preparing the next micro-batch while one is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from buffers.groups import token_versions
from buffers.schema import concat_groups, with_trained_from
from learners.batches import TokenLookup, prefetch, read_groups
from learners.packing import pack, prefix_tree
from tests.learners.samples import make_group

WAIT_S = 30.0


# --- reading a batch -------------------------------------------------------------------------------------------------


def test_token_versions_follow_the_runs() -> None:
    batch = make_group(0, [5], [[6, 7, 8, 9], [], [10], [11, 12]], [0.0] * 4, versions=[[3, 3, 5, 6], [], [4], [7, 7]])
    assert token_versions(batch).tolist() == [3, 3, 5, 6, 4, 7, 7]
    assert token_versions(batch).dtype == np.int64


def test_the_oldest_version_of_a_response_is_also_that_of_tokens_too_old_to_be_trained_on() -> None:
    batch = with_trained_from(make_group(0, [5], [[6, 7, 8], [], [10]], [0.0] * 3, versions=[[1, 1, 3], [], [3]]), 2)
    lookup = TokenLookup.of(batch)
    assert lookup.trained.tolist() == [False, False, True, True]
    packed = pack(prefix_tree(read_groups(batch, 3)))
    columns = lookup.gather(packed, torch.zeros(()))
    assert sorted(zip(packed.response_N.tolist(), columns.oldest_N.tolist(), strict=True)) == [(0, 1)] * 3 + [(2, 3)]


def test_token_versions_and_groups_of_a_slice_are_those_of_its_rows() -> None:
    batch = concat_groups(
        [
            make_group(0, [5], [[6, 7, 8], [9]], [0.0] * 2, versions=[[1, 2, 2], [1]]),
            make_group(1, [15, 16], [[17], [18, 19]], [0.0] * 2, versions=[[3], [4, 5]]),
            make_group(2, [25], [[26], [27]], [0.0] * 2, versions=[[8], [9]]),
        ]
    ).slice(2, 2)
    assert token_versions(batch).tolist() == [3, 4, 5]
    (group,) = read_groups(batch, 2)
    assert group.prompt_ids.tolist() == [15, 16]
    assert [ids.tolist() for ids in group.responses] == [[17], [18, 19]]


def test_a_batch_without_tokens_has_no_versions() -> None:
    assert token_versions(make_group(0, [5], [[], []], [0.0] * 2)).tolist() == []
    assert token_versions(make_group(0, [5], [[6], [7]], [0.0] * 2).slice(0, 0)).tolist() == []


# --- prefetch --------------------------------------------------------------------------------------------------------


def test_the_next_is_made_ready_while_the_current_is_used_and_none_beyond() -> None:
    started = [threading.Event() for _ in range(4)]

    def prepare(item: int) -> int:
        started[item].set()
        return item

    for used in prefetch(prepare, range(4)):
        if used + 1 < 4:
            assert started[used + 1].wait(WAIT_S), "it is begun without being asked for"
        assert not any(event.is_set() for event in started[used + 2 :])


def test_all_come_in_order_and_items_are_taken_by_the_callers_own_thread() -> None:
    takers, makers = set(), set()

    def items() -> Iterator[int]:
        for item in range(5):
            takers.add(threading.current_thread())
            yield item

    def prepare(item: int) -> int:
        makers.add(threading.current_thread())
        return item * item

    assert list(prefetch(prepare, items())) == [0, 1, 4, 9, 16]
    assert takers == {threading.current_thread()} and len(makers) == 1 and not takers & makers
    assert list(prefetch(prepare, [])) == []


def test_an_error_is_raised_where_its_result_is_due_and_no_thread_stays() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("no third one")
        return item

    found = []
    with pytest.raises(ValueError, match="no third one"):
        for used in prefetch(prepare, range(5)):
            found.append(used)
    assert found == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_caller_that_goes_away_leaves_no_thread() -> None:
    stream = prefetch(lambda item: item, range(5))
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
