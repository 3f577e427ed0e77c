"""The one table of rollouts: on the wire, in replay, in checkpoints and in the rollout log. A row is a rollout; a group
is K adjacent rows. Rows are built once a group is sampled, and only gain columns:

    sampled ──to_record_batch──> verified ──with_verdicts──> encoded ──with_features──> consumed
    ──with_trained_from, with_scores, with_bonus_detail, with_outcome──> log

Shape suffixes: N rows, K rows of one group, D feature dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from buffers.arrays import list_array, number_array, offsets_of, repeated, string_array, tuples_of
from buffers.groups import (
    concat_groups,
    group_ids,
    group_starts,
    list_column_arrays,
    oldest_version,
    split_groups,
    token_rows,
    token_versions,
    validate_groups,
)
from buffers.records import FinishReason, GroupOutcome, GroupRequest, Problem, Rollout, Verdict, VerdictStatus

__all__ = ["concat_groups", "group_ids", "group_starts", "list_column_arrays", "oldest_version", "split_groups", "validate_groups"]
__all__ += ["ROLLOUT_SCHEMA", "SCHEMA_VERSION", "StoredGroup", "check_schema", "conform", "conform_checkpoint", "from_record_batch"]
__all__ += ["to_record_batch", "with_bonus_detail", "with_features", "with_outcome", "with_scores", "with_shaped_rewards"]
__all__ += ["with_trained_from", "with_verdicts"]

SCHEMA_VERSION = "2.1"
"""major.minor. A minor version adds nullable columns. A major one changes what is there, and readers refuse another."""

_VERSION_KEY = b"repexp.schema"

_COLUMNS: dict[str, pa.DataType] = {
    # whose rollout this is
    "run_id": pa.string(),
    "group_id": pa.int64(),
    "index": pa.int32(),
    "task": pa.string(),
    "problem_id": pa.string(),
    "question": pa.string(),
    "reference_answer": pa.string(),
    "admitted_version": pa.int64(),
    "attempt": pa.int32(),
    # what was sampled
    "prompt_ids": pa.list_(pa.int32()),
    "response_ids": pa.list_(pa.int32()),
    "behavior_logprobs": pa.list_(pa.float32()),
    "version_starts": pa.list_(pa.int32()),
    "version_values": pa.list_(pa.int64()),
    "finish_reason": pa.string(),
    "response_text": pa.string(),
    "generate_s": pa.float64(),
    "worker_id": pa.string(),
    # what the verifier found
    "verdict_status": pa.string(),
    "reward": pa.float64(),
    "verdict_answer": pa.string(),
    "final_answer": pa.string(),  # where the bonus needs it: the whole answer, one spelling a value
    "verdict_detail": pa.string(),
    "verify_s": pa.float64(),
    "reward_format": pa.float64(),
    "reward_length": pa.float64(),
    # what the frozen encoder saw
    "feature": pa.list_(pa.float32()),
    # what was decided at consumption
    "trained_from_version": pa.int64(),  # where older tokens were too old to be trained on; null: the row has no such token
    "bonus": pa.float64(),
    "bonus_detail": pa.map_(pa.string(), pa.float64()),  # what the bonus says of the response, by names of its own
    "advantage": pa.float64(),
    "step": pa.int64(),
    "outcome": pa.string(),
}

_LISTS = ("prompt_ids", "response_ids", "behavior_logprobs", "version_starts", "version_values")  # one entry a token, or a run

_DECIDED_LATER = frozenset(list(_COLUMNS)[list(_COLUMNS).index("verdict_status") :])

_DETAIL_OF_SCHEMA_1 = ("leverage", "group_spread", "group_saturation_distance", "group_effective_rank", "group_length_correlation")
"""Columns of schema 1 in place of `bonus_detail`: those of the elliptical bonus, null until a step is scored."""

ROLLOUT_SCHEMA: pa.Schema = pa.schema(
    [pa.field(name, kind, nullable=name in _DECIDED_LATER) for name, kind in _COLUMNS.items()],
    metadata={_VERSION_KEY: SCHEMA_VERSION.encode()},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredGroup:
    """One group as read from its rows. `request.problem.meta` is not stored and comes back empty."""

    run_id: str
    worker_id: str
    request: GroupRequest
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict | None, ...]  # None until verified


def check_schema(schema: pa.Schema) -> None:
    """Raise ValueError unless rows of `schema` can be read here: the same major version, and every column of its type.
    Rows of an earlier minor version may lack columns that may be null. The message is one line that names the version
    found and the version read here."""
    found = _version_of(schema)
    if _major(found) < _major(SCHEMA_VERSION):
        remedy = "read these rows with the version of the code that wrote them, or with any Parquet reader"
        raise ValueError(f"rollout schema {found} is older than this reader's {SCHEMA_VERSION}: {remedy}")
    if _major(found) > _major(SCHEMA_VERSION):
        raise ValueError(f"rollout schema {found} is newer than this reader's {SCHEMA_VERSION}: update the code")
    for name, kind in _COLUMNS.items():
        if name not in schema.names:
            if name in _DECIDED_LATER and _minor(found) < _minor(SCHEMA_VERSION):
                continue
            raise ValueError(f"rollout schema {found} lacks the column '{name}' of schema {SCHEMA_VERSION}")
        if schema.field(name).type != kind:
            raise ValueError(f"column '{name}' is {schema.field(name).type}; rollout schema {SCHEMA_VERSION} has {kind}")


def _version_of(schema: pa.Schema) -> str:
    found: str = (schema.metadata or {}).get(_VERSION_KEY, b"").decode()
    if not found:
        raise ValueError(f"not a rollout table: its schema has no '{_VERSION_KEY.decode()}' (this reader: {SCHEMA_VERSION})")
    return found


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def conform(table: pa.Table) -> pa.Table:
    """Return `table` with exactly the columns of ROLLOUT_SCHEMA; those it lacks are null."""
    columns = [table[name] if name in table.column_names else pa.nulls(len(table), kind) for name, kind in _COLUMNS.items()]
    return pa.table(columns, names=list(_COLUMNS)).cast(ROLLOUT_SCHEMA)


def conform_checkpoint(table: pa.Table) -> pa.Table:
    """Return the rows of a checkpoint with exactly the columns of ROLLOUT_SCHEMA, converted if they are of schema 1.
    These rows are not scored yet, so nothing is lost with the columns that schema 2 no longer has. Raises ValueError
    for another schema, and for rows of schema 1 that are scored."""
    if _major(_version_of(table.schema)) != 1:
        check_schema(table.schema)
        return conform(table)
    scored = [name for name in _DETAIL_OF_SCHEMA_1 if name in table.column_names and table[name].null_count < len(table)]
    if scored:
        raise ValueError(f"rows of rollout schema 1 with values in {', '.join(scored)} cannot be converted to schema {SCHEMA_VERSION}")
    return conform(table)


def to_record_batch(run_id: str, request: GroupRequest, rollouts: Sequence[Rollout], *, worker_id: str) -> pa.RecordBatch:
    """Return the rows of one sampled group, in the order given. Later columns are null. Log-probs are kept as float32.
    Raises ValueError unless there are `request.num_responses` rollouts, OverflowError for an id that is no int32."""
    if len(rollouts) != request.num_responses:
        raise ValueError(f"group {request.group_id}: {len(rollouts)} rollouts but num_responses = {request.num_responses}")
    num, problem = len(rollouts), request.problem
    same: dict[str, Any] = {"run_id": run_id, "worker_id": worker_id, "group_id": request.group_id, "attempt": request.attempt}
    same |= {"admitted_version": request.admitted_version, "task": problem.task, "problem_id": problem.problem_id}
    same |= {"question": problem.question, "reference_answer": problem.answer}
    columns: dict[str, Any] = {
        **{name: repeated(value, num, _COLUMNS[name]) for name, value in same.items()},
        **{name: list_array([getattr(r, name) for r in rollouts], _COLUMNS[name].value_type.to_pandas_dtype()) for name in _LISTS},
        "index": pa.array(np.arange(num, dtype=np.int32)),
        "finish_reason": string_array(r.finish_reason.value for r in rollouts),
        "response_text": string_array(r.response_text for r in rollouts),
        "generate_s": pa.array([r.generate_s for r in rollouts], pa.float64()),
    }
    arrays = [columns[name] if name in columns else pa.nulls(num, kind) for name, kind in _COLUMNS.items()]
    return pa.RecordBatch.from_arrays(arrays, schema=ROLLOUT_SCHEMA)


def from_record_batch(batch: pa.RecordBatch) -> list[StoredGroup]:
    """Invert `to_record_batch` and `with_verdicts`: return one entry a group, in row order."""
    return [_stored_group(group) for group in split_groups(batch)]


def with_verdicts(batch: pa.RecordBatch, verdicts: Sequence[Verdict]) -> pa.RecordBatch:
    """Return the batch with one verdict a row, in row order, and rewards that are not shaped yet. `reward` is null
    where the verifier could not score."""
    unshaped = pa.nulls(batch.num_rows, pa.float64())
    return _with_columns(
        batch,
        reward_format=unshaped,
        reward_length=unshaped,
        verdict_status=string_array(v.status.value for v in verdicts),
        reward=pa.array([v.reward for v in verdicts], pa.float64()),
        verdict_answer=string_array(v.answer for v in verdicts),
        final_answer=string_array(v.final_answer for v in verdicts),
        verdict_detail=string_array(v.detail for v in verdicts),
        verify_s=pa.array([v.elapsed_s for v in verdicts], pa.float64()),
    )


def with_shaped_rewards(
    batch: pa.RecordBatch, *, reward: Sequence[float | None], format_term: Sequence[float | None], length_term: Sequence[float | None]
) -> pa.RecordBatch:
    """Return the batch, which has its verdicts, with shaped rewards, and the terms added to the task's own.
    `tasks.rewards` defines the terms."""
    columns = {"reward": reward, "reward_format": format_term, "reward_length": length_term}
    return _with_columns(batch, **{name: pa.array(values, pa.float64()) for name, values in columns.items()})


def with_features(batch: pa.RecordBatch, features_KD: NDArray[np.float32], valid_K: ArrayLike) -> pa.RecordBatch:
    """Return the batch with one feature a row; null where `valid_K` is false (an empty response has no hidden state).
    Raises ValueError for a wrong shape, and for a valid feature not finite: one NaN would spoil the covariance."""
    valid = np.asarray(valid_K, bool)
    if features_KD.ndim != 2 or valid.shape != (batch.num_rows,) or len(features_KD) != batch.num_rows:
        raise ValueError(f"features {features_KD.shape} and valid {valid.shape} do not fit {batch.num_rows} rows")
    values = np.ascontiguousarray(features_KD[valid], dtype=np.float32).reshape(-1)
    if not np.isfinite(values).all():
        raise ValueError("a feature marked valid is not finite")
    offsets = offsets_of(valid * features_KD.shape[1])
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(~valid))
    return _with_columns(batch, feature=column)


def with_trained_from(batch: pa.RecordBatch, version: int) -> pa.RecordBatch:
    """Return the batch, whose tokens that were sampled under versions before `version` are not to be trained on. Rows
    without such tokens stay as they are."""
    is_old_N = np.bincount(token_rows(batch)[token_versions(batch) < version], minlength=batch.num_rows) > 0
    return _with_columns(batch, trained_from_version=pa.array(np.full(batch.num_rows, version), pa.int64(), mask=~is_old_N))


def with_scores(batch: pa.RecordBatch, bonus: ArrayLike, advantage: ArrayLike | None = None) -> pa.RecordBatch:
    """Return the batch with bonus, and advantage if given: one finite number a row. [G, K] is read row by row."""
    scored = _with_columns(batch, bonus=number_array(bonus, "bonus"))
    return scored if advantage is None else _with_columns(scored, advantage=number_array(advantage, "advantage"))


def with_bonus_detail(batch: pa.RecordBatch, detail: Mapping[str, NDArray[np.float64]]) -> pa.RecordBatch:
    """Return the batch with what its bonus says of each row, shape [N] a name; NaN is left out of the row's map."""
    for name, values_N in detail.items():
        if values_N.shape != (batch.num_rows,):
            raise ValueError(f"{values_N.shape} values of bonus_detail '{name}' for {batch.num_rows} rows")
    values_NC = np.stack(list(detail.values()), axis=1) if detail else np.zeros((batch.num_rows, 0))
    is_known_NC = ~np.isnan(values_NC)
    names_NC = np.broadcast_to(np.array(list(detail), dtype=object), values_NC.shape)
    column = pa.MapArray.from_arrays(
        pa.array(offsets_of(is_known_NC.sum(axis=1))),
        pa.array(names_NC[is_known_NC], pa.string()),
        pa.array(values_NC[is_known_NC], pa.float64()),
    )
    return _with_columns(batch, bonus_detail=column)


