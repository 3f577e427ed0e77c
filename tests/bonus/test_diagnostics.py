import dataclasses

import pytest
import torch

from bonus.diagnostics import (
    BonusDiagnostics,
    carries_no_signal,
    distance_to_saturation,
    effective_rank,
    length_correlation,
    median_spread,
    ridge_to_energy,
)

QUIET = BonusDiagnostics(
    bonus_mean=0.87,
    spread=9e-4,
    distance_to_saturation=1e-4,
    effective_rank=7.0,
    ridge_to_energy=1e-4,
    length_correlation=None,
    gated_out_share=0.0,
    num_empty=0,
)


@pytest.mark.parametrize(("spread", "expected"), [(9e-4, True), (1e-3, False), (0.0, True), (None, False)])
def test_a_step_whose_median_spread_is_tiny_carries_no_signal(spread: float | None, expected: bool) -> None:
    assert carries_no_signal(dataclasses.replace(QUIET, spread=spread)) is expected


def test_spread_is_the_median_over_groups_that_can_be_compared() -> None:
    leverage_GK = torch.tensor([[0.1, 0.3, 0.5], [0.0, 0.0, 0.0], [0.1, 0.5, 0.9], [0.7, 0.0, 0.0]], dtype=torch.float64)
    valid_GK = torch.tensor([[True] * 3, [True] * 3, [True] * 3, [True, False, False]])
    assert median_spread(leverage_GK, valid_GK) == pytest.approx(0.2)
    assert median_spread(leverage_GK[3:], valid_GK[3:]) is None


def test_distance_to_saturation_counts_the_valid_responses() -> None:
    leverage_GK = torch.tensor([[0.4, 0.5, 0.0, 0.0]], dtype=torch.float64)
    valid_GK = torch.tensor([[True, True, False, False]])
    assert distance_to_saturation(leverage_GK, valid_GK) == pytest.approx(0.05)
    assert distance_to_saturation(leverage_GK[:, :1], valid_GK[:, :1]) is None


@pytest.mark.parametrize("with_prior", [False, True])
def test_effective_rank_is_that_of_the_matrix_itself(with_prior: bool) -> None:
    centred_GKD = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = 2.0 * centred_GKD[0].mT @ centred_GKD[0] if with_prior else None
    sigma_GDD = 0.3 * torch.eye(6, dtype=torch.float64) + centred_GKD.mT @ centred_GKD + (0.0 if prior is None else prior)
    eigenvalues_GD = torch.linalg.eigvalsh(sigma_GDD)
    expected = (eigenvalues_GD.sum(1).square() / eigenvalues_GD.square().sum(1)).mean().item()
    assert effective_rank(centred_GKD, ridge=0.3, prior=prior) == pytest.approx(expected, rel=1e-10)


def test_effective_rank_without_features_is_the_full_dimension() -> None:
    assert effective_rank(torch.zeros(2, 3, 5, dtype=torch.float64), ridge=0.1, prior=None) == pytest.approx(5.0)


def test_ridge_is_compared_with_the_energy_per_dimension() -> None:
    centred_GKD = torch.tensor([[[2.0, 0.0], [-2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert ridge_to_energy(centred_GKD, ridge=0.5) == pytest.approx(0.5 / ((8 + 0) / 2 / 2))
    assert ridge_to_energy(torch.zeros_like(centred_GKD), ridge=0.5) is None


def test_correlation_with_length_is_taken_within_groups() -> None:
    lengths_GK = torch.tensor([[10, 20, 30], [110, 120, 130]])
    bonus_GK = torch.tensor([[0.5, 0.6, 0.7], [0.1, 0.2, 0.3]], dtype=torch.float64)
    valid_GK = torch.ones(2, 3, dtype=torch.bool)
    assert length_correlation(bonus_GK, lengths_GK, valid_GK) == pytest.approx(1.0)
    assert length_correlation(-bonus_GK, lengths_GK, valid_GK) == pytest.approx(-1.0)


def test_correlation_with_length_is_undefined_where_either_is_constant() -> None:
    valid_GK = torch.ones(1, 3, dtype=torch.bool)
    varied_GK = torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64)
    constant_GK = torch.full((1, 3), 0.7, dtype=torch.float64)
    assert length_correlation(constant_GK, varied_GK, valid_GK) is None
    assert length_correlation(varied_GK, constant_GK, valid_GK) is None
    assert length_correlation(torch.zeros_like(varied_GK), varied_GK, valid_GK) is None
