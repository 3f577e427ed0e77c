import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bonus import coreset
from bonus.coreset import select

property_test = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**31)
ridges = st.sampled_from([1e-2, 1.0, 100.0])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor, *, rtol: float = 1e-9, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def rank_one_selection(features_ND: Tensor, k: int, *, ridge: float, prior: Tensor | None = None) -> tuple[list[int], list[float]]:
    """The paper's Algorithm 1 as it is written, candidates within 1e-9 of the best one being a tie."""
    dim = features_ND.shape[1]
    lambda_DD = torch.linalg.inv(ridge * torch.eye(dim, dtype=torch.float64) + (0.0 if prior is None else prior))
    indices, scores = [], []
    for _ in range(min(k, len(features_ND))):
        score_N = torch.einsum("nd,de,ne->n", features_ND, lambda_DD, features_ND)
        score_N[indices] = -math.inf
        best = score_N.max()
        index = int((score_N >= best - 1e-9 * best.abs()).int().argmax())
        row_D = lambda_DD @ features_ND[index]
        indices.append(index)
        scores.append(float(score_N[index]))
        lambda_DD = lambda_DD - torch.outer(row_D, row_D) / (1 + score_N[index])
    return indices, scores


def exact_selection(features: list[list[int]]) -> tuple[list[int], list[float]]:
    """The same over whole numbers at ridge 1, in rational arithmetic: every tie is a tie."""
    dim = len(features[0])
    rows = [[Fraction(value) for value in feature] for feature in features]
    inverse = [[Fraction(int(i == j)) for j in range(dim)] for i in range(dim)]

    def times_inverse(row: list[Fraction]) -> list[Fraction]:
        return [sum((inverse[i][j] * row[j] for j in range(dim)), Fraction(0)) for i in range(dim)]

    def score(index: int) -> Fraction:
        return sum((a * b for a, b in zip(rows[index], times_inverse(rows[index]), strict=True)), Fraction(0))

    left, indices, scores = set(range(len(rows))), [], []
    while left:
        best = max(score(index) for index in left)
        index = min(index for index in left if score(index) == best)
        moved = times_inverse(rows[index])
        inverse = [[inverse[i][j] - moved[i] * moved[j] / (1 + best) for j in range(dim)] for i in range(dim)]
        left.remove(index)
        indices.append(index)
        scores.append(float(best))
    return indices, scores


# -- against references


@pytest.mark.parametrize("case", range(3))
def test_picks_and_scores_are_those_of_explicit_inverses(vectors: Mapping[str, np.ndarray], case: int) -> None:
    expected_k = torch.from_numpy(vectors[f"coreset{case}_indices"])
    features_ND = torch.from_numpy(vectors[f"coreset{case}_features_ND"])
    indices_k, scores_k = select(features_ND, len(expected_k), ridge=float(vectors[f"coreset{case}_ridge"]))
    assert indices_k.tolist() == expected_k.tolist()
    assert_same(scores_k, torch.from_numpy(vectors[f"coreset{case}_scores"]))


@property_test
@given(seeds, st.integers(1, 40), st.integers(1, 12), st.integers(0, 45), ridges, st.booleans())
def test_picks_are_those_of_rank_one_updates(seed: int, num: int, dim: int, k: int, ridge: float, with_prior: bool) -> None:
    features_ND = draw(seed, num, dim)
    prior = draw(seed + 1, 2 * dim, dim).mT @ draw(seed + 1, 2 * dim, dim) if with_prior else None
    indices_k, scores_k = select(features_ND, k, ridge=ridge, prior=prior)
    expected_indices, expected_scores = rank_one_selection(features_ND, k, ridge=ridge, prior=prior)
    assert indices_k.tolist() == expected_indices
    assert_same(scores_k, torch.tensor(expected_scores, dtype=torch.float64), rtol=1e-7)


