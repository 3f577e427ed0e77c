"""Arrow rollout batches read by group: boundaries, ids, versions, whole-group checks. All work is on numpy views. Shape
suffixes: N rows, G groups, V values of a list column, R version runs. A sliced Arrow list column shares its parent's
values, and its offsets start where the slice does. So only `list_column_arrays` touches offsets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def list_column_arrays(batch: pa.RecordBatch, name: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the values of a list column, shape [V], and its offsets, shape [N + 1]. Row i is
    `values[offsets[i]:offsets[i + 1]]`. For a slice, values are the slice's own and offsets start at 0. The values are
    a zero-copy, read-only view, and so are the offsets unless a slice's must be shifted. A null `feature` has length 0.
    Raises `pa.ArrowInvalid` if a value inside a list is null."""
    column = batch.column(name)
    offsets = column.offsets.to_numpy(zero_copy_only=True)
    first, last = int(offsets[0]), int(offsets[-1])
    values = column.values.slice(first, last - first).to_numpy(zero_copy_only=True)
    return values, offsets - offsets[0] if first else offsets


def group_starts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the first row of each group, then the number of rows, shape [G + 1]. A group is a run of one id."""
    ids_N = batch.column("group_id").to_numpy(zero_copy_only=True)
    changes = np.flatnonzero(ids_N[1:] != ids_N[:-1]) + 1
    return np.concatenate([[0], changes, [len(ids_N)]]).astype(np.int64) if len(ids_N) else np.zeros(1, np.int64)


def group_ids(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return one id a group in row order, shape [G]."""
    ids_G: NDArray[np.int64] = batch.column("group_id").to_numpy(zero_copy_only=True)[group_starts(batch)[:-1]]
    return ids_G


