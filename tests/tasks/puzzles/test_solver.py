from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.puzzles.exact_expression import parse
from tasks.puzzles.solver import solve

NUM_SOLVABLE = 1362  # of the games of 24 with numbers 1..13


@cache
def values(numbers: tuple[int, ...]) -> frozenset[Fraction]:
    """All values of sorted `numbers`, the slow way: combine any two of them, then the rest."""
    return frozenset(combine(tuple(map(Fraction, numbers))))


def combine(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    if len(numbers) == 1:
        return set(numbers)
    found: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [number for place, number in enumerate(numbers) if place not in (i, j)]
        a, b = numbers[i], numbers[j]
        for value in (a + b, a - b, a * b, *([a / b] if b else [])):
            found |= combine((*rest, value))
    return found


@given(st.lists(st.integers(1, 13), min_size=1, max_size=4), st.integers(1, 60), st.booleans())
def test_finds_a_solution_exactly_where_there_is_one(numbers: list[int], target: int, must_use_all: bool) -> None:
    sizes = [len(numbers)] if must_use_all else range(1, len(numbers) + 1)
    parts = [part for size in sizes for part in itertools.combinations(sorted(numbers), size)]
    solution = solve(numbers, target, must_use_all=must_use_all)
    assert (solution is not None) is any(target in values(part) for part in parts)
    if solution is not None:
        expression = parse(solution.text)
        assert expression.value == solution.value == target
        used = sorted(map(int, expression.numbers))
        assert used == sorted(numbers) if must_use_all else tuple(used) in parts


@pytest.mark.parametrize(
    ("numbers", "target", "is_solvable"),
    [
        ((3, 3, 8, 8), 24, True),  # 8 / (3 - 8 / 3)
        ((1, 5, 5, 5), 24, True),  # 5 * (5 - 1 / 5)
        ((1, 1, 1, 1), 24, False),
        ((1, 2, 3, 4, 5), 119, True),
        ((25, 50, 75, 100, 3, 6), 952, True),
        ((1, 1, 1, 1, 1, 1), 12, False),
        ((97, 89, 83, 79, 73, 71), 999_999, False),
    ],
)
def test_known_puzzles_of_up_to_six_numbers(numbers: tuple[int, ...], target: int, is_solvable: bool) -> None:
    solution = solve(numbers, target, must_use_all=True)
    assert (solution is not None) is is_solvable
    if solution is not None:
        expression = parse(solution.text)
        assert expression.value == target
        assert sorted(expression.numbers) == sorted(numbers)


@settings(max_examples=20)
@given(st.permutations([2, 3, 5, 7, 11, 13]), st.lists(st.sampled_from("+-*/"), min_size=5, max_size=5))
def test_values_of_six_numbers_are_found_again(numbers: list[int], signs: list[str]) -> None:
    """From the left: (((((a . b) . c) . d) . e) . f)."""
    value = Fraction(numbers[0])
    for sign, number in zip(signs, numbers[1:], strict=True):
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[sign]
    if value > 0 and value.denominator == 1:
        solution = solve(numbers, int(value), must_use_all=True)
        assert solution is not None and parse(solution.text).value == value


def test_of_several_solutions_one_of_the_fewest_numbers_is_found() -> None:
    solution = solve((1, 2, 3, 8), 24, must_use_all=False)
    assert solution is not None and solution.text == "3 * 8"


def test_exactly_the_known_games_of_24_have_a_solution() -> None:
    games = itertools.combinations_with_replacement(range(1, 14), 4)
    assert sum(solve(numbers, 24, must_use_all=True) is not None for numbers in games) == NUM_SOLVABLE


@pytest.mark.parametrize(("numbers", "target"), [((), 1), ((1,) * 7, 1), ((0, 1), 1), ((1, 2), 0), ((1, -2), 3)])
def test_other_puzzles_are_refused(numbers: tuple[int, ...], target: int) -> None:
    with pytest.raises(ValueError, match="1 to 6 positive numbers"):
        solve(numbers, target, must_use_all=True)
