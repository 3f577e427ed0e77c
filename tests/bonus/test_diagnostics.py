import dataclasses

import pytest
import torch

from bonus.diagnostics import (
    BonusDiagnostics,
    ScoredGroups,
    below_saturation,
    carries_no_signal,
    diagnose,
    diagnose_groups,
    effective_rank,
    length_correlation,
    length_correlations,
    ridge_to_energy,
    spread,
)

NAN = float("nan")

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


def scored_groups(leverage_GK: torch.Tensor, valid_GK: torch.Tensor) -> ScoredGroups:
    """A step whose bonus is its leverage, measured in a space of one dimension."""
    return ScoredGroups(
        centered_GKD=torch.zeros(*leverage_GK.shape, 1, dtype=torch.float64),
        prior=None,
        ridge=1.0,
        seen_G=valid_GK.sum(dim=1),
        valid_GK=valid_GK,
        lengths_GK=None,
        leverage_GK=leverage_GK,
        raw_bonus_GK=leverage_GK,
        kept_GK=valid_GK,
        bonus_GK=leverage_GK,
    )


def measure(leverage_GK: torch.Tensor, valid_GK: torch.Tensor) -> BonusDiagnostics:
    scored = scored_groups(leverage_GK, valid_GK)
    return diagnose(scored, diagnose_groups(scored))


def test_spread_is_the_median_over_groups_that_can_be_compared() -> None:
    leverage_GK = torch.tensor([[0.1, 0.3, 0.5], [0.0, 0.0, 0.0], [0.1, 0.5, 0.9], [0.7, 0.0, 0.0]], dtype=torch.float64)
    valid_GK = torch.tensor([[True] * 3, [True] * 3, [True] * 3, [True, False, False]])
    assert spread(leverage_GK, valid_GK).tolist() == pytest.approx([0.2, 0.0, 0.4, NAN], nan_ok=True)
    assert measure(leverage_GK, valid_GK).spread == pytest.approx(0.2)
    assert measure(leverage_GK[3:], valid_GK[3:]).spread is None


def test_distance_to_saturation_counts_the_valid_responses_of_all_groups_alike() -> None:
    leverage_GK = torch.tensor([[0.4, 0.5, 0.0, 0.0], [0.75, 0.75, 0.75, 0.25], [0.0] * 4], dtype=torch.float64)
    valid_GK = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
    distances_G = diagnose_groups(scored_groups(leverage_GK, valid_GK)).distance_to_saturation_G
    assert distances_G.tolist() == pytest.approx([0.05, 0.125, NAN], nan_ok=True)
    assert measure(leverage_GK, valid_GK).distance_to_saturation == pytest.approx((2 * 0.05 + 4 * 0.125) / 6)
    assert measure(leverage_GK[2:], valid_GK[2:]).distance_to_saturation is None


def test_distance_to_saturation_is_that_of_the_mean_that_was_subtracted() -> None:
    leverage_GK, valid_GK = torch.full((1, 2), 0.9, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    assert below_saturation(leverage_GK, valid_GK, torch.tensor([20])).tolist() == [pytest.approx([0.05, 0.05])]


@pytest.mark.parametrize("prior_of", ["nobody", "all", "each"])
def test_effective_rank_is_that_of_the_matrix_itself(prior_of: str) -> None:
    centered_GKD = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second_moment_GDD = 2.0 * centered_GKD.flip(0).mT @ centered_GKD.flip(0)
    prior = {"nobody": None, "all": second_moment_GDD[0], "each": second_moment_GDD}[prior_of]
    sigma_GDD = 0.3 * torch.eye(6, dtype=torch.float64) + centered_GKD.mT @ centered_GKD + (0.0 if prior is None else prior)
    eigenvalues_GD = torch.linalg.eigvalsh(sigma_GDD)
    expected_G = eigenvalues_GD.sum(1).square() / eigenvalues_GD.square().sum(1)
    torch.testing.assert_close(effective_rank(centered_GKD, ridge=0.3, prior=prior), expected_G, rtol=1e-10, atol=0.0)


def test_effective_rank_without_features_is_the_full_dimension() -> None:
    assert effective_rank(torch.zeros(2, 3, 5, dtype=torch.float64), ridge=0.1, prior=None).tolist() == pytest.approx([5.0, 5.0])


def test_ridge_is_compared_with_the_energy_per_dimension() -> None:
    centered_GKD = torch.tensor([[[2.0, 0.0], [-2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert ridge_to_energy(centered_GKD, ridge=0.5) == pytest.approx(0.5 / ((8 + 0) / 2 / 2))
    assert ridge_to_energy(torch.zeros_like(centered_GKD), ridge=0.5) is None


def test_correlation_with_length_is_taken_within_groups() -> None:
    lengths_GK = torch.tensor([[10, 20, 30], [110, 120, 130]])
    bonus_GK = torch.tensor([[0.5, 0.6, 0.7], [0.1, 0.2, 0.3]], dtype=torch.float64)
    valid_GK = torch.ones(2, 3, dtype=torch.bool)
    assert length_correlation(bonus_GK, lengths_GK, valid_GK) == pytest.approx(1.0)
    assert length_correlation(-bonus_GK, lengths_GK, valid_GK) == pytest.approx(-1.0)
    assert length_correlations(bonus_GK, lengths_GK.flip(1), valid_GK).tolist() == pytest.approx([-1.0, -1.0])


def test_empty_responses_do_not_enter_a_correlation() -> None:
    lengths_GK = torch.tensor([[10, 20, 30, 0]])
    bonus_GK = torch.tensor([[0.5, 0.6, 0.7, 0.0]], dtype=torch.float64)
    valid_GK = torch.tensor([[True, True, True, False]])
    assert length_correlation(bonus_GK, lengths_GK, valid_GK) == pytest.approx(1.0)
    assert length_correlations(bonus_GK, lengths_GK, valid_GK).item() == pytest.approx(1.0)


def test_correlation_with_length_is_undefined_where_either_is_constant() -> None:
    valid_GK = torch.ones(1, 3, dtype=torch.bool)
    varied_GK = torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64)
    constant_GK = torch.full((1, 3), 0.7, dtype=torch.float64)
    assert length_correlation(constant_GK, varied_GK, valid_GK) is None
    assert length_correlation(varied_GK, constant_GK, valid_GK) is None
    assert length_correlation(torch.zeros_like(varied_GK), varied_GK, valid_GK) is None
    assert length_correlations(torch.cat([constant_GK, varied_GK]), torch.cat([varied_GK] * 2), valid_GK.expand(2, 3)).tolist() == (
        pytest.approx([NAN, 1.0], nan_ok=True)
    )
