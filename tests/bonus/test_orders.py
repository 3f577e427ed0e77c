import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bonus.config import ORDER_NAMES, SelectionConfig
from bonus.coreset import select
from bonus.covariance import RIDGE_FLOOR
from bonus.orders import (
    ORDERS,
    Pool,
    determinantal_order,
    kmeans_order,
    likeliest_order,
    longest_order,
    order_pool,
    outcome_first,
    quality_features,
    quality_order,
    random_order,
    repexp_order,
    resolve_ridge,
    scored_order,
    unlikeliest_order,
    votes_order,
)

DIM = 6
CONFIG = SelectionConfig(dim=DIM)
every_order = pytest.mark.parametrize("name", list(ORDERS))
every_order_but_random = pytest.mark.parametrize("name", [name for name in ORDERS if name != "random"])
every_order_of_values = pytest.mark.parametrize("name", [name for name in ORDERS if name != "random"])


@pytest.fixture(autouse=True)
def _needs_scikit_learn(request: pytest.FixtureRequest) -> None:
    if "kmeans" in request.node.name:
        pytest.importorskip("sklearn")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_pool(seed: int, num: int, *, empty: tuple[int, ...] = ()) -> Pool:
    valid_N = torch.ones(num, dtype=torch.bool)
    valid_N[list(empty)] = False
    features_ND, mean_logprob_N = draw(seed, num, DIM), -draw(seed + 1, num).abs()
    features_ND[~valid_N], mean_logprob_N[~valid_N] = math.nan, math.nan
    return Pool(
        features_ND=features_ND,
        valid_N=valid_N,
        mean_logprob_N=mean_logprob_N,
        lengths_N=torch.arange(num) % 4 * valid_N,
        answers=[f"{index % 3}" if index % 5 else None for index in range(num)],
    )


def everyone(num: int) -> Tensor:
    return torch.ones(num, dtype=torch.bool)


# -- every order


@every_order
@pytest.mark.parametrize("empty", [(), (0, 4, 5), tuple(range(12))])
def test_an_order_is_a_permutation_with_the_empty_candidates_last_in_index_order(name: str, empty: tuple[int, ...]) -> None:
    order = order_pool(name, draw_pool(0, 12, empty=empty), CONFIG).tolist()
    assert sorted(order) == list(range(12))
    assert order[12 - len(empty) :] == list(empty)


@every_order
def test_an_order_is_the_same_every_time_and_leaves_the_pool_as_it_was(name: str) -> None:
    pool = draw_pool(3, 20, empty=(7,))
    first_N = order_pool(name, pool, CONFIG)
    assert torch.equal(first_N, order_pool(name, draw_pool(3, 20, empty=(7,)), CONFIG))
    assert torch.equal(first_N, order_pool(name, pool, CONFIG))
    assert torch.equal(pool.features_ND[pool.valid_N], draw_pool(3, 20).features_ND[pool.valid_N])


@every_order_of_values
def test_empty_candidates_do_not_change_the_order_of_the_others(name: str) -> None:
    alone, among = draw_pool(5, 10), draw_pool(5, 10)
    places = torch.tensor([1, 2, 4, 5, 6, 8, 9, 10, 11, 13])
    answers = dict(zip(places.tolist(), alone.answers, strict=True))
    wide = dataclasses.replace(draw_pool(0, 14, empty=(0, 3, 7, 12)), answers=[answers.get(place) for place in range(14)])
    wide.features_ND[places], wide.mean_logprob_N[places], wide.lengths_N[places] = among.features_ND, among.mean_logprob_N, among.lengths_N
    assert order_pool(name, wide, CONFIG)[:10].tolist() == places[order_pool(name, alone, CONFIG)].tolist()


@every_order
def test_a_pool_of_one_or_of_none_is_ordered(name: str) -> None:
    assert order_pool(name, draw_pool(0, 1), CONFIG).tolist() == [0]
    assert order_pool(name, draw_pool(0, 0), CONFIG).tolist() == []


@every_order_but_random
def test_candidates_that_are_all_alike_come_in_index_order(name: str) -> None:
    pool = dataclasses.replace(
        draw_pool(0, 9),
        features_ND=draw(1, 1, DIM).expand(9, DIM),
        mean_logprob_N=torch.full((9,), -0.3),
        lengths_N=torch.full((9,), 5),
        answers=["7"] * 9,
    )
    assert order_pool(name, pool, CONFIG).tolist() == list(range(9))


@every_order
def test_every_order_says_what_it_is_in_one_line(name: str) -> None:
    assert ORDERS[name].description
    assert "\n" not in ORDERS[name].description


def test_the_orders_are_those_that_a_report_names() -> None:
    assert tuple(ORDERS) == ORDER_NAMES