def with_outcome(batch: pa.RecordBatch, step: int, outcome: GroupOutcome) -> pa.RecordBatch:
    """Return the batch with its outcome and the step in which it was decided."""
    num = batch.num_rows
    return _with_columns(batch, step=repeated(step, num, pa.int64()), outcome=repeated(outcome.value, num, pa.string()))


def _with_columns(batch: pa.RecordBatch, **columns: pa.Array) -> pa.RecordBatch:
    for name, column in columns.items():
        if len(column) != batch.num_rows:
            raise ValueError(f"{len(column)} values of '{name}' for {batch.num_rows} rows")
        batch = batch.set_column(batch.schema.get_field_index(name), ROLLOUT_SCHEMA.field(name), column)
    return batch


def _stored_group(group: pa.RecordBatch) -> StoredGroup:
    first = group.slice(0, 1).to_pylist()[0]
    problem = Problem(task=first["task"], problem_id=first["problem_id"], question=first["question"], answer=first["reference_answer"])
    counts = {name: first[name] for name in ("group_id", "admitted_version", "attempt")}
    request = GroupRequest(problem=problem, num_responses=group.num_rows, **counts)
    about = {"run_id": first["run_id"], "worker_id": first["worker_id"], "request": request}
    return StoredGroup(**about, rollouts=_rollouts(group), verdicts=_verdicts(group))


def _rollouts(group: pa.RecordBatch) -> tuple[Rollout, ...]:
    rows = group.select(["finish_reason", "response_text", "generate_s"]).to_pylist()
    for name in _LISTS:
        for row, values in zip(rows, tuples_of(group, name), strict=True):
            row[name] = values
    return tuple(Rollout(**{**row, "finish_reason": FinishReason(row["finish_reason"])}) for row in rows)


def _verdicts(group: pa.RecordBatch) -> tuple[Verdict | None, ...]:
    names = ["verdict_status", "reward", "reward_format", "reward_length", "verdict_answer", "final_answer", "verdict_detail", "verify_s"]
    rows = group.select(names).to_pylist()
    return tuple(
        Verdict(
            status=VerdictStatus(row["verdict_status"]),
            reward=None if row["reward"] is None else row["reward"] - (row["reward_format"] or 0.0) - (row["reward_length"] or 0.0),
            answer=row["verdict_answer"],
            final_answer=row["final_answer"],
            detail=row["verdict_detail"],
            elapsed_s=row["verify_s"],
        )
        if row["verdict_status"] is not None
        else None
        for row in rows
    )
