import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bonus.config import BonusNormalise, Gate
from bonus.elliptical import center, dual_leverage, gate_mask, leave_one_out, leverage, normalise_bonus, primal_leverage

property_test = settings(deadline=None, max_examples=50)


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_prior(seed: int, dim: int) -> Tensor:
    rows_ND = draw(seed, 3 * dim, dim)
    return rows_ND.mT @ rows_ND


def assert_same(actual: Tensor, expected: Tensor, *, rtol: float = 1e-9, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


seeds = st.integers(0, 2**31)
sizes = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 12))
ridges = st.sampled_from([1e-2, 1.0, 100.0])
scales = st.sampled_from([0.1, 1.0, 10.0])


# -- reference vectors


@pytest.mark.parametrize("index", range(10))
def test_leverages_and_leave_one_out_scores_are_those_of_explicit_inverses(vectors: Mapping[str, np.ndarray], index: int) -> None:
    features_GKD = torch.from_numpy(vectors[f"group{index}_features_GKD"])
    leverage_GK = leverage(features_GKD, ridge=float(vectors[f"group{index}_ridge"]))
    assert_same(leverage_GK, torch.from_numpy(vectors[f"group{index}_leverage_GK"]))
    assert_same(leave_one_out(leverage_GK), torch.from_numpy(vectors[f"group{index}_leave_one_out_GK"]))


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("form", [primal_leverage, dual_leverage])
def test_both_forms_agree_with_the_vectors(vectors: Mapping[str, np.ndarray], index: int, form) -> None:
    features_GKD = torch.from_numpy(vectors[f"group{index}_features_GKD"])
    centered_GKD = center(features_GKD, torch.ones(features_GKD.shape[:2], dtype=torch.bool))
    leverage_GK = form(centered_GKD, ridge=float(vectors[f"group{index}_ridge"]))
    assert_same(leverage_GK, torch.from_numpy(vectors[f"group{index}_leverage_GK"]))


@pytest.mark.parametrize("case", ["identical", "single"])
def test_identical_responses_and_a_response_alone_get_nothing(vectors: Mapping[str, np.ndarray], case: str) -> None:
    leverage_GK = leverage(torch.from_numpy(vectors[f"{case}_features_GKD"]), ridge=0.01)
    assert not torch.from_numpy(vectors[f"{case}_leverage_GK"]).any()
    assert not leverage_GK.any()


def test_identical_features_give_exactly_nothing_at_any_ridge() -> None:
    features_GKD = draw(0, 4, 1, 16, scale=1e3).expand(4, 7, 16)
    assert not leverage(features_GKD, ridge=1e-12).any()


# -- what the leverage is


@property_test
@given(seeds, sizes, ridges, st.booleans())
def test_primal_and_dual_forms_are_equal(seed: int, size: tuple[int, int, int], ridge: float, with_prior: bool) -> None:
    features_GKD = draw(seed, *size)
    centered_GKD = center(features_GKD, torch.ones(size[:2], dtype=torch.bool))
    prior = draw_prior(seed, size[-1]) if with_prior else None
    primal_GK, dual_GK = (form(centered_GKD, ridge=ridge, prior=prior) for form in (primal_leverage, dual_leverage))
    assert_same(primal_GK, dual_GK, atol=1e-12)


def test_a_prior_enters_as_in_the_definition() -> None:
    for shape in [(3, 4, 6), (3, 9, 6)]:
        features_GKD, prior = draw(1, *shape), draw_prior(2, 6)
        centered_GKD = features_GKD - features_GKD.mean(1, keepdim=True)
        inverse_GDD = torch.linalg.inv(0.5 * torch.eye(6, dtype=torch.float64) + prior + centered_GKD.mT @ centered_GKD)
        expected_GK = torch.einsum("gkd,gde,gke->gk", centered_GKD, inverse_GDD, centered_GKD)
        assert_same(leverage(features_GKD, ridge=0.5, prior=prior), expected_GK)


@pytest.mark.parametrize("num_responses", [4, 9])
def test_groups_may_have_a_prior_each(num_responses: int) -> None:
    features_GKD = draw(1, 3, num_responses, 6)
    priors_GDD = torch.stack([draw_prior(seed, 6) for seed in range(3)])
    leverage_GK = leverage(features_GKD, ridge=0.5, prior=priors_GDD)
    for group in range(3):
        assert_same(leverage_GK[group], leverage(features_GKD[group : group + 1], ridge=0.5, prior=priors_GDD[group])[0])


