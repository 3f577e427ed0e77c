from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bonus.base import load_bonus
from tests.bonus.steps import all_equal, bonuses_of, make_step, through_files

PATH = "docs.examples.fixed_center:FixedCenter"
OPTIONS = {"ridge": 0.5, "gate": "always", "cut_off": "keep"}


def test_a_leverage_is_of_one_center_and_of_all_earlier_steps() -> None:
    """The reference inverts Sigma for each group."""
    steps = [make_step(number) for number in (1, 2, 3)]
    found, _ = bonuses_of(load_bonus(PATH, {**OPTIONS, "forgetting": 0.9}), steps)
    center_D = steps[0].features_GKD[steps[0].valid_GK].mean(0)
    moment_DD = torch.zeros(6, 6, dtype=torch.float64)
    for step, bonus_GK in zip(steps, found, strict=True):
        x_GKD = (step.features_GKD - center_D) * step.valid_GK[..., None]
        for x_KD, bonus_K in zip(x_GKD, bonus_GK, strict=True):
            sigma_DD = 0.5 * torch.eye(6) + moment_DD + x_KD.T @ x_KD
            torch.testing.assert_close(bonus_K, torch.einsum("kd,de,ke->k", x_KD, sigma_DD.inverse(), x_KD))
        moment_DD = 0.9 * moment_DD + torch.einsum("gkd,gke->de", x_GKD, x_GKD)


def test_a_shift_of_all_features_changes_nothing() -> None:
    steps = [make_step(number) for number in (1, 2)]
    shifted = [replace(step, features_GKD=(step.features_GKD + 7.0) * step.valid_GK[..., None]) for step in steps]
    first, second = (bonuses_of(load_bonus(PATH, OPTIONS), which)[0] for which in (steps, shifted))
    torch.testing.assert_close(first, second)


def test_its_state_is_saved_and_a_wrong_option_is_named() -> None:
    bonus = load_bonus(PATH, OPTIONS)
    _, state = bonuses_of(bonus, [make_step(1)])
    assert state and all_equal(through_files(bonus, state), state)
    with pytest.raises(Exception, match="ridgee"):
        load_bonus(PATH, {"ridge": 0.1, "ridgee": 1})
