"""Builders of groups with known contents."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest

from buffers.records import FinishReason, GroupRequest, Problem, Rollout
from buffers.schema import to_record_batch


def make_rollout(versions: Sequence[int] = (0,), *, prompt: Sequence[int] = (1, 2, 3), seed: int = 0) -> Rollout:
    """One token a version in `versions`; none at all for an empty sequence."""
    rng = random.Random(seed)
    starts = [i for i, v in enumerate(versions) if i == 0 or versions[i - 1] != v]
    return Rollout(
        prompt_ids=tuple(prompt),
        response_ids=tuple(rng.randrange(50_000) for _ in versions),
        behavior_logprobs=tuple(-rng.randrange(1, 4096) / 256 for _ in versions),  # exact in float32
        version_starts=tuple(starts),
        version_values=tuple(versions[i] for i in starts),
        finish_reason=FinishReason.STOP if versions else FinishReason.ABORTED,
        response_text=f"réponse {seed}",
        generate_s=seed / 8,
    )


def make_request(group_id: int, *, num_responses: int = 2, admitted_version: int = 0, attempt: int = 0) -> GroupRequest:
    problem = Problem(task="sums", problem_id=f"p{group_id}", question=f"{group_id} + 1?", answer=str(group_id + 1))
    return GroupRequest(group_id=group_id, problem=problem, num_responses=num_responses, admitted_version=admitted_version, attempt=attempt)


def make_group(group_id: int, *versions: Sequence[int], admitted_version: int = 0) -> pa.RecordBatch:
    """One row for each sequence of token versions; by default two rows of a few tokens of version 0."""
    rows = versions or ((0,) * 4, (0,) * 7)
    request = make_request(group_id, num_responses=len(rows), admitted_version=admitted_version)
    rollouts = [make_rollout(row, seed=100 * group_id + i) for i, row in enumerate(rows)]
    return to_record_batch("run", request, rollouts, worker_id="w0")


@pytest.fixture(scope="session", name="make_rollout")
def _make_rollout() -> Callable[..., Rollout]:
    return make_rollout


@pytest.fixture(scope="session", name="make_request")
def _make_request() -> Callable[..., GroupRequest]:
    return make_request


@pytest.fixture(scope="session", name="make_group")
def _make_group() -> Callable[..., pa.RecordBatch]:
    return make_group
