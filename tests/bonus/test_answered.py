from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bonus.base import load_bonus
from tests.bonus.steps import bonuses_of, make_step

PATH = "docs.examples.answered:Answered"


def test_it_tells_an_answer_from_none_and_no_answer_from_another() -> None:
    step = make_step(1)
    answers = [["7" if place % 2 else None for place in range(step.valid_GK.shape[1])] for _ in step.keys_G]
    other = [["8" if answer else None for answer in group] for group in answers]
    ((bonus_GK,), _) = bonuses_of(load_bonus(PATH, {}), [replace(step, answers_GK=answers)])
    expected_GK = torch.tensor([[float(place % 2) for place in range(step.valid_GK.shape[1])]] * len(step.keys_G), dtype=torch.float64)
    assert torch.equal(bonus_GK, expected_GK * step.valid_GK)
    assert torch.equal(bonuses_of(load_bonus(PATH, {}), [replace(step, answers_GK=other)])[0][0], bonus_GK)
    with pytest.raises(Exception, match="Answered"):
        load_bonus(PATH, {"weight": 1})
