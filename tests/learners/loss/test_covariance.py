"""Which tokens are restrained, and what this does to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.loss.covariance import chosen_tokens, covariances, penalty, restrained_value
from learners.loss_terms import CovarianceConfig
from tests.learners import slow_reference as slow


def draw(seed: int, num: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, generator=generator, dtype=torch.float64), -3 * torch.rand(num, generator=generator, dtype=torch.float64)


def config_of(term: str, **values: object) -> CovarianceConfig:
    return CovarianceConfig.model_validate({"term": term, **values})


def test_covariances_worked_by_hand() -> None:
    """Means 0 and −2: products of the deviations (1, 1), (−1, 1) and (0, −2)."""
    found_N = covariances(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-1.0, -1.0, -4.0]))
    torch.testing.assert_close(found_N, torch.tensor([1.0, -1.0, 0.0]))


def test_their_mean_is_the_covariance() -> None:
    advantage_N, logprob_N = draw(0)
    expected = torch.cov(torch.stack([advantage_N, logprob_N]), correction=0)[0, 1]
    torch.testing.assert_close(covariances(advantage_N, logprob_N).mean(), expected)


@pytest.mark.parametrize("share", [1e-6, 0.01, 0.3, 1.0])
def test_kl_cov_takes_the_tokens_of_the_slow_reference(share: float) -> None:
    advantage_N, logprob_N = draw(1)
    chosen_N = chosen_tokens(covariances(advantage_N, logprob_N), config_of("kl_cov", share=share), seed=(0, 0))
    assert chosen_N.nonzero().flatten().tolist() == slow.chosen_by_covariance(advantage_N.tolist(), logprob_N.tolist(), share)


def test_clip_cov_draws_within_its_band_and_equally_often() -> None:
    covariance_N = torch.linspace(-10, 10, 201, dtype=torch.float64)
    config = config_of("clip_cov", share=0.05, band=(1.0, 5.0))
    times_N = torch.zeros(201)
    for version in range(400):
        chosen_N = chosen_tokens(covariance_N, config, seed=(version, 0))
        assert chosen_N.sum() == 10
        times_N += chosen_N
    inside_N = (covariance_N > 1) & (covariance_N < 5)
    assert not times_N[~inside_N].any()
    assert times_N[inside_N].min() > 60 and times_N[inside_N].max() < 150  # 39 tokens, 4000 draws: 103 each


def test_a_draw_follows_from_its_seed_alone() -> None:
    covariance_N, config = covariances(*draw(2)), config_of("clip_cov", share=0.02, band=(0.1, 9.0))
    torch.manual_seed(1)
    first_N = chosen_tokens(covariance_N, config, seed=(3, 1))
    torch.manual_seed(2)
    assert torch.equal(chosen_tokens(covariance_N, config, seed=(3, 1)), first_N)
    assert not torch.equal(chosen_tokens(covariance_N, config, seed=(4, 1)), first_N)


def test_few_candidates_few_tokens_and_a_step_none() -> None:
    covariance_N = torch.tensor([0.0, 2.0, 3.0, 7.0])
    assert chosen_tokens(covariance_N, config_of("clip_cov", share=1.0), seed=(0,)).tolist() == [False, True, True, False]
    assert not chosen_tokens(covariance_N, config_of("clip_cov", share=1.0, band=(8.0, 9.0)), seed=(0,)).any()
    assert chosen_tokens(covariance_N, config_of("kl_cov"), seed=(0,)).tolist() == [False, False, False, True]
    for term in ("kl_cov", "clip_cov"):
        assert chosen_tokens(torch.zeros(0), config_of(term), seed=(0,)).shape == (0,)
    assert not chosen_tokens(covariance_N, CovarianceConfig(), seed=(0,)).any()


def test_auto_is_the_share_of_the_authors_code() -> None:
    assert (config_of("kl_cov").share_in_force, config_of("clip_cov").share_in_force) == (2e-3, 2e-4)
    assert config_of("kl_cov", share=0.5).share_in_force == 0.5


def test_a_chosen_token_has_neither_value_nor_gradient_in_the_surrogate() -> None:
    value_N = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    left_N = restrained_value(value_N, torch.tensor([False, True, False]))
    left_N.sum().backward()
    assert left_N.tolist() == [1.0, 0.0, 3.0] and value_N.grad is not None and value_N.grad.tolist() == [1.0, 0.0, 1.0]


def test_the_penalty_pulls_chosen_tokens_back_and_is_flat_where_nothing_has_moved() -> None:
    logprob_N = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    found_N = penalty(logprob_N, torch.tensor([-1.5, -1.5, -3.0, -9.0]), torch.tensor([True, True, True, False]))
    found_N.sum().backward()
    assert found_N.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert logprob_N.grad is not None and logprob_N.grad.tolist() == [1.0, -1.0, 0.0, 0.0]
