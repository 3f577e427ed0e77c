"""Made-up steps for the tests of bonuses, and a state that goes through files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bonus.base import Bonus, StepRows
from bonus.contract import score_checked, state_from_files, state_to_files

KIND = "tested"
ANSWERS = ("7", "9", "12", None)


def make_step(step: int = 1, *, groups: int = 3, responses: int = 4, dim: int = 6, seed: int = 0, **values: Any) -> StepRows:
    """A step whose last response of the first group is empty, and whose third response of the second is not scored."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    valid_GK = torch.ones(groups, responses, dtype=torch.bool)
    valid_GK[0, -1] = False
    lengths_GK = torch.randint(1, 6, (groups, responses), generator=generator) * valid_GK
    correct_GK = (torch.rand(groups, responses, generator=generator) < 0.5) & valid_GK
    rewards_GK = correct_GK.double()
    if groups > 1:
        rewards_GK[1, 2], correct_GK[1, 2] = torch.nan, False
    logprobs_GKT = -torch.rand(groups, responses, 5, generator=generator, dtype=torch.float64)
    picks_GK = torch.randint(len(ANSWERS), (groups, responses), generator=generator)
    rows = StepRows(
        step=step,
        seed=seed,
        keys_G=[f"task/{group}" for group in range(groups)],
        rewards_GK=rewards_GK,
        correct_GK=correct_GK,
        valid_GK=valid_GK,
        lengths_GK=lengths_GK,
        ended_GK=lengths_GK < 5,
        lags_GK=torch.randint(0, 3, (groups, responses), generator=generator),
        features_GKD=torch.randn(groups, responses, dim, generator=generator, dtype=torch.float64) * valid_GK[..., None],
        answers_GK=[
            [ANSWERS[pick] if valid else None for pick, valid in zip(picks, valids, strict=True)]
            for picks, valids in zip(picks_GK.tolist(), valid_GK.tolist(), strict=True)
        ],
        responses_GK=[
            [[10 + pick] * length for pick, length in zip(picks, lengths, strict=True)]
            for picks, lengths in zip(picks_GK.tolist(), lengths_GK.tolist(), strict=True)
        ],
        logprobs_GKT=logprobs_GKT * (torch.arange(5) < lengths_GK[..., None]),
    )
    return replace(rows, **values)


def bonuses_of(bonus: Bonus, steps: Sequence[StepRows]) -> tuple[list[Tensor], Any]:
    """The bonuses of each step, and the last state."""
    state, found = bonus.init_state(), []
    for step in steps:
        scores, state = score_checked(bonus, step, state, kind=KIND)
        found.append(scores.bonus_GK)
    return found, state


def through_files(bonus: Bonus, state: Any) -> Any:
    """The state as a checkpoint brings it back."""
    tensors, rest = state_to_files(bonus, state, kind=KIND)
    return state_from_files(bonus, tensors, json.loads(json.dumps(rest)))


def all_equal(one: Any, other: Any) -> bool:
    """Whether two states hold the same, bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all_equal(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and list(one) == list(other) and all(all_equal(one[key], other[key]) for key in one)
    return bool(one == other)
