from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from buffers.groups import concat_groups, group_ids, list_column_arrays, oldest_version, split_groups, validate_groups
from buffers.schema import ROLLOUT_SCHEMA

MakeGroup = Callable[..., pa.RecordBatch]


def replace_column(batch: pa.RecordBatch, name: str, values: Sequence[Any]) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.set_column(at, batch.schema.field(at), pa.array(values, batch.schema.field(at).type))


def test_list_column_arrays_are_right_for_every_slice(make_group: MakeGroup) -> None:
    batch = concat_groups([make_group(i, (0,) * i, (), (1,) * 3) for i in range(4)])
    expected = batch.column("response_ids").to_pylist()
    for first in range(batch.num_rows + 1):
        for length in range(batch.num_rows - first + 1):
            values, offsets = list_column_arrays(batch.slice(first, length), "response_ids")
            rows = [values[a:b].tolist() for a, b in pairwise(offsets)]
            assert rows == expected[first : first + length]
            assert len(values) == offsets[-1]


def test_list_column_arrays_copy_no_values(make_group: MakeGroup) -> None:
    batch = concat_groups([make_group(0), make_group(1)])
    whole, _ = list_column_arrays(batch, "response_ids")
    part, _ = list_column_arrays(batch.slice(2, 2), "response_ids")
    assert np.shares_memory(whole, part)
    assert not whole.flags.writeable


def test_groups_are_split_and_joined_again(make_group: MakeGroup) -> None:
    batch = concat_groups([make_group(i) for i in (5, 2, 9)])
    assert group_ids(batch).tolist() == [5, 2, 9]
    assert [group_ids(group).tolist() for group in split_groups(batch)] == [[5], [2], [9]]
    assert concat_groups(split_groups(batch)).equals(batch)


def test_concat_groups_of_a_slice_keeps_no_parent_alive(make_group: MakeGroup) -> None:
    part = concat_groups([make_group(i) for i in range(50)]).slice(20, 2)
    assert concat_groups([part]).get_total_buffer_size() < part.get_total_buffer_size() / 10


@pytest.mark.parametrize(
    ("rows", "oldest"),
    [
        (((3, 3, 5), (4,)), 3),
        (((7, 7), (6, 2, 9)), 2),
        (((), (6,)), 6),
        (((), ()), 1),  # no token: as old as its admission
    ],
)
def test_oldest_version_is_that_of_the_oldest_token(make_group: MakeGroup, rows: tuple[tuple[int, ...], ...], oldest: int) -> None:
    before, after = make_group(0, (0, 0), (0,)), make_group(2, (8,), ())
    batch = concat_groups([before, make_group(1, *rows, admitted_version=1), after])
    assert oldest_version(batch).tolist() == [0, oldest, 8]
    assert oldest_version(batch.slice(2, 2)).tolist() == [oldest]


def test_an_empty_batch_has_no_groups() -> None:
    batch = pa.RecordBatch.from_pylist([], schema=ROLLOUT_SCHEMA)
    validate_groups(batch, 2)
    assert split_groups(batch) == []
    assert oldest_version(batch).tolist() == group_ids(batch).tolist() == []


def test_whole_groups_with_empty_responses_and_null_later_columns_are_valid(make_group: MakeGroup) -> None:
    validate_groups(concat_groups([make_group(4, (), (0, 1)), make_group(3, (2,), ())]), 2)
    empty_with_a_version = replace_column(
        replace_column(make_group(0, (), (1,)), "version_starts", [[0], [0]]), "version_values", [[1], [1]]
    )
    validate_groups(empty_with_a_version, 2)


def test_part_of_a_group_is_refused(make_group: MakeGroup) -> None:
    with pytest.raises(ValueError, match=r"group 7 has 1 adjacent rows.*group_size = 2"):
        validate_groups(concat_groups([make_group(6), make_group(7).slice(1)]), 2)


def test_a_group_twice_is_refused(make_group: MakeGroup) -> None:
    with pytest.raises(ValueError, match="twice"):
        validate_groups(concat_groups([make_group(6), make_group(7), make_group(6)]), 2)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("index", [1, 0], "index 0, 1"),
        ("behavior_logprobs", [[-1.0] * 4, [-1.0] * 6], "row 1 .* never padded"),
        ("behavior_logprobs", [[-1.0] * 4, [-1.0] * 6 + [float("nan")]], "row 1 .* not finite"),
        ("behavior_logprobs", [[float("-inf")] + [-1.0] * 3, [-1.0] * 7], "row 0 .* not finite"),
        ("version_starts", [[0], [0, 2]], "differ in length"),
        ("version_starts", [[0], [1]], "must start at 0"),
        ("response_text", ["a", None], "row 1 .* response_text is null"),
    ],
)
def test_a_malformed_row_is_named(make_group: MakeGroup, column: str, values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_groups(replace_column(make_group(3), column, values), 2)


@pytest.mark.parametrize("starts", [[0, 0], [0, 7], [0, -1], [2, 0], [1, 2]])
def test_version_runs_that_do_not_fit_the_tokens_are_refused(make_group: MakeGroup, starts: list[int]) -> None:
    batch = replace_column(make_group(3, (0,) * 7, (0,) * 7), "version_values", [[0], [0, 1]])
    with pytest.raises(ValueError, match=r"row 1 .*version runs"):
        validate_groups(replace_column(batch, "version_starts", [[0], starts]), 2)


def test_tokens_without_a_version_are_refused(make_group: MakeGroup) -> None:
    batch = replace_column(replace_column(make_group(3), "version_starts", [[], [0]]), "version_values", [[], [0]])
    with pytest.raises(ValueError, match=r"row 0 .* no policy version"):
        validate_groups(batch, 2)