@property_test
@given(seeds, sizes, ridges, scales)
def test_leverage_lies_between_zero_and_one_minus_one_over_k(seed: int, size: tuple[int, int, int], ridge: float, scale: float) -> None:
    leverage_GK = leverage(draw(seed, *size, scale=scale), ridge=ridge)
    assert (leverage_GK >= 0).all()
    assert (leverage_GK <= 1 - 1 / size[1] + 1e-9).all()


@property_test
@given(seeds, sizes, ridges, st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_bonuses(seed: int, size: tuple[int, int, int], ridge: float, random) -> None:
    order = random.sample(range(size[1]), size[1])
    features_GKD = draw(seed, *size)
    assert_same(leverage(features_GKD[:, order], ridge=ridge), leverage(features_GKD, ridge=ridge)[:, order], atol=1e-12)


@property_test
@given(seeds, sizes, ridges)
def test_rotating_and_shifting_the_features_changes_nothing(seed: int, size: tuple[int, int, int], ridge: float) -> None:
    features_GKD = draw(seed, *size)
    rotation_DD = torch.linalg.qr(draw(seed + 1, size[-1], size[-1])).Q
    moved_GKD = features_GKD @ rotation_DD + draw(seed + 2, size[-1])
    assert_same(leverage(moved_GKD, ridge=ridge), leverage(features_GKD, ridge=ridge), atol=1e-12)


@property_test
@given(seeds, sizes, ridges)
def test_a_duplicate_lowers_the_bonus_of_its_original_by_the_known_amount(seed: int, size: tuple[int, int, int], ridge: float) -> None:
    """With the group mean as an intercept, H = leverage + 1/K, and a second copy makes it H / (1 + H)
    (Sherman-Morrison)."""
    num_responses = size[1]
    features_GKD = draw(seed, *size)
    before_G = leverage(features_GKD, ridge=ridge)[:, 0]
    after_GK = leverage(torch.cat([features_GKD, features_GKD[:, :1]], dim=1), ridge=ridge)
    hat_G = before_G + 1 / num_responses
    assert_same(after_GK[:, 0], hat_G / (1 + hat_G) - 1 / (num_responses + 1), atol=1e-11)
    assert_same(after_GK[:, 0], after_GK[:, -1], atol=1e-12)
    assert (after_GK[:, 0] < before_G).all()


@pytest.mark.parametrize("copies", [(1, 1, 1), (5, 3), (4, 2, 1, 1), (6, 1, 1), (2, 2, 2, 2), (8,)])
def test_at_a_small_ridge_the_leverage_of_distinct_directions_counts_copies(copies: tuple[int, ...]) -> None:
    """1/m - 1/K, for one of m equal responses of K. So the published ridge tells copies apart, and hardly anything
    else: the features of one policy have an energy of 150 to 200, and a ridge of 0.01 is nothing beside it."""
    distinct_JD = draw(6, len(copies), 32, scale=13.0)
    features_GKD = distinct_JD.repeat_interleave(torch.tensor(copies), dim=0)[None]
    expected_K = torch.tensor([1 / copy - 1 / sum(copies) for copy in copies for _ in range(copy)], dtype=torch.float64)
    torch.testing.assert_close(leverage(features_GKD, ridge=0.01)[0], expected_K, rtol=0, atol=2e-4)


def test_leave_one_out_scores_a_response_against_the_others_alone() -> None:
    centered_KD = draw(4, 5, 3) - draw(4, 5, 3).mean(0)
    sigma_DD = 0.1 * torch.eye(3, dtype=torch.float64) + centered_KD.mT @ centered_KD
    expected_K = torch.stack([x_D @ torch.linalg.inv(sigma_DD - x_D.outer(x_D)) @ x_D for x_D in centered_KD])
    assert_same(leave_one_out(leverage(centered_KD[None], ridge=0.1))[0], expected_K, rtol=1e-10)


@pytest.mark.parametrize("bad", [1.0, -0.1, math.nan])
def test_leave_one_out_refuses_what_is_no_leverage(bad: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        leave_one_out(torch.tensor([0.5, bad], dtype=torch.float64))


def test_single_precision_features_are_computed_in_double() -> None:
    features_GKD = draw(5, 2, 8, 32, scale=3.0).float()
    assert_same(leverage(features_GKD, ridge=0.01), leverage(features_GKD.double(), ridge=0.01), rtol=0.0)


# -- empty and broken responses


def test_an_empty_response_gets_nothing_and_leaves_the_others_as_if_it_were_absent() -> None:
    features_GKD = draw(6, 2, 5, 7)
    features_GKD[0, 0] = math.nan
    features_GKD[1, 3] = math.inf
    valid_GK = features_GKD.isfinite().all(2)
    leverage_GK = leverage(features_GKD, ridge=0.3, valid_GK=valid_GK)
    for group in range(2):
        rest_1K = leverage(features_GKD[group][valid_GK[group]][None], ridge=0.3)
        assert_same(leverage_GK[group][valid_GK[group]], rest_1K[0], atol=1e-12)
    assert not leverage_GK[~valid_GK].any()


def test_a_group_without_any_feature_gets_nothing() -> None:
    features_GKD = torch.full((1, 3, 4), math.nan)
    assert not leverage(features_GKD, ridge=1.0, valid_GK=torch.zeros(1, 3, dtype=torch.bool)).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_feature_is_refused_naming_group_and_response(bad: float) -> None:
    features_GKD = draw(7, 3, 4, 5)
    features_GKD[2, 1, 4] = bad
    with pytest.raises(ValueError, match="group 2, response 1"):
        leverage(features_GKD, ridge=1.0)


@pytest.mark.parametrize("shape", [(4, 5), (0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_features_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="G x K x D"):
        leverage(torch.zeros(shape), ridge=1.0)


def test_a_mask_a_prior_or_a_ridge_that_does_not_fit_is_refused() -> None:
    features_GKD = draw(8, 2, 4, 5)
    with pytest.raises(ValueError, match="valid_GK"):
        leverage(features_GKD, ridge=1.0, valid_GK=torch.ones(2, 4))
    with pytest.raises(ValueError, match="prior"):
        leverage(features_GKD, ridge=1.0, prior=torch.eye(4))
    with pytest.raises(ValueError, match="prior"):
        leverage(features_GKD, ridge=1.0, prior=torch.eye(5).expand(3, 5, 5))
    with pytest.raises(ValueError, match="ridge"):
        leverage(features_GKD, ridge=0.0)


# -- normalisation and gates, by hand

BONUS_GK = torch.tensor([[1.0, 2.0, 3.0, 9.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
VALID_GK = torch.tensor([[True, True, True, False], [True, True, True, True]])


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        ("none", [[1.0, 2.0, 3.0, 0.0], [0.5, 0.5, 0.5, 0.5]]),
        ("std", [[1.0, 2.0, 3.0, 0.0], [0.5, 0.5, 0.5, 0.5]]),
        ("zscore", [[-1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_bonuses_are_normalised_within_their_group_over_valid_responses(normalise: BonusNormalise, expected: list) -> None:
    assert normalise_bonus(BONUS_GK, VALID_GK, normalise).tolist() == expected


def test_std_divides_by_the_deviation_with_one_degree_of_freedom_less() -> None:
    bonus_GK = torch.tensor([[0.2, 0.6]], dtype=torch.float64)
    deviation = math.sqrt(0.2**2 + 0.2**2)
    normalised_GK = normalise_bonus(bonus_GK, torch.ones(1, 2, dtype=torch.bool), "std")
    assert normalised_GK[0].tolist() == pytest.approx([0.2 / deviation, 0.6 / deviation])


@pytest.mark.parametrize("normalise", ["std", "zscore"])
def test_a_difference_that_is_only_rounding_is_not_blown_up(normalise: BonusNormalise) -> None:
    bonus_GK = torch.tensor([[0.5, 0.5 + 1e-16 + 2e-16]], dtype=torch.float64)
    assert bonus_GK[0, 0] != bonus_GK[0, 1]
    assert normalise_bonus(bonus_GK, torch.ones(1, 2, dtype=torch.bool), normalise).abs().max() <= 0.51


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("always", [[1, 1], [1, 1], [1, 1]]),
        ("group_has_correct", [[0, 0], [1, 1], [1, 1]]),
        ("group_not_all_correct", [[1, 1], [1, 1], [0, 0]]),
        ("group_mixed", [[0, 0], [1, 1], [0, 0]]),
        ("correct_only", [[0, 0], [0, 1], [1, 1]]),
    ],
)
def test_each_gate_keeps_the_bonuses_it_names(gate: Gate, expected: list) -> None:
    correct_GK = torch.tensor([[False, False], [False, True], [True, True]])
    assert gate_mask(correct_GK, gate).int().tolist() == expected
