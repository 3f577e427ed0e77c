from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.ranks import OneRank, in_lockstep, own_part, partition

COSTS = st.lists(st.integers(0, 1000), max_size=30)
SIZES = st.integers(1, 6)


class RankOf:
    """One of several ranks. `gather` returns the known values `others`, with this rank's own value in its place."""

    weight_dtype = None

    def __init__(self, rank: int, others: list[Any]) -> None:
        self.rank = rank
        self.size = len(others)
        self._others = others

    def load(self, path: str, **options: Any) -> Any:
        raise NotImplementedError

    def compute(self, function: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        return function(model, *args, **kwargs)

    def gather(self, value: Any) -> list[Any]:
        return [value if rank == self.rank else other for rank, other in enumerate(self._others)]


@given(COSTS, SIZES)
def test_every_index_is_in_one_part(costs: list[int], size: int) -> None:
    found = partition(costs, size)
    assert len(found) == size
    assert sorted(index for indices in found for index in indices) == list(range(len(costs)))
    assert all(indices == sorted(indices) for indices in found)


@given(COSTS, SIZES)
def test_no_part_exceeds_another_by_more_than_the_cheapest_it_has(costs: list[int], size: int) -> None:
    """Each index goes to the smallest set, and later indices are cheaper."""
    found = partition(costs, size)
    totals = [sum(costs[i] for i in indices) for indices in found]
    for indices, total in zip(found, totals, strict=True):
        if indices:
            assert total - min(costs[i] for i in indices) <= min(totals)


def test_partitions_by_hand() -> None:
    assert partition([5, 3, 3, 2, 9], 2) == [[3, 4], [0, 1, 2]]
    assert partition([1, 1, 1], 2) == [[0, 2], [1]]
    assert partition([4], 3) == [[0], [], []]
    assert partition([], 2) == [[], []]


def test_a_rank_takes_its_own_part() -> None:
    costs = [5, 3, 3, 2, 9]
    assert [own_part(costs, RankOf(rank, [None, None])) for rank in range(2)] == partition(costs, 2)
    assert own_part(costs, OneRank()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rank", range(3))
def test_all_ranks_take_as_many_passes(rank: int) -> None:
    numbers = [2, 0, 3]
    passes = [f"{rank}/{i}" for i in range(numbers[rank])]
    assert list(in_lockstep(passes, RankOf(rank, numbers))) == passes + [None] * (3 - numbers[rank])


def test_one_rank_takes_its_passes_and_no_other() -> None:
    assert list(in_lockstep(["a", "b"], OneRank())) == ["a", "b"]
    assert list(in_lockstep([], OneRank())) == []
    assert OneRank().gather("mine") == ["mine"]
    assert OneRank().compute(lambda model, x, *, y: (model, x, y), "model", 1, y=2) == ("model", 1, 2)
