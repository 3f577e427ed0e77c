"""Distinctness and clusters of a group's responses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learners.diversity import clusters_of_answers, clusters_of_features, distinctness, diversity_rewards
from tests.learners import slow_reference as slow

NAN = math.nan


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(*sizes: int, spread: float = 0.0, seed: int = 0) -> Tensor:
    """Return one group (1, K, D) of clusters of these sizes around a large common mean."""
    means_MD = 5 * torch.eye(len(sizes), 8, dtype=torch.float64) + 40
    rows_KD = torch.cat([mean_D.expand(size, 8) for mean_D, size in zip(means_MD, sizes, strict=True)])
    return (rows_KD + spread * draw(seed, len(rows_KD), 8))[None]


# --- distinctness ----------------------------------------------------------------------------------------------------


def test_distinctness_is_that_of_the_slow_reference() -> None:
    features_GKD = draw(0, 4, 6, 5) + 3
    features_GKD[1, 2] = 0.0  # an empty response
    features_GKD[2, 3] = features_GKD[2, 0]
    features_GKD[3, 1:] = 0.0
    expected = [slow.distinctness(group) for group in features_GKD.tolist()]
    torch.testing.assert_close(distinctness(features_GKD), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 7), (3, 5), (4, 4)])
def test_of_two_clusters_it_is_the_share_of_the_others_that_differ(sizes: tuple[int, int]) -> None:
    """DARLING's (K − s) / (K − 1) for a response in a cluster of s."""
    found_GK = distinctness(blobs(*sizes))
    expected = [(8 - size) / 7 for size in sizes for _ in range(size)]
    torch.testing.assert_close(found_GK, torch.tensor([expected], dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rounding", [0.0, 1e-6, 1e-3])
def test_copies_have_none_whatever_an_encoder_rounds(rounding: float) -> None:
    assert not distinctness(blobs(8, spread=rounding)).any()


def test_of_many_clusters_it_is_at_least_half_of_that() -> None:
    found_GK = distinctness(blobs(1, 1, 1, 1, 1, 1, 1, 1))
    assert found_GK.min() > 0.5 and found_GK.max() < 0.6


def test_it_does_not_depend_on_scale_shift_or_order() -> None:
    features_GKD = draw(1, 3, 6, 5) + 2
    expected_GK = distinctness(features_GKD)
    torch.testing.assert_close(distinctness(7 * features_GKD), expected_GK)
    torch.testing.assert_close(distinctness(features_GKD + 1), expected_GK)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(distinctness(features_GKD[:, order]), expected_GK[:, order])


def test_the_product_worked_by_hand() -> None:
    """Of four responses three are alike: d is ⅓ for them and 1 for the other. Rewards not above 0, and none, stay."""
    rewards_GK = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    found_GK = diversity_rewards(rewards_GK, blobs(3, 1), 1.0)
    torch.testing.assert_close(found_GK, torch.tensor([[1 / 3, 1 / 3, 0.0, 1.0]], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    some_GK = diversity_rewards(torch.tensor([[0.5, -1.0, NAN, 2.0]]), blobs(3, 1), 0.9)
    expected = torch.tensor([[0.5 * (1 - 0.9 * 2 / 3), -1.0, NAN, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(some_GK, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_copies_keep_a_tenth_at_the_strength_of_nine_tenths_and_nothing_at_one() -> None:
    ones_GK = torch.ones(1, 4)
    torch.testing.assert_close(diversity_rewards(ones_GK, blobs(4), 0.9), torch.full((1, 4), 0.1).double())
    assert not diversity_rewards(ones_GK, blobs(4), 1.0).any()
    assert diversity_rewards(ones_GK, blobs(4), 0.0).equal(ones_GK.double())


def test_groups_without_features_have_no_distinctness() -> None:
    assert distinctness(torch.zeros(2, 3, 4)).equal(torch.zeros(2, 3, dtype=torch.float64))
    assert clusters_of_features(torch.zeros(2, 3, 4), 2).equal(torch.full((2, 3), -1))


# --- clusters --------------------------------------------------------------------------------------------------------


def partition(clusters_K: Tensor) -> set[frozenset[int]]:
    numbers = clusters_K.tolist()
    return {frozenset(i for i, other in enumerate(numbers) if other == number) for number in numbers}


def test_equal_answers_are_one_cluster_within_their_group_only() -> None:
    clusters_GK = clusters_of_answers([["7", "3", None, "7"], ("3", None, None, "4")])
    assert [partition(clusters_K) for clusters_K in clusters_GK] == [
        {frozenset({0, 3}), frozenset({1}), frozenset({2})},
        {frozenset({0}), frozenset({1, 2}), frozenset({3})},
    ]


def test_features_that_lie_apart_are_found_again() -> None:
    found = partition(clusters_of_features(blobs(3, 2, 3, spread=0.3), 3)[0])
    assert found == {frozenset({0, 1, 2}), frozenset({3, 4}), frozenset({5, 6, 7})}


def test_there_are_no_more_clusters_than_responses_that_differ() -> None:
    assert partition(clusters_of_features(blobs(3, 1, spread=1e-6), 4)[0]) == {frozenset({0, 1, 2}), frozenset({3})}
    features_GKD = blobs(2, 2)
    features_GKD[0, 1] = 0.0
    assert partition(clusters_of_features(features_GKD, 4)[0]) == {frozenset({0}), frozenset({1}), frozenset({2, 3})}


def slow_k_means(rows: list[list[float]], most: int) -> list[int]:
    """Return the cluster of each row, from the farthest-first traversal on."""

    def apart(x: list[float], y: list[float]) -> float:
        return math.dist(x, y)

    def nearest(x: list[float], centers: list[list[float]]) -> int:
        return min(range(len(centers)), key=lambda m: apart(x, centers[m]))

    middle = [slow.average(column) for column in zip(*rows, strict=True)]
    centers = [max(rows, key=lambda x: apart(x, middle))]
    while len(centers) < most:
        centers.append(max(rows, key=lambda x: min(apart(x, center) for center in centers)))
    found: list[int] = []
    while found != (found := [nearest(x, centers) for x in rows]):
        members = [[x for x, number in zip(rows, found, strict=True) if number == m] for m in range(most)]
        means = [[slow.average(column) for column in zip(*chosen, strict=True)] for chosen in members]
        centers = [mean or center for mean, center in zip(means, centers, strict=True)]
    return found


@pytest.mark.parametrize("most", [2, 3, 4])
def test_clusters_are_those_of_the_slow_reference_and_of_any_order(most: int) -> None:
    features_GKD = draw(5, 6, 8, 3)
    order = torch.tensor([3, 1, 5, 0, 2, 4, 7, 6])
    for features_KD, found_K, moved_K in zip(
        features_GKD, clusters_of_features(features_GKD, most), clusters_of_features(features_GKD[:, order], most), strict=True
    ):
        assert partition(found_K) == partition(torch.tensor(slow_k_means(features_KD.tolist(), most)))
        assert partition(moved_K[order.argsort()]) == partition(found_K)
