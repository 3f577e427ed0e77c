"""Distinct responses within a group, as a bonus: the control of the representation. Legend: G groups, K responses."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.kinds import KINDS
from bonus.shaping import shaped_for

Responses = Sequence[Sequence[Sequence[int]]]
Copies = Sequence[Counter[tuple[int, ...]]]


def copies_of(responses_GK: Responses, valid_GK: Tensor) -> Copies:
    """Return how often each group has each response; an empty one is not counted."""
    pairs_G = zip(responses_GK, valid_GK.tolist(), strict=True)
    return [Counter(tuple(tokens) for tokens, valid in zip(*pair, strict=True) if valid) for pair in pairs_G]


def rarity(responses_GK: Responses, valid_GK: Tensor, copies_G: Copies) -> Tensor:
    """Return 1/m − 1/n, where m of the group's n responses that are not empty have the same tokens as this one. It is 0
    for an empty response, and in a group whose responses are all equal."""
    rarity_GK = torch.zeros(valid_GK.shape, dtype=torch.float64)
    for group, copies in enumerate(copies_G):
        for place, tokens in enumerate(responses_GK[group]):
            if valid_GK[group, place]:
                rarity_GK[group, place] = 1 / copies[tuple(tokens)] - 1 / copies.total()
    return rarity_GK


class CopiesBonus:
    """More for a response with fewer equals in its group (ours), shaped as the elliptical bonus is:

        b_i = discount^lag_i * gate(normalise(1/m_i - 1/K)),    m_i = #{j: y_j = y_i}

    It is the leverage in the limit of a small ridge, where distinct responses point in directions of their own
    (docs/algorithm.md). It looks at tokens alone, so no encoder runs. What the elliptical bonus gains over it is due to
    the representation, and not to telling copies apart."""

    needs = KINDS["copies"]

    def __init__(self, config: BonusConfig) -> None:
        self._config = config

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.responses_GK is not None, "copies needs responses"
        copies_G = copies_of(step.responses_GK, step.valid_GK)
        rarity_GK = rarity(step.responses_GK, step.valid_GK, copies_G)
        metrics = {"distinct_responses": sum(map(len, copies_G)) / max(len(copies_G), 1)}
        return Scores(bonus_GK=shaped_for(step, rarity_GK, self._config), metrics=metrics), state
