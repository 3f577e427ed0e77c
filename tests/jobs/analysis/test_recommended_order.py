"""The order that a report recommends is the one with the fewest verifications, as far as the prompts can tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jobs.analysis.order_statistics import JudgedCandidates, Outcomes, judge
from jobs.analysis.recommended_order import recommend

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


def test_one_solvable_prompt_recommends_nothing() -> None:
    assert recommend(pools(1, good=1)) is None