# -- each order by itself


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_repexp_is_the_selection_carried_on_to_the_last_candidate(ridge: float) -> None:
    features_ND = draw(0, 20, DIM)
    assert torch.equal(repexp_order(features_ND, everyone(20), ridge=ridge, center="none"), select(features_ND, 20, ridge=ridge)[0])
    centered_ND = features_ND - features_ND.mean(0)
    assert torch.equal(repexp_order(features_ND, everyone(20), ridge=ridge, center="pool"), select(centered_ND, 20, ridge=ridge)[0])


def test_centring_over_the_pool_takes_the_common_direction_away() -> None:
    features_ND = torch.tensor([[100.0, 0.0], [101.0, 0.1], [99.0, -3.0]], dtype=torch.float64)
    assert repexp_order(features_ND, everyone(3), ridge=1.0, center="none")[0] == 1
    assert repexp_order(features_ND, everyone(3), ridge=1.0, center="pool")[0] == 2


def test_the_automatic_ridge_is_the_mean_energy_of_the_features_used() -> None:
    features_ND = draw(0, 20, DIM) + 10
    centered_ND = features_ND - features_ND.mean(0)
    expected_N = select(centered_ND, 20, ridge=centered_ND.square().sum(1).mean().item())[0]
    assert torch.equal(repexp_order(features_ND, everyone(20), ridge="auto", center="pool"), expected_N)
    assert resolve_ridge("auto", torch.zeros(3, 2)) == resolve_ridge("auto", torch.zeros(0, 2)) == RIDGE_FLOOR


def test_quality_scales_centered_unit_features_by_likelihood() -> None:
    features_ND, logprob_N = draw(0, 12, DIM), -draw(1, 12).abs()
    centered_ND = features_ND - features_ND.mean(0)
    scale_N = (2.5 * (logprob_N - logprob_N.max())).exp()
    expected_ND = scale_N[:, None] * centered_ND / centered_ND.norm(dim=1, keepdim=True)
    torch.testing.assert_close(quality_features(features_ND, everyone(12), logprob_N, exponent=2.5), expected_ND, rtol=1e-12, atol=1e-14)
    actual_N = quality_order(features_ND, everyone(12), logprob_N, ridge=1.0, exponent=2.5)
    assert torch.equal(actual_N, select(expected_ND, 12, ridge=1.0)[0])


def test_quality_with_a_large_exponent_is_the_likeliest_first() -> None:
    features_ND, logprob_N = draw(0, 12, DIM), -draw(1, 12).abs()
    actual_N = quality_order(features_ND, everyone(12), logprob_N, ridge=1.0, exponent=30.0)
    assert torch.equal(actual_N, likeliest_order(logprob_N, everyone(12)))


def test_quality_without_exponent_does_not_look_at_the_likelihood() -> None:
    features_ND = draw(0, 12, DIM)
    orders = [quality_order(features_ND, everyone(12), -draw(seed, 12).abs(), ridge=1.0, exponent=0.0) for seed in (1, 2)]
    assert torch.equal(*orders)


def test_the_determinantal_order_multiplies_the_determinant_most_with_every_pick() -> None:
    features_ND = draw(0, 10, DIM)
    unit_ND = torch.nn.functional.normalize(features_ND - features_ND.mean(0), dim=1)
    kernel_NN = unit_ND @ unit_ND.mT
    order = determinantal_order(features_ND, everyone(10)).tolist()
    for t in range(1, DIM - 1):
        gains = [float(torch.linalg.det(kernel_NN[[*order[:t], i]][:, [*order[:t], i]])) for i in order[t:]]
        assert gains[0] == pytest.approx(max(gains), rel=1e-3)


def test_kmeans_takes_one_of_each_cluster_from_the_largest_to_the_smallest() -> None:
    centres_CD = 100.0 * torch.eye(3, DIM, dtype=torch.float64)
    cluster_of = [2, 0, 1, 0, 1, 0, 0, 1]
    distance_N = torch.tensor([0.0, 3.0, 2.0, 1.0, 1.0, -2.0, -1.5, -1.5], dtype=torch.float64)  # along an axis of its own, near the center
    features_ND = centres_CD[cluster_of]
    features_ND[:, 5] = distance_N
    order = kmeans_order(features_ND, everyone(8), max_clusters=3, seed=0).tolist()
    assert order[:3] == [3, 4, 0]  # cluster 0 has its center at 0.125, cluster 1 at 0.5, cluster 2 a single member
    assert order[3:] == [1, 2, 5, 6, 7]


def test_kmeans_has_no_more_clusters_than_distinct_features() -> None:
    features_ND = draw(0, 2, DIM)[[0, 1, 1, 0, 1]]
    assert kmeans_order(features_ND, everyone(5), max_clusters=4, seed=0).tolist() == [1, 0, 2, 3, 4]