def oldest_version(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the oldest policy version that sampled a token of each group, shape [G] (`version_range`)."""
    return version_range(batch)[0]


def version_range(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the oldest and the newest policy version that sampled a token of each group, shape [G]. A group of empty
    responses has no token, and counts as old as its admission."""
    versions_V, groups_V = token_versions(batch), token_groups(batch)
    oldest_G = batch.column("admitted_version").to_numpy(zero_copy_only=True)[group_starts(batch)[:-1]].copy()
    newest_G = oldest_G.copy()
    first_V = np.flatnonzero(np.diff(groups_V, prepend=-1))  # where a group's tokens begin; a group may have none
    if len(first_V):
        oldest_G[groups_V[first_V]] = np.minimum.reduceat(versions_V, first_V)
        newest_G[groups_V[first_V]] = np.maximum.reduceat(versions_V, first_V)
    return oldest_G, newest_G


def token_groups(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the place of the group of every response token, flat in row order, shape [V]."""
    return np.searchsorted(group_starts(batch), token_rows(batch), side="right") - 1


def token_rows(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the row of every response token, flat in row order, shape [V]."""
    return np.repeat(np.arange(batch.num_rows), np.diff(list_column_arrays(batch, "response_ids")[1]))


def token_versions(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the policy version that sampled every response token, flat in row order, shape [V]."""
    token_offsets = list_column_arrays(batch, "response_ids")[1]
    starts_R, run_offsets = list_column_arrays(batch, "version_starts")
    versions_R, _ = list_column_arrays(batch, "version_values")
    row_R = np.repeat(np.arange(batch.num_rows), np.diff(run_offsets))
    has_tokens_R = np.diff(token_offsets)[row_R] > 0  # an empty response may have a run
    begins_R = (token_offsets[row_R] + starts_R)[has_tokens_R]
    return np.repeat(versions_R[has_tokens_R], np.diff(begins_R, append=token_offsets[-1])).astype(np.int64)


def trained_tokens(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Return whether each response token has a part in the loss, flat in row order, shape [V]. Tokens that are older
    than the row's `trained_from_version` have none; a row where that is null has no such token."""
    first_N = batch.column("trained_from_version").fill_null(0).to_numpy()
    is_trained_V: NDArray[np.bool_] = token_versions(batch) >= first_N[token_rows(batch)]
    return is_trained_V


def masked_tokens(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the number of response tokens of each group that have no part in the loss, shape [G]."""
    return np.bincount(token_groups(batch)[~trained_tokens(batch)], minlength=len(group_starts(batch)) - 1)


def feature_rows(batch: pa.RecordBatch, dim: int | None = None) -> NDArray[np.float64]:
    """Return the feature of every row, shape [N, D], 0 where there is none. Without `dim`, D is that of the features,
    and 1 where no row has one. Raises ValueError for features of other lengths."""
    values, offsets = list_column_arrays(batch, "feature")
    sizes_N = np.diff(offsets)
    rows_ND = np.zeros((batch.num_rows, dim or int(sizes_N.max(initial=1))))
    rows_ND[sizes_N > 0] = values.reshape(-1, rows_ND.shape[1])
    return rows_ND


def split_groups(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Return one zero-copy slice a group. A slice keeps its parent alive: use `concat_groups` to keep one long."""
    starts = group_starts(batch)
    return [batch.slice(first, last - first) for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def concat_groups(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return one contiguous batch of the rows in order: a copy, even of one batch, and exactly as large as its rows."""
    return pa.concat_batches(batches)


def validate_groups(batch: pa.RecordBatch, group_size: int) -> None:
    """Raise ValueError, naming group and row, unless the batch is whole groups of well-formed rollouts. A whole group
    is `group_size` adjacent rows with index 0..K-1, and no id occurs twice. A well-formed rollout has

    - as many behavior log-probs as response tokens, all of them finite;
    - version runs that start at 0, strictly increase and begin on a token that exists (an empty response may have no
      run, or one at 0);
    - no null in a column that sampling decides."""
    _check_whole(batch, group_size)
    for field in batch.schema:
        if not field.nullable:
            _refuse_rows(batch, batch.column(field.name).is_null().to_numpy(zero_copy_only=False), f"{field.name} is null")
    if batch.num_rows:
        _check_log_probs(batch)
        _check_version_runs(batch)


def _check_whole(batch: pa.RecordBatch, group_size: int) -> None:
    starts = group_starts(batch)
    ids = group_ids(batch).tolist()
    for group_id, rows in zip(ids, np.diff(starts).tolist(), strict=True):
        if rows != group_size:
            raise ValueError(f"group {group_id} has {rows} adjacent rows; a whole group has group_size = {group_size}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"a group id occurs twice among {ids}")
    index_N = batch.column("index").to_numpy(zero_copy_only=True)
    _refuse_rows(batch, index_N != np.tile(np.arange(group_size), len(ids)), "the rows of a group must have index 0, 1, ..., K-1 in order")


def _check_log_probs(batch: pa.RecordBatch) -> None:
    _, token_offsets = list_column_arrays(batch, "response_ids")
    log_probs_V, offsets = list_column_arrays(batch, "behavior_logprobs")
    message = "response_ids and behavior_logprobs differ in length; a mismatch is never padded"
    _refuse_rows(batch, np.diff(token_offsets) != np.diff(offsets), message)
    bad_X = np.searchsorted(offsets, np.flatnonzero(~np.isfinite(log_probs_V)), side="right") - 1
    _refuse_rows(batch, np.bincount(bad_X, minlength=batch.num_rows) > 0, "a behavior log-prob is not finite")


def _check_version_runs(batch: pa.RecordBatch) -> None:
    starts_R, offsets = list_column_arrays(batch, "version_starts")
    versions_R, version_offsets = list_column_arrays(batch, "version_values")
    _refuse_rows(batch, np.diff(offsets) != np.diff(version_offsets), "version_starts and version_values differ in length")
    tokens_N = np.diff(list_column_arrays(batch, "response_ids")[1])
    row_R = np.repeat(np.arange(batch.num_rows), np.diff(offsets))
    _refuse_rows(batch, (tokens_N > 0) & (np.diff(offsets) == 0), "its tokens have no policy version")
    is_first_R = np.concatenate([[True], row_R[1:] != row_R[:-1]])[: len(row_R)]
    gap_R = np.diff(starts_R, prepend=0)
    bad_R = np.where(is_first_R, starts_R != 0, gap_R <= 0) | (starts_R >= np.maximum(tokens_N, 1)[row_R]) | (versions_R < 0)
    bad_N = np.bincount(row_R[bad_R], minlength=batch.num_rows) > 0
    _refuse_rows(batch, bad_N, "version runs must start at 0, strictly increase, stay within the tokens and name versions >= 0")


def _refuse_rows(batch: pa.RecordBatch, bad_N: NDArray[np.bool_], message: str) -> None:
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(f"group {batch.column('group_id')[row]}, row {row} (index {batch.column('index')[row]}): {message}")
