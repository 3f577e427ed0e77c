"""Groups of random tokens for benchmarks, and models with random weights. Needs neither Ray nor vLLM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from buffers.records import FinishReason, GroupRequest, Problem, Rollout

GROUP_SIZE = 8
TOKEN_IDS = (10, 40_000)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a group. Lengths are uniform between the two numbers."""

    name: str
    num_groups: int
    prompt_tokens: tuple[int, int]
    response_tokens: tuple[int, int]


def make_group(group_id: int, shape: Shape, rng: np.random.Generator, *, token_ids: tuple[int, int] = TOKEN_IDS) -> pa.RecordBatch:
    """Return one sampled group of GROUP_SIZE responses."""
    from buffers.schema import to_record_batch

    def ids(bounds: tuple[int, int]) -> tuple[int, ...]:
        return tuple(rng.integers(*token_ids, rng.integers(*bounds, endpoint=True)).tolist())

    prompt_ids = ids(shape.prompt_tokens)
    problem = Problem(task="none", problem_id=str(group_id), question="", answer="")
    request = GroupRequest(group_id=group_id, problem=problem, num_responses=GROUP_SIZE, admitted_version=0)
    responses = [ids(shape.response_tokens) for _ in range(GROUP_SIZE)]
    rollouts = [
        Rollout(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            behavior_logprobs=(-10.0,) * len(response_ids),
            version_starts=(0,),
            version_values=(0,),
            finish_reason=FinishReason.LENGTH,
            response_text="",
        )
        for response_ids in responses
    ]
    return to_record_batch("benchmark", request, rollouts, worker_id="none")


def num_tokens(batch: pa.RecordBatch) -> int:
    """Return the number of tokens of all responses, and of each group's prompt once."""
    rows = batch.select(["index", "prompt_ids", "response_ids"]).to_pylist()
    return sum(len(row["response_ids"]) + (len(row["prompt_ids"]) if row["index"] == 0 else 0) for row in rows)
