"""The known advantage estimators: by hand, against the slow reference, in their limits, and with a bonus."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.advantages import AdvantageInputs, bonus_part, group_advantages
from learners.config import AdvantageConfig
from learners.estimators import ESTIMATORS
from learners.methods import estimated_advantages
from tests.learners import slow_reference as slow

NAN = math.nan
REWARDS: list[list[float | None]] = [
    [1.0, 0.0, None, 0.0, 1.0],
    [0.0, 0.0, 1.0, 0.0, 0.0],
    [None, 1.0, None, None, None],
    [1.0, 1.0, 1.0, None, 1.0],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [1.0, 1.0, 0.0, 1.0, 1.0],
]
ANSWERS = [["7", "3", "7", None, "8"], ["3", "3", "7", "4", None]] + [["7", "7", "7", "1", "7"]] * 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BONUSES = draw(3, 6, 5)


def as_tensor(values: Any) -> Tensor:
    return torch.tensor([[NAN if x is None else x for x in group] for group in values], dtype=torch.float64)


def advantages(rewards: Any, bonuses_GK: Tensor | None = None, **settings: Any) -> Tensor:
    rewards_GK = as_tensor(rewards)
    bonuses_GK = torch.zeros_like(rewards_GK) if bonuses_GK is None else bonuses_GK
    config = AdvantageConfig.model_validate(settings)
    return estimated_advantages(AdvantageInputs(rewards_GK=rewards_GK, bonuses_GK=bonuses_GK, answers_GK=ANSWERS), config)


def assert_close(found_GK: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found_GK, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_maxrl_worked_by_hand() -> None:
    """One of four is right: (1 − ¼) / ¼ and −1. Three of four: ⅓ and −1."""
    found_GK = advantages([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]], estimator="maxrl")
    torch.testing.assert_close(found_GK, torch.tensor([[3.0, -1, -1, -1], [1 / 3, 1 / 3, -1, 1 / 3]]).double(), rtol=5e-6, atol=0.0)


def test_pass_at_k_worked_by_hand() -> None:
    """Of four, one is right and k = 2: of six pairs three have it, so R = ½ and σ = ½. A right one gets 1. A wrong one
    is in three pairs, of which one passes: (½ − ⅔) / ½ = −⅓."""
    found_GK = advantages([[1.0, 0.0, 0.0, 0.0]], estimator="pass_at_k", pass_k=2)
    torch.testing.assert_close(found_GK, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]).double(), rtol=5e-6, atol=0.0)


def test_uniqueness_worked_by_hand() -> None:
    """Of the group 7, 7, 3, none: mean ½, so ±½ without division. Both right ones share a cluster of two."""
    inputs = AdvantageInputs(rewards_GK=as_tensor([[1.0, 1.0, 0.0, 0.0]]), bonuses_GK=torch.zeros(1, 4), answers_GK=[["7", "7", "3", None]])
    for rarity, kept in ((1.0, 1 / 2), (0.5, math.sqrt(1 / 2))):
        found_GK = estimated_advantages(inputs, AdvantageConfig(estimator="uniqueness", normalise="mean", rarity=rarity))
        assert_close(found_GK, [[0.5 * kept, 0.5 * kept, -0.5, -0.5]])


def test_ties_worked_by_hand() -> None:
    """The first group has a contrast of its own. In the second the bonuses 1, 2, 3 have mean 2 and deviation 1."""
    bonuses_GK = torch.tensor([[9.0, 0.0, 4.0], [1.0, 2.0, 3.0]])
    found_GK = advantages([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], bonuses_GK, combine="ties", beta=0.3, normalise="mean")
    torch.testing.assert_close(found_GK, torch.tensor([[2 / 3, -1 / 3, -1 / 3], [-0.3, 0.0, 0.3]]).double(), rtol=5e-6, atol=1e-12)


def test_positive_ties_take_nothing_from_what_is_common() -> None:
    """Six copies of a right answer and two of another: bonuses of 1/m − 1/8, deviation 0.154. The contrast of the
    second group stays whole."""
    bonuses_GK = torch.tensor([[1 / 6 - 1 / 8] * 6 + [1 / 2 - 1 / 8] * 2, [1.0] + [0.0] * 7])
    rewards = [[1.0] * 8, [1.0] + [0.0] * 7]
    both_GK = advantages(rewards, bonuses_GK, combine="ties", normalise="mean")
    found_GK = advantages(rewards, bonuses_GK, combine="positive_ties", normalise="mean")
    torch.testing.assert_close(both_GK[0], torch.tensor([-0.5401] * 6 + [1.6202] * 2).double(), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(found_GK[0], torch.tensor([0.0] * 6 + [1.6202] * 2).double(), rtol=0.0, atol=1e-4)
    assert torch.equal(found_GK[1], both_GK[1])


# --- against the slow reference --------------------------------------------------------------------------------------


def bonus(combine: str, beta: float) -> Tensor:
    config = AdvantageConfig.model_validate({"combine": combine, "beta": beta})
    return torch.tensor(slow.bonus_part(REWARDS, BONUSES.tolist(), config), dtype=torch.float64)


@pytest.mark.parametrize("combine", ["advantage", "ties", "positive_ties"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_maxrl_is_that_of_the_slow_reference(combine: str, beta: float) -> None:
    for rewards in (REWARDS, [[None if x is None else 0.7 * x + 0.1 for x in group] for group in REWARDS]):
        expected = torch.tensor(slow.maxrl(rewards), dtype=torch.float64)
        lone_GK = torch.tensor([[sum(x is not None for x in group) < 2] * 5 for group in rewards])
        assert_close(
            advantages(rewards, BONUSES, estimator="maxrl", combine=combine, beta=beta),
            torch.where(lone_GK, 0.0, expected) + bonus(combine, beta),
        )


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize("combine", ["advantage", "ties", "positive_ties"])
def test_pass_at_k_is_the_mean_over_all_subsets_that_hold_the_response(k: int, combine: str) -> None:
    """The reference draws every subset. With k = 5 only the groups with five scores have one."""
    found_GK = advantages(REWARDS, BONUSES, estimator="pass_at_k", pass_k=k, combine=combine, beta=0.3)
    torch.testing.assert_close(
        found_GK, torch.tensor(slow.pass_at_k(REWARDS, k), dtype=torch.float64) + bonus(combine, 0.3), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("combine", ["advantage", "ties", "positive_ties", "reward"])
@pytest.mark.parametrize("normalise", ["std", "mean", "batch"])
@pytest.mark.parametrize("rarity", [0.4, 1.0])
def test_uniqueness_is_a_weight_on_what_the_slow_reference_normalises(combine: str, normalise: str, rarity: float) -> None:
    settings = {"normalise": normalise, "combine": combine, "beta": 0.3}
    within = [[0.0] * 5] * 6 if combine != "reward" else BONUSES.tolist()
    plain = slow.advantages(REWARDS, within, AdvantageConfig.model_validate({**settings, "combine": "reward"}))
    weights = slow.uniqueness_weights(REWARDS, ANSWERS, rarity)
    weighted = [[w * a for w, a in zip(*pair, strict=True)] for pair in zip(weights, plain, strict=True)]
    expected = torch.tensor(weighted, dtype=torch.float64) + bonus(combine, 0.3)
    assert_close(advantages(REWARDS, BONUSES, estimator="uniqueness", rarity=rarity, **settings), expected)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_pass_at_1_is_grpo_but_for_the_divisor_of_the_deviation(group_size: int) -> None:
    """σ divides by n and GRPO's standard deviation by n − 1."""
    rewards = [[float(i < num_right) for i in range(group_size)] for num_right in range(group_size + 1)]
    expected_GK = math.sqrt(group_size / (group_size - 1)) * advantages(rewards, normalise="std")
    torch.testing.assert_close(advantages(rewards, estimator="pass_at_k", pass_k=1), expected_GK, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("k", range(1, 9))
def test_pass_at_k_sums_to_0_and_is_exactly_0_where_nothing_can_be_learned(k: int) -> None:
    rewards = [[float(i < num_right) for i in range(8)] for num_right in range(9)]
    found_GK = advantages(rewards, estimator="pass_at_k", pass_k=k)
    assert found_GK.sum(-1).abs().max() < 1e-9
    assert [bool(group.any()) for group in found_GK] == [0 < num_right <= 8 - k for num_right in range(9)]


def test_a_larger_k_shifts_the_weight_to_hard_problems() -> None:
    hard, easy = [1.0] + [0.0] * 7, [1.0] * 4 + [0.0] * 4
    shares = []
    for k in (1, 2, 4):
        found_GK = advantages([hard, easy], estimator="pass_at_k", pass_k=k)
        shares.append(float(found_GK[0].abs().sum() / found_GK.abs().sum()))
    assert shares == sorted(shares) and shares[-1] > shares[0] + 0.05


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_maxrl_does_not_depend_on_the_scale_of_rewards(scale: float) -> None:
    rewards = [[1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 0.2, 0.0]]
    scaled = [[scale * x for x in group] for group in rewards]
    torch.testing.assert_close(advantages(scaled, estimator="maxrl"), advantages(rewards, estimator="maxrl"), rtol=1e-4, atol=1e-9)


def test_maxrl_is_dr_grpo_over_the_pass_rate() -> None:
    rewards = [[float(i < num_right) for i in range(8)] for num_right in range(1, 9)]
    rates_G1 = torch.arange(1, 9).double()[:, None] / 8
    torch.testing.assert_close(
        advantages(rewards, estimator="maxrl"), advantages(rewards, normalise="mean") / rates_G1, rtol=1e-4, atol=0.0
    )


def test_where_all_answers_differ_uniqueness_changes_nothing_and_where_all_are_equal_it_is_a_scale() -> None:
    rewards_GK, bonuses_GK = as_tensor([[1.0, 0.0, 0.0, 1.0]]), torch.zeros(1, 4)
    plain_GK = group_advantages(rewards_GK, bonuses_GK, AdvantageConfig())
    for answers, scale in ((["1", "2", "3", "4"], 1.0), (["1"] * 4, 1 / 4)):
        inputs = AdvantageInputs(rewards_GK=rewards_GK, bonuses_GK=bonuses_GK, answers_GK=[answers])
        assert_close(estimated_advantages(inputs, AdvantageConfig(estimator="uniqueness")), plain_GK * scale)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("combine", ["advantage", "ties", "positive_ties"])
def test_a_group_of_equal_rewards_has_the_advantage_of_its_bonus_alone(name: str, combine: str) -> None:
    rewards = [[1.0] * 5, [0.0] * 5] * 3
    config = AdvantageConfig.model_validate({"combine": combine, "beta": 0.3})
    found_GK = advantages(rewards, BONUSES, estimator=name, combine=combine, beta=0.3)
    assert torch.equal(found_GK, bonus_part(as_tensor(rewards), BONUSES, config)) and found_GK.any(-1).all()
    assert not advantages(rewards, BONUSES, estimator=name, combine=combine, beta=0.0).any()
    assert not advantages(rewards, torch.full((6, 5), 0.7), estimator=name, combine=combine).any(), "equal bonuses are no signal"


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("combine", ["advantage", "ties", "positive_ties"])
def test_without_a_bonus_beta_and_combine_change_no_bit(name: str, combine: str) -> None:
    off_GK = advantages(REWARDS, BONUSES, estimator=name, beta=0.0)
    assert torch.equal(advantages(REWARDS, estimator=name, combine=combine, beta=0.5), off_GK)


def test_ties_are_the_published_setting_at_a_small_beta() -> None:
    """With a beta near 0, "reward" leaves unequal rewards alone and gives equal ones the standardised bonus."""
    expected_GK = advantages(REWARDS, BONUSES, combine="ties", beta=1.0)
    torch.testing.assert_close(advantages(REWARDS, BONUSES, combine="reward", beta=1e-3), expected_GK, rtol=0.0, atol=0.02)


# --- what cannot be meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rewards", "message"),
    [
        ("maxrl", [[1.0, -0.5, 0.0]], "rewards must not be negative, because it divides by their mean, and response 1 of group 0 has -0.5"),
        ("pass_at_k", [[1.0, 0.0, None], [0.0, 0.0, 0.5]], "rewards must be 0 or 1, because .* response 2 of group 1 has 0.5"),
        ("pass_at_k", [[1.0, -1.0]], "response 1 of group 0 has -1"),
    ],
)
def test_rewards_for_which_the_equation_means_nothing_are_refused(name: str, rewards: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf'learner\.advantage\.estimator = "{name}": .*{message}') as refusal:
        advantages(rewards, estimator=name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("cluster_by", ["answers", "features"])
def test_uniqueness_without_what_it_clusters_is_refused(cluster_by: str) -> None:
    inputs = AdvantageInputs(rewards_GK=torch.zeros(1, 2), bonuses_GK=torch.zeros(1, 2))
    config = AdvantageConfig.model_validate({"estimator": "uniqueness", "cluster_by": cluster_by})
    with pytest.raises(ValueError, match=rf'cluster_by = "{cluster_by}" needs AdvantageInputs\.{cluster_by}'):
        estimated_advantages(inputs, config)


def test_every_estimator_states_its_equation() -> None:
    assert [name for name, method in ESTIMATORS.items() if not method.__doc__] == []
    assert [name for name, method in ESTIMATORS.items() if name != "normalised" and "arXiv" not in str(method.__doc__)] == []
