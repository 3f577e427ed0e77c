"""The bonuses without the system: from NumPy arrays, torch tensors and lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bonus.config import BonusConfig
from bonus.kinds import KINDS
from bonus.library import step_of
from bonus.methods import bonus_of

RNG = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "rewards": np.array([[1.0, 0.0, 1.0], [0.0, 0.0, np.nan]]),
    "features": RNG.normal(size=(2, 3, 5)).astype(np.float32),
    "logprobs": -RNG.random((2, 3, 4)) * (np.arange(4) < np.array([[4, 2, 1], [3, 0, 4]])[..., None]),
}
ANSWERS = [["1", "2", "1"], ["3", None, "4"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_bonus_is_the_same_from_arrays_tensors_and_lists(kind: str) -> None:
    found = []
    for form in (lambda array: array, torch.from_numpy, lambda array: array.tolist()):
        bonus = bonus_of(BonusConfig(kind=kind, dim=5))
        step = step_of(**{name: form(array) for name, array in ARRAYS.items()}, answers=ANSWERS)
        scores, _ = bonus.score(step, bonus.init_state())
        found.append(scores.bonus_GK.numpy())
    assert found[0].shape == (2, 3) and found[0][1, 1] == 0
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-12)


def test_what_is_left_out_is_made_up() -> None:
    step = step_of(**ARRAYS)
    assert step.lengths_GK.tolist() == [[4, 2, 1], [3, 0, 4]]
    assert step.valid_GK.tolist() == [[True] * 3, [True, False, True]]
    assert step.correct_GK.tolist() == [[True, False, True], [False] * 3]
    assert len(set(step.keys_G)) == 2
    assert step_of(rewards=[[0.0, 1.0]]).lengths_GK.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rewards": [1.0, 2.0]}, r"rewards must be G x K, got \(2,\)"),
        ({"rewards": [[1.0, 2.0]], "features": np.zeros((2, 2, 3))}, r"features_GKD has shape \(2, 2, 3\), but rewards have \(1, 2\)"),
        ({"rewards": [[1.0, 2.0]], "keys": ["a", "b"]}, "2 keys for 1 groups"),
        ({"rewards": [[1.0, 2.0]], "answers": [["1"]]}, "answers must be 1 sequences of 2 answers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_of(**values)
