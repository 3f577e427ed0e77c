"""The tokens of unfinished responses: one rollout worker reports them while it samples, another can continue them.

batch = progress_batch([(group_id, index, sample), ...])         # PROGRESS_SCHEMA
samples = resumed_samples(batch, request, max_tokens=256)        # by index"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.engine import PartialSample, Sample
from buffers.arrays import list_array, string_array
from buffers.records import FinishReason, GroupRequest
from buffers.schema import ROLLOUT_SCHEMA

_COLUMNS = ("group_id", "index", "response_ids", "behavior_logprobs", "version_starts", "version_values", "finish_reason")
PROGRESS_SCHEMA: pa.Schema = pa.schema([ROLLOUT_SCHEMA.field(name) for name in _COLUMNS])
"""The tokens of a response so far. The finish reason "aborted" means that it is unfinished."""

NOTHING = PartialSample().finish(FinishReason.ABORTED)


def resumed_samples(resume: pa.RecordBatch | pa.Table, request: GroupRequest, *, max_tokens: int) -> dict[int, Sample]:
    """Return the request's responses, by index, from rows with the columns of PROGRESS_SCHEMA. Unfinished ones of
    `max_tokens` tokens end by their length. Raises ValueError for an index that is unknown or appears twice."""
    found: dict[int, Sample] = {}
    own = resume.filter(pc.equal(resume["group_id"], request.group_id)).select(PROGRESS_SCHEMA.names)
    for row in own.to_pylist():
        index, reason = row["index"], FinishReason(row["finish_reason"])
        if index in found or not 0 <= index < request.num_responses:
            raise ValueError(f"group {request.group_id} of {request.num_responses} responses cannot be resumed from a row of index {index}")
        at_limit = reason is FinishReason.ABORTED and len(row["response_ids"]) >= max_tokens
        found[index] = Sample(
            token_ids=tuple(row["response_ids"]),
            logprobs=tuple(row["behavior_logprobs"]),
            version_starts=tuple(row["version_starts"]),
            version_values=tuple(row["version_values"]),
            finish_reason=FinishReason.LENGTH if at_limit else reason,
        )
    return found


def progress_batch(rows: Sequence[tuple[int, int, Sample]]) -> pa.RecordBatch:
    """Return a batch with PROGRESS_SCHEMA from (group id, index, sample) rows."""
    samples = [sample for _, _, sample in rows]
    columns = [
        pa.array([group_id for group_id, _, _ in rows], pa.int64()),
        pa.array([index for _, index, _ in rows], pa.int32()),
        list_array([sample.token_ids for sample in samples], np.int32),
        list_array([sample.logprobs for sample in samples], np.float32),
        list_array([sample.version_starts for sample in samples], np.int32),
        list_array([sample.version_values for sample in samples], np.int64),
        string_array(sample.finish_reason.value for sample in samples),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PROGRESS_SCHEMA)
