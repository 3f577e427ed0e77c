"""What is done to rewards, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from learners.loss.kl import KL_ESTIMATORS
from learners.rewards import kl_penalised_rewards, unlikeliness_rewards
from tests.learners import slow_reference as slow

NAN = math.nan


def test_unlikeliness_worked_by_hand() -> None:
    """Of four, the likeliest (rank 3) loses 3/4 of a quarter, the unlikeliest nothing; who has 0 keeps it."""
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


def test_shapes_that_do_not_fit_are_refused() -> None:
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
