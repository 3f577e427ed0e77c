"""What is done to rewards, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from learners.rewards import kl_penalised_rewards, unlikeliness_rewards
from tests.learners import slow_reference as slow

NAN = math.nan


def test_unlikeliness_worked_by_hand() -> None:
    """Of four, the likeliest (rank 3) loses 3/4 of a quarter, the unlikeliest nothing; who has 0 keeps it."""
    found_GK = unlikeliness_rewards(torch.tensor([[1.0, 1.0, 0.0, 1.0]]), torch.tensor([[-1.0, -9.0, -2.0, -3.0]]), 0.25)
    assert found_GK.dtype == torch.float64
    assert found_GK.tolist() == [[1 - 0.25 * 3 / 4, 1.0, 0.0, 1 - 0.25 / 4]]


def test_copies_of_one_response_share_their_rank() -> None:
    found_GK = unlikeliness_rewards(torch.ones(1, 4), torch.tensor([[-2.0, -2.0, -5.0, -2.0]]), 0.4)
    assert found_GK.tolist() == [pytest.approx([1 - 0.4 * 2 / 4, 1 - 0.4 * 2 / 4, 1.0, 1 - 0.4 * 2 / 4])]


def test_a_response_without_a_score_keeps_none_and_still_has_a_rank() -> None:
    found_GK = unlikeliness_rewards(torch.tensor([[NAN, 1.0]]), torch.tensor([[-9.0, -1.0]]), 0.5)
    assert found_GK[0, 0].isnan() and found_GK[0, 1] == 0.75


def test_every_group_is_ranked_by_itself_as_the_slow_reference_does() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_GK, logprobs_GK = torch.rand(5, 6, generator=generator).round().double(), -9 * torch.rand(5, 6, generator=generator).double()
    logprobs_GK[:, 3] = logprobs_GK[:, 1]
    found_GK = unlikeliness_rewards(rewards_GK, logprobs_GK, 0.25)
    assert found_GK.tolist() == [pytest.approx(group) for group in slow.unlikeliness(rewards_GK.tolist(), logprobs_GK.tolist(), 0.25)]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\) and log-probs \(1, 3\)"):
        unlikeliness_rewards(torch.ones(1, 2), torch.ones(1, 3), 0.25)


def test_the_divergence_is_taken_from_the_reward() -> None:
    assert kl_penalised_rewards(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, -0.25]]), 0.1).tolist() == [[0.95, 0.025]]
