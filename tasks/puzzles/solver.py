"""An exact solver of number puzzles: it finds an expression of given numbers and + - * / that equals a target.

    solution = solve((3, 3, 8, 8), 24, must_use_all=True)
    solution.text     # "8 / (3 - 8 / 3)"; None if there is no solution, over all fractions

The solver lists all values of up to four of the numbers (at most 1170 of four, oeis.org/A140606). With five and six
numbers it searches the last step backwards: for every value of the smaller part, the other part must have one of six
values. So 2 to 6 numbers take milliseconds to tenths of a second, solvable or not.

A sign before a term adds nothing for a positive target: it can be moved outwards by swapping sums for differences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tasks.puzzles.exact_expression import Number, Term, combined, number_term

__all__ = ["MAX_SOLVABLE", "solve"]

MAX_SOLVABLE = 6
_MAX_LISTED = 4


def solve(numbers: Sequence[int], target: int, *, must_use_all: bool) -> Term | None:
    """Return a solution of as few numbers as possible, or None. It uses each number at most once, or exactly once with
    `must_use_all`. Raises ValueError for over MAX_SOLVABLE numbers, and unless numbers and target are positive."""
    if not 0 < len(numbers) <= MAX_SOLVABLE or min(*numbers, target) < 1:
        raise ValueError(f"the solver takes 1 to {MAX_SOLVABLE} positive numbers and a positive target, not {list(numbers)} and {target}")
    search = _Search(numbers)
    everything = (1 << len(numbers)) - 1
    parts = [everything] if must_use_all else sorted(range(1, everything + 1), key=int.bit_count)
    return next((found for part in parts if (found := search.find(part, target)) is not None), None)


@dataclass(frozen=True, slots=True)
class _Step:
    """The last step to a value: a value of one part of the numbers, a sign, and a value of the other part."""

    left: int
    left_value: Number
    sign: str
    right: int
    right_value: Number


class _Search:
    """The values found so far, by the part of the numbers that they use. A part is a bit set."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._values: dict[int, dict[Number, _Step | None]] = {1 << place: {number: None} for place, number in enumerate(numbers)}

    def find(self, part: int, target: Number) -> Term | None:
        """Return a term that makes `target` of all numbers of `part`."""
        if part in self._values:
            return self._term(part, target) if target in self._values[part] else None
        for small, large in _halves(part):
            for value in self._list(small):
                if target == value == 0:
                    return combined(self._term(small, 0), "*", self._sum(large))
                for sign, other, is_left in _completions(value, target):
                    found = self._get(large, other)
                    if found is not None:
                        mine = self._term(small, value)
                        return combined(mine, sign, found) if is_left else combined(found, sign, mine)
        return None

    def _get(self, part: int, target: Number) -> Term | None:
        if part.bit_count() > _MAX_LISTED:
            return self.find(part, target)
        return self._term(part, target) if target in self._list(part) else None

    def _list(self, part: int) -> dict[Number, _Step | None]:
        """Return every value of `part` with the step that makes it."""
        if part not in self._values:
            values: dict[Number, _Step | None] = {}
            for left, right in _halves(part):
                for a in self._list(left):
                    for b in self._list(right):
                        values.setdefault(a + b, _Step(left, a, "+", right, b))
                        values.setdefault(a - b, _Step(left, a, "-", right, b))
                        values.setdefault(b - a, _Step(right, b, "-", left, a))
                        values.setdefault(a * b, _Step(left, a, "*", right, b))
                        if b:
                            values.setdefault(_quotient(a, b), _Step(left, a, "/", right, b))
                        if a:
                            values.setdefault(_quotient(b, a), _Step(right, b, "/", left, a))
            self._values[part] = values
        return self._values[part]

    def _term(self, part: int, value: Number) -> Term:
        step = self._values[part][value]
        if step is None:
            return number_term(value)
        return combined(self._term(step.left, step.left_value), step.sign, self._term(step.right, step.right_value))

    def _sum(self, part: int) -> Term:
        first, *others = (number_term(number) for place, number in enumerate(self._numbers) if part >> place & 1)
        for term in others:
            first = combined(first, "+", term)
        return first


def _halves(part: int) -> Iterator[tuple[int, int]]:
    """Yield each way to divide `part` in two once, with the smaller side first."""
    lowest = part & -part
    side = part
    while side := (side - 1) & part:
        if side & lowest:
            rest = part ^ side
            yield (side, rest) if side.bit_count() <= rest.bit_count() else (rest, side)


def _completions(value: Number, target: Number) -> Iterator[tuple[str, Number, bool]]:
    """Yield what makes `target` of `value`: a sign, the other value, and whether `value` stands to the left."""
    yield "+", target - value, True
    yield "-", value - target, True
    yield "-", target + value, False
    if value:
        yield "*", _quotient(target, value), True
        yield "/", target * value, False
        if target:
            yield "/", _quotient(value, target), True


def _quotient(a: Number, b: Number) -> Number:
    """Return a / b, as an int where it is one: arithmetic of ints is many times faster than that of Fractions."""
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    quotient = Fraction(a) / b
    return quotient.numerator if quotient.denominator == 1 else quotient