def test_likelihood_and_length_orders_sort_with_ties_by_index() -> None:
    values_N = torch.tensor([-2.0, -1.0, -3.0, -1.0])
    assert likeliest_order(values_N, everyone(4)).tolist() == [1, 3, 0, 2]
    assert unlikeliest_order(values_N, everyone(4)).tolist() == [2, 0, 1, 3]
    assert longest_order(torch.tensor([5, 9, 5, 7]), everyone(4)).tolist() == [1, 3, 0, 2]


def test_the_random_order_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    first_N = random_order(50, 1)
    torch.manual_seed(9)
    assert torch.equal(first_N, random_order(50, 1))
    assert not torch.equal(first_N, random_order(50, 2))
    pool = draw_pool(0, 50)
    assert torch.equal(order_pool("random", pool, SelectionConfig(dim=DIM, seed=1)), first_N)


def test_every_distinct_answer_comes_once_before_any_comes_twice() -> None:
    answers = ["a", "b", None, "a", "a", "c", "b", None]
    assert outcome_first(torch.arange(8), answers).tolist() == [0, 1, 5, 3, 6, 4, 2, 7]
    assert outcome_first(torch.arange(7, -1, -1), answers).tolist() == [6, 5, 4, 3, 1, 0, 7, 2]
    assert outcome_first(torch.arange(2), [None, None]).tolist() == [0, 1]


def test_among_distinct_answers_an_order_of_its_own_decides() -> None:
    pool = dataclasses.replace(
        draw_pool(0, 6), answers=["x", "y", "y", None, "z", "y"], mean_logprob_N=torch.tensor([-3.0, -2.0, -1.0, -0.1, -0.5, -4.0])
    )
    assert order_pool("distinct_answers", pool, CONFIG).tolist() == [0, 1, 4, 2, 5, 3]
    assert order_pool("answers_by_likelihood", pool, CONFIG).tolist() == [4, 2, 0, 1, 5, 3]
    assert order_pool("answers_by_votes", pool, CONFIG).tolist() == [1, 0, 4, 2, 5, 3]
    novel = [index for index in order_pool("repexp", pool, CONFIG).tolist() if index != 3]
    firsts = list({pool.answers[index]: index for index in reversed(novel)}.values())
    assert sorted(order_pool("answers_by_novelty", pool, CONFIG).tolist()[:3]) == sorted(firsts)
    assert order_pool("answers_by_novelty", pool, CONFIG)[0] == novel[0]


def test_an_empty_text_that_is_an_answer_has_its_votes() -> None:
    assert votes_order(["", None, "", "a"]).tolist() == [0, 2, 3, 1]


# -- why


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 15), st.sampled_from(["repexp", "quality"]), st.sampled_from([1.0, "auto"]))
def test_the_scored_order_is_the_order_with_falling_scores(seed: int, num: int, name: str, ridge: float) -> None:
    pool = draw_pool(seed, num, empty=tuple(range(0, num, 4)))
    config = SelectionConfig(dim=DIM, ridge=ridge, center="pool", quality_exponent=0.5)
    order_N, score_N = scored_order(name, pool, config)
    num_valid = int(pool.valid_N.sum())
    assert torch.equal(order_N, order_pool(name, pool, config))
    assert (score_N[:num_valid].diff() <= 0).all()
    assert score_N[num_valid:].isnan().all()
    assert len(score_N) == num


def test_only_a_greedy_order_can_say_why() -> None:
    with pytest.raises(ValueError, match="'likeliest' has no scores"):
        scored_order("likeliest", draw_pool(0, 4), CONFIG)


# -- what is refused


def test_a_pool_that_does_not_fit_together_is_refused() -> None:
    pool = draw_pool(0, 5)
    for change, message in [
        ({"features_ND": draw(0, 5, DIM + 1)}, r"features_ND must be 5 x 6"),
        ({"valid_N": torch.ones(5)}, "valid_N must be bool"),
        ({"mean_logprob_N": torch.zeros(4)}, "of 5 candidates"),
        ({"lengths_N": torch.zeros(6)}, "of 5 candidates"),
        ({"answers": ["1"]}, "of 5 candidates"),
    ]:
        with pytest.raises(ValueError, match=message):
            order_pool("random", dataclasses.replace(pool, **change), CONFIG)


def test_a_value_that_is_not_finite_is_refused_by_candidate() -> None:
    pool = draw_pool(0, 5)
    pool.features_ND[3, 1] = math.nan
    with pytest.raises(ValueError, match="feature of candidate 3"):
        order_pool("longest", pool, CONFIG)
    pool = draw_pool(0, 5)
    pool.mean_logprob_N[2] = -math.inf
    with pytest.raises(ValueError, match="log-prob of candidate 2"):
        order_pool("repexp", pool, CONFIG)


def test_an_unknown_order_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown order 'novel'; there are: repexp, quality"):
        order_pool("novel", draw_pool(0, 4), CONFIG)
