"""Distinct final answers within a group, as a bonus. Legend: G groups, K responses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.kinds import KINDS

Answers = Sequence[Sequence[str | None]]


def share_of_others(answers_GK: Answers, valid_GK: Tensor) -> Tensor:
    """Return, for each response, the share of its group's other responses that do not give the same final answer. It is
    0 for a response without an answer, for an empty one, and in a group without another response."""
    share_GK = torch.zeros(valid_GK.shape, dtype=torch.float64)
    for group, (answers, is_valid) in enumerate(zip(answers_GK, valid_GK.tolist(), strict=True)):
        valid_answers = [answer for answer, valid in zip(answers, is_valid, strict=True) if valid]
        for response, (answer, valid) in enumerate(zip(answers, is_valid, strict=True)):
            if valid and answer is not None and len(valid_answers) > 1:
                share_GK[group, response] = 1.0 - (valid_answers.count(answer) - 1) / (len(valid_answers) - 1)
    return share_GK


class OutcomeBatchBonus:
    """A penalty on final answers that are repeated within the group (batch exploration of arXiv:2509.06941):

        b_i = 1 - #{j != i: a_j = a_i} / (K - 1)

    The source has -1/K * #{j != i: a_j = a_i}, read on a secondary page that quotes the equation. Ours are two changes
    that an advantage with a group mean does not see but for a factor: the share is of the others, and 1 is added. With
    that, 0 is the least value, which a response without an answer gets, and an empty one. So saying nothing is never
    rewarded as a rare answer. K counts the responses that are not empty. A group of equal answers has no contrast."""

    needs = KINDS["outcome_batch"]

    def __init__(self, config: BonusConfig) -> None:
        """The bonus has no settings; `config` is what every known bonus is made with."""

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.answers_GK is not None, "outcome_batch needs final answers"
        distinct = [len(set(answers) - {None}) for answers in step.answers_GK]
        metrics = {"distinct_answers": sum(distinct) / max(len(distinct), 1)}
        return Scores(bonus_GK=share_of_others(step.answers_GK, step.valid_GK), metrics=metrics), state
