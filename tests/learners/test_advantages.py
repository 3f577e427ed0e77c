from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bonus.elliptical import center, leverage
from learners import config as configs
from learners.advantages import EPSILON, NORMALISERS, group_advantages, kl_penalised_rewards, unlikeliness_rewards
from learners.config import AdvantageConfig
from learners.loss.kl import KL_ESTIMATORS
from tests.learners import slow_reference as slow

NAN = math.nan
ONE_RIGHT = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
BONUSES = torch.tensor([[0.8, 0.4, 0.4, 0.4]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def advantages(rewards_GK: Tensor, bonuses_GK: Tensor | None = None, **settings: object) -> Tensor:
    bonuses_GK = torch.zeros_like(rewards_GK) if bonuses_GK is None else bonuses_GK
    return group_advantages(rewards_GK, bonuses_GK, AdvantageConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("normalise", "combine", "expected"),
    [
        # reward: mean 0.25, std 0.5. reward + 0.1·bonus: 1.08 and 0.04, mean 0.30, std 0.52. bonus − its mean: 0.3 and
        # −0.1.
        ("std", "reward", [0.78 / (0.52 + 1e-6), -0.26 / (0.52 + 1e-6)]),
        ("std", "advantage", [0.75 / (0.5 + 1e-6) + 0.03, -0.25 / (0.5 + 1e-6) - 0.01]),
        ("mean", "reward", [0.78, -0.26]),
        ("mean", "advantage", [0.78, -0.26]),
    ],
)
def test_advantages_worked_by_hand(normalise: str, combine: str, expected: list[float]) -> None:
    found_GK = advantages(ONE_RIGHT, BONUSES, normalise=normalise, combine=combine, beta=0.1)
    first, other = expected
    assert found_GK.dtype == torch.float64
    torch.testing.assert_close(found_GK, torch.tensor([[first, other, other, other]], dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_alpha_weighs_the_reward_alone() -> None:
    found_GK = advantages(ONE_RIGHT, BONUSES, normalise="mean", combine="advantage", alpha=2.0, beta=0.1)
    torch.testing.assert_close(found_GK[0, 0].item(), 2 * 0.75 + 0.03, rtol=1e-12, atol=0.0)


def test_every_group_is_centered_by_itself() -> None:
    rewards_GK, bonuses_GK = draw(0, 5, 8), draw(1, 5, 8)
    together_GK = advantages(rewards_GK, bonuses_GK)
    assert together_GK.mean(-1).abs().max() < 1e-12
    alone_GK = torch.cat([advantages(rewards_GK[g : g + 1], bonuses_GK[g : g + 1]) for g in range(5)])
    assert torch.equal(together_GK, alone_GK)


@pytest.mark.parametrize("normalise", ["std", "mean"])
@pytest.mark.parametrize("combine", ["reward", "advantage"])
def test_beta_zero_is_plain_grpo_bit_for_bit(normalise: str, combine: str) -> None:
    rewards_GK = draw(2, 6, 8).round()
    plain_GK = advantages(rewards_GK, normalise=normalise, beta=0.0)
    with_bonus_GK = advantages(rewards_GK, 100 * draw(3, 6, 8), normalise=normalise, combine=combine, beta=0.0)
    assert torch.equal(with_bonus_GK, plain_GK)
    assert torch.equal(advantages(rewards_GK, torch.full((6, 8), NAN), normalise=normalise, combine=combine, beta=0.0), plain_GK)
    centered_GK = rewards_GK - rewards_GK.mean(-1, keepdim=True)
    expected_GK = centered_GK / (rewards_GK.std(-1, keepdim=True) + EPSILON) if normalise == "std" else centered_GK
    torch.testing.assert_close(plain_GK, expected_GK, rtol=1e-12, atol=1e-15)
    assert plain_GK.abs().max() > 0.3


def test_a_response_without_a_score_is_left_out_of_its_group() -> None:
    found_GK = advantages(torch.tensor([[1.0, NAN, 0.0]]), torch.tensor([[0.2, 900.0, 0.4]]), combine="advantage", beta=1.0)
    half = 0.5 / (math.sqrt(0.5) + 1e-6)  # rewards 1 and 0: std = sqrt(1/2); bonuses 0.2 and 0.4 about 0.3
    torch.testing.assert_close(found_GK, torch.tensor([[half - 0.1, 0.0, -half + 0.1]], dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert found_GK[0, 1] == 0


def test_leaving_out_equals_a_smaller_group() -> None:
    rewards_GK, bonuses_GK = draw(4, 1, 4), draw(5, 1, 4)
    with_hole_GK = rewards_GK.clone()
    with_hole_GK[0, 3] = NAN
    for combine in ("reward", "advantage", "ties", "positive_ties"):
        found_GK = advantages(with_hole_GK, bonuses_GK, combine=combine)
        torch.testing.assert_close(found_GK[:, :3], advantages(rewards_GK[:, :3], bonuses_GK[:, :3], combine=combine), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("rewards", [[1.0, NAN, NAN], [NAN, NAN, NAN], [1.0]])
def test_a_group_with_fewer_than_two_scores_has_no_advantage(rewards: list[float]) -> None:
    bonuses_GK = draw(6, 1, len(rewards))
    for combine in ("reward", "advantage", "ties", "positive_ties"):
        assert not advantages(torch.tensor([rewards]), bonuses_GK, combine=combine, beta=1.0).any()


def test_equal_rewards_without_bonus_give_exactly_zero() -> None:
    assert not advantages(torch.full((1, 7), 0.1), beta=0.0).any()


@pytest.mark.parametrize("beta", [1e-3, 1e-2, 1.0])
def test_in_an_all_correct_group_the_papers_bonus_has_unit_variance_whatever_beta(beta: float) -> None:
    """Trap 1 of the published recipe: with `combine = "reward"` the bonus is scaled up to a standard deviation of 1."""
    bonuses_GK = draw(7, 1, 8)
    found_GK = advantages(torch.ones(1, 8), bonuses_GK, combine="reward", beta=beta)
    zscore_GK = (bonuses_GK - bonuses_GK.mean()) / bonuses_GK.std()
    torch.testing.assert_close(found_GK, zscore_GK, rtol=5e-3, atol=0.0)
    assert found_GK.std().item() == pytest.approx(1.0, rel=5e-3)


@pytest.mark.parametrize(("energy", "published"), [(150.0, 0.14), (1_500.0, 0.017), (15_000.0, 0.002)])
def test_bonuses_of_distinct_long_responses_differ_so_little_that_only_ties_scales_them_up(energy: float, published: float) -> None:
    """The table of docs/algorithm.md: at ridge 0.01 a leverage is saturated, and 1e-6 in the divisor hides the rest."""
    features_GKD = math.sqrt(energy / 32) * torch.randn(64, 8, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    valid_GK = torch.ones(64, 8, dtype=torch.bool)
    bonuses_GK = leverage(center(features_GKD, valid_GK), ridge=0.01)
    rewards_GK = torch.ones(64, 8)
    ties = advantages(rewards_GK, bonuses_GK, combine="ties", beta=1.0).std(-1).median().item()
    reward = advantages(rewards_GK, bonuses_GK, combine="reward", beta=0.01).std(-1).median().item()
    assert ties == pytest.approx(1.0, abs=0.02) and reward == pytest.approx(published, rel=0.3)


@pytest.mark.parametrize("beta", [1e-3, 1e-2, 1.0])
def test_in_an_all_correct_group_beta_stays_a_scale_when_the_bonus_joins_the_advantage(beta: float) -> None:
    bonuses_GK = draw(7, 1, 8)
    found_GK = advantages(torch.ones(1, 8), bonuses_GK, combine="advantage", beta=beta)
    torch.testing.assert_close(found_GK, beta * (bonuses_GK - bonuses_GK.mean()), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("rewards", "bonuses"), [((2, 4), (2, 3)), ((2, 4), (4, 2)), ((8,), (8,)), ((1, 2, 4), (1, 2, 4))])
def test_shapes_that_do_not_fit_are_refused(rewards: tuple[int, ...], bonuses: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must both be \(G, K\)") as caught:
        advantages(torch.zeros(rewards), torch.zeros(bonuses))
    assert str(rewards) in str(caught.value) and str(bonuses) in str(caught.value)


# --- every normaliser ------------------------------------------------------------------------------------------------

TWO_GROUPS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
SPREAD = math.sqrt((3 * 0.625**2 + 5 * 0.375**2) / 7)
"""Five of eight are right: the batch's mean is 0.625."""
GROUP_SPREAD = math.sqrt((0.75**2 + 3 * 0.25**2) / 7)

GOLDEN = {
    "std": [[1.5, -0.5, -0.5, -0.5], [0.0] * 4],  # of the first group: mean 0.25, std 0.5
    "mean": [[0.75, -0.25, -0.25, -0.25], [0.0] * 4],
    "leave_one_out": [[1.0, -1 / 3, -1 / 3, -1 / 3], [0.0] * 4],
    "batch": [[0.375 / SPREAD, *[-0.625 / SPREAD] * 3], [0.375 / SPREAD] * 4],
    "group_mean_batch_std": [[0.75 / GROUP_SPREAD, *[-0.25 / GROUP_SPREAD] * 3], [0.0] * 4],
}


@pytest.mark.parametrize("normalise", NORMALISERS)
def test_every_normaliser_worked_by_hand(normalise: str) -> None:
    found_GK = advantages(TWO_GROUPS, normalise=normalise, beta=0.0)
    torch.testing.assert_close(found_GK, torch.tensor(GOLDEN[normalise], dtype=torch.float64), rtol=5e-6, atol=1e-15)


def test_every_normaliser_is_named_and_worked_by_hand() -> None:
    assert NORMALISERS.keys() == GOLDEN.keys() == set(get_args(configs.Normalise))


@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("combine", ["reward", "advantage"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_advantages_are_those_of_the_slow_reference(normalise: str, combine: str, beta: float) -> None:
    rewards: list[list[float | None]] = [[1.0, 0.0, None, 0.5], [0.2, 0.2, 0.9, 0.1], [None, 1.0, None, None], [0.0, 0.0, 0.0, 0.0]]
    bonuses_GK = draw(8, 4, 4)
    config = AdvantageConfig.model_validate({"normalise": normalise, "combine": combine, "beta": beta, "alpha": 1.5})
    given_GK = torch.tensor([[NAN if r is None else r for r in group] for group in rewards], dtype=torch.float64)
    expected = torch.tensor(slow.advantages(rewards, bonuses_GK.tolist(), config), dtype=torch.float64)
    torch.testing.assert_close(group_advantages(given_GK, bonuses_GK, config), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalise", NORMALISERS)
def test_the_mean_advantage_over_the_batch_is_zero(normalise: str) -> None:
    found_GK = advantages(draw(9, 6, 5), draw(10, 6, 5), normalise=normalise)
    assert abs(found_GK.mean().item()) < 1e-12 and found_GK.abs().max() > 0.1


@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("group_size", [3, 5, 6, 7])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0, -0.7])
def test_a_batch_without_contrast_has_no_signal_whatever_the_normaliser(normalise: str, group_size: int, value: float) -> None:
    """Advantages are exactly 0, for rewards and for bonuses, even if their sum is not K times one of them."""
    values_GK = torch.full((3, group_size), value, dtype=torch.float64)
    assert not advantages(values_GK, normalise=normalise, beta=0.0).any()
    assert not advantages(values_GK, values_GK.abs(), normalise=normalise, beta=0.5).any()
    values_GK[0, 1] = NAN
    assert not advantages(values_GK, normalise=normalise, beta=0.0).any()


def test_over_the_batch_a_groups_only_score_has_an_advantage() -> None:
    rewards_GK = torch.tensor([[1.0, NAN], [0.0, 0.0]])
    assert advantages(rewards_GK, normalise="batch", beta=0.0)[0, 0] > 1
    assert not advantages(torch.tensor([[1.0, NAN], [NAN, NAN]]), normalise="batch", beta=0.0).any()
    assert not advantages(torch.full((2, 2), NAN), normalise="batch", beta=0.0).any()


# --- rewards before they become advantages ---------------------------------------------------------------------------


def test_unlikeliness_worked_by_hand() -> None:
    """Of four responses, the likeliest (rank 3) loses 3/4 of a quarter and the unlikeliest nothing. A reward of 0
    stays."""
    found_GK = unlikeliness_rewards(torch.tensor([[1.0, 1.0, 0.0, 1.0]]), torch.tensor([[-1.0, -9.0, -2.0, -3.0]]), 0.25)
    assert found_GK.dtype == torch.float64
    assert found_GK.tolist() == [[1 - 0.25 * 3 / 4, 1.0, 0.0, 1 - 0.25 / 4]]


def test_a_penalty_is_not_made_smaller_for_the_likeliest() -> None:
    found_GK = unlikeliness_rewards(torch.tensor([[1.0, -1.0, -1.0, -0.5]]), torch.tensor([[-5.0, -1.0, -9.0, -3.0]]), 0.25)
    assert found_GK.tolist() == [[1 - 0.25 / 4, -1.0, -1.0, -0.5]]


def test_copies_of_one_response_share_their_rank() -> None:
    found_GK = unlikeliness_rewards(torch.ones(1, 4), torch.tensor([[-2.0, -2.0, -5.0, -2.0]]), 0.4)
    assert found_GK.tolist() == [pytest.approx([1 - 0.4 * 2 / 4, 1 - 0.4 * 2 / 4, 1.0, 1 - 0.4 * 2 / 4])]


def test_a_response_without_a_score_keeps_none_and_still_has_a_rank() -> None:
    found_GK = unlikeliness_rewards(torch.tensor([[NAN, 1.0]]), torch.tensor([[-9.0, -1.0]]), 0.5)
    assert found_GK[0, 0].isnan() and found_GK[0, 1] == 0.75


def test_every_group_is_ranked_by_itself_as_the_slow_reference_does() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_GK, logprobs_GK = (
        (3 * torch.rand(5, 6, generator=generator)).round().double() - 1,
        -9 * torch.rand(5, 6, generator=generator).double(),
    )
    logprobs_GK[:, 3] = logprobs_GK[:, 1]
    found_GK = unlikeliness_rewards(rewards_GK, logprobs_GK, 0.25)
    assert found_GK.tolist() == [pytest.approx(group) for group in slow.unlikeliness(rewards_GK.tolist(), logprobs_GK.tolist(), 0.25)]


def test_rewards_and_log_probs_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\) and log-probs \(1, 3\)"):
        unlikeliness_rewards(torch.ones(1, 2), torch.ones(1, 3), 0.25)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_every_divergence_in_the_reward_is_that_of_the_slow_reference(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    log_ratios = [[torch.randn(n, generator=generator, dtype=torch.float64) for n in (3, 1, 0, 5)] for _ in range(2)]
    rewards: list[list[float | None]] = [[1.0, 0.0, None, 0.5], [0.0, 0.0, 1.0, 1.0]]
    rewards_GK = torch.tensor([[NAN if r is None else r for r in group] for group in rewards], dtype=torch.float64)
    kl_GK = torch.tensor([[KL_ESTIMATORS[name](of_token).sum().item() for of_token in group] for group in log_ratios])
    penalty = {"k1": lambda r: r, "k2": lambda r: r * r / 2, "k3": slow.k3_of}[name]
    expected = slow.kl_penalised(rewards, [[of_token.tolist() for of_token in group] for group in log_ratios], 0.3, penalty)
    for found, wanted in zip(kl_penalised_rewards(rewards_GK, kl_GK, 0.3).tolist(), expected, strict=True):
        assert found == pytest.approx([NAN if value is None else value for value in wanted], rel=1e-5, nan_ok=True)


def test_the_divergence_is_taken_from_the_reward() -> None:
    assert kl_penalised_rewards(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, -0.25]]), 0.1).tolist() == [[0.95, 0.025]]
