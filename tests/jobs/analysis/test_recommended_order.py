"""The order that a report recommends is the one with the fewest verifications, as far as the prompts can tell."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.analysis.order_statistics import JudgedCandidates, Outcomes, judge
from jobs.analysis.recommended_order import chance_of_as_few, recommend

SIZE = 16


def pools(num: int, **first_correct: object) -> Outcomes:
    """`num` prompts with one correct candidate of 16, which each order meets at its place, from 1."""
    problems = []
    for prompt in range(num):
        ranks: dict[str, NDArray[np.int64]] = {}
        for order, places in first_correct.items():
            place = places[prompt] if isinstance(places, list) else places
            ranks[order] = np.roll(np.arange(SIZE), 1 - int(place))  # candidate 0, the correct one, has rank place - 1
        correct_N = np.arange(SIZE) == 0
        problems.append(JudgedCandidates(verified_N=np.ones(SIZE, dtype=bool), correct_N=correct_N, ranks=ranks))
    return judge(problems)


def test_the_best_order_is_named_with_those_that_cannot_be_told_from_it() -> None:
    near = [1, 3, 2, 2, 1, 4, 2, 1, 3, 2]
    found = recommend(pools(10, good=2, near=near, bad=12), num_resamples=400)
    assert found is not None
    assert (found.order, found.not_worse, found.better_than_random) == ("good", ("near",), True)
    assert found.first_correct.value == 2.0


def test_random_choice_is_named_where_every_order_is_worse() -> None:
    found = recommend(pools(10, bad=12, worse=15), num_resamples=400)
    assert found is not None  # random choice needs 17 / 2 verifications
    assert (found.order, found.not_worse, found.better_than_random) == ("random", (), False)


def test_an_order_that_is_best_by_luck_is_not_better_than_random() -> None:
    found = recommend(pools(6, lucky=[1, 16, 3, 15, 2, 11]), num_resamples=400)
    assert found is not None and found.order == "lucky"
    assert found.not_worse == ("random",) and not found.better_than_random


@pytest.mark.parametrize("num_prompts", [2, 5, 20])
def test_the_best_of_eleven_random_orders_is_rarely_called_better(num_prompts: int) -> None:
    rng = np.random.default_rng(3)
    named = by_intervals = 0
    for _ in range(100):
        found = recommend(
            pools(num_prompts, **{f"order{i}": rng.integers(1, SIZE + 1, num_prompts).tolist() for i in range(11)}), num_resamples=200
        )
        assert found is not None
        named += found.better_than_random
        by_intervals += "random" not in (found.order, *found.not_worse)
    assert named <= 6 < 20 <= by_intervals


def test_the_chance_of_as_few_is_that_of_all_orders() -> None:
    """One correct of 4 in each of two pools: a mean of 1.5 or less has 3 of 16 equally likely pairs of places."""
    four, one = np.array([4, 4]), np.array([1, 1])
    assert chance_of_as_few(np.array([1.0, 2.0]), four, one, seed=0) == pytest.approx(3 / 16, abs=0.02)
    assert chance_of_as_few(np.array([4.0, 4.0]), four, one, seed=0) == 1.0
    two_of_three = np.array([2])  # the first place has a correct one in 2 of 3 orders
    assert chance_of_as_few(np.array([1.0]), np.array([3]), two_of_three, seed=0) == pytest.approx(2 / 3, abs=0.03)


def test_one_solvable_prompt_recommends_nothing() -> None:
    assert recommend(pools(1, good=1)) is None
