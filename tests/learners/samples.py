"""Hand-made groups over the tiny model's tokens, and what a plain forward pass computes for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from buffers.records import FinishReason, GroupRequest, Problem, Rollout, Verdict, VerdictStatus
from buffers.schema import concat_groups, to_record_batch, with_scores, with_verdicts
from learners.packing import GroupTokens
from learners.sharding import full_tensor

VOCABULARY = 104
Ids = Sequence[int]


def make_request(group_id: int, *, num_responses: int, admitted_version: int = 0, attempt: int = 0) -> GroupRequest:
    problem = Problem(task="sums", problem_id=f"p{group_id}", question=f"{group_id} + 1?", answer=str(group_id + 1))
    return GroupRequest(group_id=group_id, problem=problem, num_responses=num_responses, admitted_version=admitted_version, attempt=attempt)


def make_rollout(prompt: Ids, response: Ids, *, behavior: Sequence[float] | None = None, versions: Ids | None = None) -> Rollout:
    """Return one response. `versions` has one policy version per token (default 0), `behavior` one log-prob per
    token (default -4)."""
    versions = versions if versions is not None else [0] * len(response)
    starts = [i for i, version in enumerate(versions) if i == 0 or versions[i - 1] != version]
    return Rollout(
        prompt_ids=tuple(prompt),
        response_ids=tuple(response),
        behavior_logprobs=tuple(behavior if behavior is not None else [-4.0] * len(response)),
        version_starts=tuple(starts),
        version_values=tuple(versions[i] for i in starts),
        finish_reason=FinishReason.STOP if response and response[-1] == 2 else FinishReason.LENGTH,
        response_text=" ".join(map(str, response)),
    )


def make_verdict(reward: float | None) -> Verdict:
    """Return a verdict: reward 1 is correct, None could not be scored, anything else is incorrect."""
    if reward is None:
        return Verdict(status=VerdictStatus.ERROR, reward=None)
    return Verdict(status=VerdictStatus.CORRECT if reward == 1 else VerdictStatus.INCORRECT, reward=reward)


def make_group(
    group_id: int,
    prompt: Ids,
    responses: Sequence[Ids],
    rewards: Sequence[float | None],
    *,
    bonuses: Sequence[float] | None = None,
    behavior: Sequence[Sequence[float]] | None = None,
    versions: Sequence[Ids] | None = None,
) -> pa.RecordBatch:
    """Return one verified and scored group."""
    rollouts = [
        make_rollout(prompt, ids, behavior=behavior[i] if behavior else None, versions=versions[i] if versions else None)
        for i, ids in enumerate(responses)
    ]
    batch = to_record_batch("run", make_request(group_id, num_responses=len(responses)), rollouts, worker_id="w0")
    return with_scores(with_verdicts(batch, [make_verdict(reward) for reward in rewards]), bonuses or [0.0] * len(responses))


def ragged_groups(num_groups: int, *, group_size: int = 4, seed: int = 0, longest: int = 14, first_id: int = 0) -> list[pa.RecordBatch]:
    """Return groups of prompts and responses of all lengths. Each has an empty response, mixed rewards and a
    behavior policy near the uniform one."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return rng.integers(3, VOCABULARY, length).tolist()

    groups = []
    for group_id in range(first_id, first_id + num_groups):
        responses = [ids(int(rng.integers(1, longest + 1))) for _ in range(group_size - 1)] + [[]]
        groups.append(
            make_group(
                group_id,
                ids(int(rng.integers(1, 12))),
                responses,
                [1.0, *(float(rng.integers(0, 2)) for _ in range(group_size - 2)), 0.0],
                bonuses=rng.random(group_size).tolist(),
                behavior=[(-4.6 + 0.5 * rng.standard_normal(len(response))).tolist() for response in responses],
            )
        )
    return groups


def ragged_batch(num_groups: int, **settings: int) -> pa.RecordBatch:
    return concat_groups(ragged_groups(num_groups, **settings))


def in_order(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """Return these rows of `batch`, with new indices within each group."""
    taken = batch.take(pa.array(rows.reshape(-1)))
    at = taken.schema.get_field_index("index")
    index = pa.array(np.tile(np.arange(rows.shape[1]), len(rows)), taken.schema.field(at).type)
    return taken.set_column(at, taken.schema.field(at), index)


def group_tokens(prompt: Ids, responses: Sequence[Ids]) -> GroupTokens:
    return GroupTokens(prompt_ids=np.array(prompt, np.int64), responses=[np.array(ids, np.int64) for ids in responses])


def plain_logprobs(model: Any, prompt: Ids, response: Ids, *, temperature: float = 1.0) -> Tensor:
    """Return the log-probs of one response (T,), computed as an unpadded row by the model's own forward."""
    row = torch.tensor([[*prompt, *response]])
    logits = model(input_ids=row, use_cache=False).logits[0]
    logprobs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response)])


def plain_hidden_states(model: Any, prompt: Ids, response: Ids) -> Tensor:
    """Return the last hidden states (T, H) of one response's own tokens, computed as an unpadded row."""
    return model.get_decoder()(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).last_hidden_state[0, len(prompt) :]


def gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradient of every parameter. Each must have one. On ranks the gradients are full tensors, so all
    ranks must call."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing, f"no gradient: {missing}"
    return {name: full_tensor(gradient).clone() for name, gradient in found.items()}


class GradientRecorder:
    """Replaces the optimiser: keeps the full gradient of every step and applies none."""

    last_learning_rate = 0.0

    def __init__(self, model: Any) -> None:
        self._model = model
        self.gradients: list[dict[str, Tensor]] = []

    @property
    def num_steps(self) -> int:
        return len(self.gradients)

    def step(self, share: float = 1.0) -> float:
        self.gradients.append(gradients(self._model))
        self._model.zero_grad()
        return 1.0


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float) -> None:
    """Check that gradients are equal to `atol` in every entry, and large enough for this to mean something."""
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e3 * atol
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0.0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