@property_test
@given(seeds, st.integers(1, 8), st.lists(st.integers(0, 7), min_size=1, max_size=40), ridges)
def test_copies_are_picked_in_index_order(seed: int, dim: int, copy_of: list[int], ridge: float) -> None:
    features_ND = draw(seed, 8, dim)[copy_of]
    indices = select(features_ND, len(copy_of), ridge=ridge)[0].tolist()
    assert indices == rank_one_selection(features_ND, len(copy_of), ridge=ridge)[0]
    for original in set(copy_of):
        copies = [index for index in indices if copy_of[index] == original]
        assert copies == sorted(copies)


@property_test
@given(st.integers(1, 3).flatmap(lambda dim: st.lists(st.lists(st.integers(-3, 3), min_size=dim, max_size=dim), min_size=1, max_size=9)))
def test_every_tie_of_exact_arithmetic_goes_to_the_lowest_index(features: list[list[int]]) -> None:
    indices_k, scores_k = select(torch.tensor(features, dtype=torch.float64), len(features), ridge=1.0)
    expected_indices, expected_scores = exact_selection(features)
    assert indices_k.tolist() == expected_indices
    assert_same(scores_k, torch.tensor(expected_scores, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("panel", [1, 3, 16])
@pytest.mark.parametrize("copies", [1, 4])
def test_the_panel_changes_the_cost_and_not_the_picks(monkeypatch: pytest.MonkeyPatch, panel: int, copies: int) -> None:
    features_ND = draw(3, 50, 8).repeat(copies, 1)
    expected_k, expected_scores_k = select(features_ND, 60, ridge=0.1)
    monkeypatch.setattr(coreset, "PANEL", panel)
    indices_k, scores_k = select(features_ND, 60, ridge=0.1)
    assert indices_k.tolist() == expected_k.tolist()
    assert_same(scores_k, expected_scores_k)


def test_a_pool_of_several_panels_has_the_picks_of_rank_one_updates() -> None:
    features_ND = draw(5, 3 * coreset.PANEL + 7, 24)
    features_ND[coreset.PANEL :: 3] = features_ND[::3][: len(features_ND[coreset.PANEL :: 3])]
    indices_k, scores_k = select(features_ND, 100, ridge=1.0)
    expected_indices, expected_scores = rank_one_selection(features_ND, 100, ridge=1.0)
    assert indices_k.tolist() == expected_indices
    assert_same(scores_k, torch.tensor(expected_scores, dtype=torch.float64))


@pytest.mark.parametrize("ridge", [1e-2, 1e-6])
def test_scores_stay_accurate_past_the_rank_of_the_features(ridge: float) -> None:
    """Once D directions are taken, a score has lost up to ten digits of what it was: the fold after D picks gives them
    back."""
    features_ND = 3.0 * draw(0, 120, 16)
    indices_k, scores_k = select(features_ND, 120, ridge=ridge)
    for t in range(16, 120):
        picked_D, earlier_tD = features_ND[indices_k[t]], features_ND[indices_k[:t]]
        sigma_DD = ridge * torch.eye(16, dtype=torch.float64) + earlier_tD.mT @ earlier_tD
        assert scores_k[t].item() == pytest.approx(float(picked_D @ torch.linalg.solve(sigma_DD, picked_D)), rel=1e-9)


# -- what a selection is


@property_test
@given(seeds, st.integers(0, 30), st.integers(1, 8), st.integers(0, 40))
def test_no_candidate_is_picked_twice_and_scores_never_rise(seed: int, num: int, dim: int, k: int) -> None:
    indices_k, scores_k = select(draw(seed, num, dim), k, ridge=0.1)
    assert len(indices_k) == len(scores_k) == min(k, num)
    assert len(set(indices_k.tolist())) == len(indices_k)
    assert (scores_k.diff() <= 0).all()
    assert (scores_k >= 0).all()
    assert (indices_k.dtype, scores_k.dtype) == (torch.int64, torch.float64)


@property_test
@given(seeds, st.integers(2, 20), st.integers(1, 8))
def test_a_smaller_k_is_a_prefix(seed: int, num: int, dim: int) -> None:
    features_ND = draw(seed, num, dim)
    assert select(features_ND, num // 2, ridge=1.0)[0].tolist() == select(features_ND, num, ridge=1.0)[0][: num // 2].tolist()


@property_test
@given(seeds, st.integers(2, 20), st.integers(2, 8))
def test_rotating_the_features_changes_nothing(seed: int, num: int, dim: int) -> None:
    features_ND, rotation_DD = draw(seed, num, dim), torch.linalg.qr(draw(seed + 1, dim, dim)).Q
    assert select(features_ND @ rotation_DD, num, ridge=1.0)[0].tolist() == select(features_ND, num, ridge=1.0)[0].tolist()


def test_what_a_prior_holds_is_no_longer_new() -> None:
    features_ND = torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    prior = 100.0 * torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert select(features_ND, 2, ridge=1.0)[0].tolist() == [0, 1]
    indices_k, scores_k = select(features_ND, 2, ridge=1.0, prior=prior)
    assert indices_k.tolist() == [1, 0]
    assert scores_k.tolist() == pytest.approx([4 / 1, 9 / 101])


def test_identical_candidates_come_in_index_order_with_falling_scores() -> None:
    indices_k, scores_k = select(draw(0, 1, 6).expand(9, 6), 9, ridge=0.5)
    first = float(draw(0, 1, 6).square().sum()) / 0.5
    assert indices_k.tolist() == list(range(9))
    assert scores_k.tolist() == pytest.approx([first / (1 + t * first) for t in range(9)])


@pytest.mark.parametrize("num", [7, 2 * coreset.PANEL])
def test_candidates_without_energy_come_last_in_index_order(num: int) -> None:
    features_ND = torch.zeros(num, 4, dtype=torch.float64)
    features_ND[5] = 1.0
    indices_k, scores_k = select(features_ND, num, ridge=1.0)
    assert indices_k.tolist() == [5, *(index for index in range(num) if index != 5)]
    assert not scores_k[1:].any()


def test_features_of_lower_precision_are_selected_in_float64() -> None:
    features_ND = draw(0, 30, 8).float()
    indices_k, scores_k = select(features_ND, 10, ridge=0.1)
    expected_k, expected_scores_k = select(features_ND.double(), 10, ridge=0.1)
    assert torch.equal(indices_k, expected_k)
    assert torch.equal(scores_k, expected_scores_k)


def test_the_features_are_left_as_they_were() -> None:
    features_ND = draw(0, 30, 8)
    select(features_ND, 30, ridge=1.0)
    assert torch.equal(features_ND, draw(0, 30, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_selection_on_a_device_stays_there_and_is_the_same() -> None:
    features_ND = draw(0, 3 * coreset.PANEL, 16)
    expected_k, expected_scores_k = select(features_ND, 100, ridge=0.1)
    indices_k, scores_k = select(features_ND.cuda(), 100, ridge=0.1)
    assert indices_k.is_cuda
    assert scores_k.is_cuda
    assert indices_k.tolist() == expected_k.tolist()
    assert_same(scores_k.cpu(), expected_scores_k)


# -- what is refused


@pytest.mark.parametrize("k", [0, 3])
def test_an_empty_pool_gives_an_empty_selection(k: int) -> None:
    indices_k, scores_k = select(torch.zeros(0, 4), k, ridge=1.0)
    assert (indices_k.tolist(), scores_k.tolist()) == ([], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_candidate_that_is_not_finite_is_refused_by_its_index(bad: float) -> None:
    features_ND = draw(0, 6, 3)
    features_ND[4, 1] = bad
    with pytest.raises(ValueError, match="candidate 4"):
        select(features_ND, 1, ridge=1.0)


def test_impossible_arguments_are_refused() -> None:
    features_ND = draw(0, 6, 3)
    for ridge in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="ridge"):
            select(features_ND, 1, ridge=ridge)
    with pytest.raises(ValueError, match="k=-1"):
        select(features_ND, -1, ridge=1.0)
    for shape in [(6,), (6, 0), (2, 6, 3)]:
        with pytest.raises(ValueError, match="N x D"):
            select(torch.zeros(shape), 1, ridge=1.0)
    with pytest.raises(ValueError, match="prior"):
        select(features_ND, 1, ridge=1.0, prior=torch.eye(4, dtype=torch.float64))
