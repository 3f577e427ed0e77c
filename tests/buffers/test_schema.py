from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffers.groups import masked_tokens, trained_tokens
from buffers.records import FinishReason, GroupOutcome, GroupRequest, Problem, Rollout, Verdict, VerdictStatus
from buffers.schema import (
    ROLLOUT_SCHEMA,
    check_schema,
    concat_groups,
    conform,
    from_record_batch,
    split_groups,
    to_record_batch,
    with_bonus_detail,
    with_features,
    with_outcome,
    with_scores,
    with_trained_from,
    with_verdicts,
)

VERDICTS = [
    Verdict(status=VerdictStatus.CORRECT, reward=1.0, answer="5", elapsed_s=0.5, final_answer="5.0"),
    Verdict(status=VerdictStatus.TIMEOUT, reward=None, detail="deadline of 2 s passed"),
]


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    num = draw(st.integers(0, 6))
    starts = sorted({0, *draw(st.lists(st.integers(0, num - 1), max_size=3))}) if num else []
    ids = st.integers(0, 2**31 - 1)
    return Rollout(
        prompt_ids=tuple(draw(st.lists(ids, max_size=4))),
        response_ids=tuple(draw(st.lists(ids, min_size=num, max_size=num))),
        behavior_logprobs=tuple(draw(st.lists(st.floats(-50, 0, width=32), min_size=num, max_size=num))),
        version_starts=tuple(starts),
        version_values=tuple(draw(st.lists(st.integers(0, 2**40), min_size=len(starts), max_size=len(starts)))),
        finish_reason=draw(st.sampled_from(FinishReason)),
        response_text=draw(st.text(max_size=8)),
        generate_s=draw(st.floats(0, 1e6)),
    )


@st.composite
def groups(draw: st.DrawFn) -> tuple[GroupRequest, list[Rollout]]:
    text, small = st.text(max_size=6), st.integers(0, 2**31 - 1)
    problem = Problem(task=draw(text), problem_id=draw(text), question=draw(text), answer=draw(text))
    rows = draw(st.lists(rollouts(), min_size=1, max_size=4))
    request = GroupRequest(
        group_id=draw(st.integers(0, 2**62)),
        problem=problem,
        num_responses=len(rows),
        admitted_version=draw(small),
        attempt=draw(small),
    )
    return request, rows


def as_is(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def as_slice(batch: pa.RecordBatch) -> pa.RecordBatch:
    return concat_groups([batch, batch, batch]).slice(batch.num_rows, batch.num_rows)


def through_ipc(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    (read,) = pa.ipc.open_stream(sink.getvalue())
    return read


def through_parquet(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_batches([batch]), sink)
    (read,) = pq.read_table(io.BytesIO(sink.getvalue())).combine_chunks().to_batches()
    return read


def a_slice_through_ipc(batch: pa.RecordBatch) -> pa.RecordBatch:
    return through_ipc(as_slice(batch))


def a_slice_through_parquet(batch: pa.RecordBatch) -> pa.RecordBatch:
    return through_parquet(as_slice(batch))


@pytest.mark.parametrize("passage", [as_is, as_slice, through_ipc, through_parquet, a_slice_through_ipc, a_slice_through_parquet])
@given(group=groups())
@settings(max_examples=40, deadline=None)
def test_rollouts_come_back_as_they_went_in(group: tuple[GroupRequest, list[Rollout]], passage: Callable[..., Any]) -> None:
    request, rows = group
    batch = passage(to_record_batch("run", request, rows, worker_id="w3"))
    check_schema(batch.schema)
    (stored,) = from_record_batch(batch)
    assert (stored.run_id, stored.worker_id, stored.request, list(stored.rollouts)) == ("run", "w3", request, rows)
    assert stored.verdicts == (None,) * len(rows)


def test_every_batch_has_the_schema_whatever_was_added(make_group: Callable[..., pa.RecordBatch]) -> None:
    batch = make_group(0)
    full = with_scores(with_features(with_verdicts(batch, VERDICTS), np.ones((2, 3), np.float32), [True, False]), [1, 2], [3, 4])
    full = with_outcome(full, 7, GroupOutcome.TRAINED)
    for each in (batch, full):
        assert each.schema.equals(ROLLOUT_SCHEMA, check_metadata=True)
        each.validate(full=True)
    assert full.column("outcome").to_pylist() == ["trained"] * 2
    assert full.column("step").to_pylist() == [7, 7]


def test_verdicts_come_back_and_unscored_is_not_zero(make_group: Callable[..., pa.RecordBatch]) -> None:
    batch = with_verdicts(make_group(0), VERDICTS)
    assert list(from_record_batch(batch)[0].verdicts) == VERDICTS
    assert batch.column("reward").to_pylist() == [1.0, None]


def test_a_row_without_hidden_state_has_a_null_feature(make_group: Callable[..., pa.RecordBatch]) -> None:
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    features[0] = np.nan
    batch = with_features(make_group(0, (), (1, 1)), features, np.array([False, True]))
    assert batch.column("feature").to_pylist() == [None, [3, 4, 5]]


def test_a_valid_feature_that_is_not_finite_is_refused(make_group: Callable[..., pa.RecordBatch]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        with_features(make_group(0), np.array([[np.nan], [0]], np.float32), [True, True])


def test_scores_of_several_groups_are_read_row_by_row(make_group: Callable[..., pa.RecordBatch]) -> None:
    batch = with_scores(concat_groups([make_group(0), make_group(1)]), np.array([[0.0, 1.0], [2.0, 3.0]]))
    assert [group.column("bonus").to_pylist() for group in split_groups(batch)] == [[0, 1], [2, 3]]
    assert batch.column("advantage").null_count == 4


@pytest.mark.parametrize("passage", [as_is, as_slice, through_ipc, through_parquet, a_slice_through_ipc, a_slice_through_parquet])
def test_what_a_bonus_says_of_each_row_comes_back_by_its_own_names(
    make_group: Callable[..., pa.RecordBatch], passage: Callable[..., Any]
) -> None:
    """What a row does not define is not in its map; -0 and infinity are numbers."""
    detail = {"times": np.array([3.0, np.nan]), "é": np.array([np.inf, -0.0])}
    batch = passage(with_bonus_detail(make_group(0), detail))
    check_schema(batch.schema)
    assert [dict(row) for row in batch.column("bonus_detail").to_pylist()] == [{"times": 3.0, "é": np.inf}, {"é": -0.0}]


def test_a_bonus_that_says_nothing_leaves_empty_maps_and_an_unscored_row_none(make_group: Callable[..., pa.RecordBatch]) -> None:
    assert with_bonus_detail(make_group(0), {}).column("bonus_detail").to_pylist() == [[], []]
    assert make_group(0).column("bonus_detail").to_pylist() == [None, None]


def test_a_column_of_the_wrong_length_is_refused(make_group: Callable[..., pa.RecordBatch]) -> None:
    with pytest.raises(ValueError, match="1 values of 'verdict_status' for 2 rows"):
        with_verdicts(make_group(0), VERDICTS[:1])
    with pytest.raises(ValueError, match="3 values of 'bonus' for 2 rows"):
        with_scores(make_group(0), [1, 2, 3])
    with pytest.raises(ValueError, match=r"\(3,\) values of bonus_detail 'times' for 2 rows"):
        with_bonus_detail(make_group(0), {"times": np.zeros(3)})


def test_a_token_id_beyond_int32_is_an_error(make_request: Callable[..., GroupRequest], make_rollout: Callable[..., Rollout]) -> None:
    with pytest.raises(OverflowError):
        to_record_batch("run", make_request(0, num_responses=1), [make_rollout(prompt=(2**31,))], worker_id="w0")


def test_another_major_version_is_refused_with_both_numbers() -> None:
    for other, what in (("1.2", "older"), ("3.3", "newer")):
        with pytest.raises(ValueError, match=rf"rollout schema {other} is {what} than this reader's 2\.1: "):
            check_schema(ROLLOUT_SCHEMA.with_metadata({"repexp.schema": other}))


def test_a_later_minor_version_with_one_more_column_is_read() -> None:
    check_schema(ROLLOUT_SCHEMA.append(pa.field("later", pa.string())).with_metadata({"repexp.schema": "2.9"}))


def test_rows_of_an_earlier_minor_version_lack_what_came_later(make_group: Callable[..., pa.RecordBatch]) -> None:
    old = make_group(0).drop_columns(["trained_from_version"]).replace_schema_metadata({"repexp.schema": "2.0"})
    check_schema(old.schema)
    assert conform(pa.Table.from_batches([old])).to_batches()[0].equals(make_group(0))
    with pytest.raises(ValueError, match=r"2\.0 lacks the column 'run_id'"):
        check_schema(old.schema.remove(0))


def test_tokens_before_a_version_are_marked_row_by_row(make_group: Callable[..., pa.RecordBatch]) -> None:
    batch = concat_groups([make_group(0, (1, 1, 3), (3, 4)), make_group(1, (), (2, 2))])
    marked = with_trained_from(batch, 3)
    assert marked.column("trained_from_version").to_pylist() == [3, None, None, 3]
    assert trained_tokens(marked).tolist() == [False, False, True, True, True, False, False]
    assert masked_tokens(marked).tolist() == [2, 2]
    assert trained_tokens(batch).all() and masked_tokens(batch).tolist() == [0, 0]
    assert trained_tokens(marked.slice(2)).tolist() == [False, False] and masked_tokens(marked.slice(0, 2)).tolist() == [2]
    assert with_trained_from(batch, 1).equals(batch)


def test_a_table_without_version_or_column_is_refused() -> None:
    with pytest.raises(ValueError, match="not a rollout table"):
        check_schema(ROLLOUT_SCHEMA.remove_metadata())
    with pytest.raises(ValueError, match="lacks the column 'run_id'"):
        check_schema(ROLLOUT_SCHEMA.remove(0))
