"""Countdown: reach the target with some of the numbers, each used at most once (with `use_all`, all of them).

A puzzle is drawn by combining numbers at random, two at a time, into positive integers until one is left, the target.
So it has a solution that uses every number. If the target is among the numbers, the puzzle is drawn again."""

from collections.abc import Callable, Iterator
from itertools import repeat
from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.base import Task
from tasks.data.draws import below, between
from tasks.puzzles.exact_expression import Term, combined, number_term
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.puzzle_tasks import DrawnPuzzle, Game, PuzzleConfig, puzzle_task

__all__ = ["Countdown", "CountdownConfig", "countdown_task"]

Sign = Literal["+", "-", "*", "/"]


class CountdownConfig(PuzzleConfig):
    """Where Countdown's puzzles come from, how they are posed, and how hard drawn ones are."""

    use_all: bool = False
    """Whether an answer must use every number. False: each at most once. The question says so, so the problem id
    depends on it."""
    min_numbers: int = Field(default=3, ge=2, le=6)
    """Fewest numbers of a puzzle; each count up to max_numbers is equally frequent."""
    max_numbers: int = Field(default=4, ge=2, le=6)
    """Most numbers of a puzzle."""
    number_min: int = Field(default=1, ge=1, le=10**6)
    """Smallest number."""
    number_max: int = Field(default=99, ge=1, le=10**6)
    """Largest number. Numbers are uniform in number_min..number_max and may be equal."""
    target_min: int = Field(default=10, ge=1, le=10**6)
    """Smallest target."""
    target_max: int = Field(default=99, ge=1, le=10**6)
    """Largest target."""
    operations: tuple[Sign, ...] = ("+", "-", "*", "/")
    """The operations of the solution that a puzzle is drawn with. Answers may always use all four."""

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for low, high in (("min_numbers", "max_numbers"), ("number_min", "number_max"), ("target_min", "target_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low)} exceeds {high} {getattr(self, high)}")
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations {list(self.operations)}: name at least one of + - * /, none twice")
        return self


def countdown_task(config: CountdownConfig, seed: int) -> Task:
    """Make the task, whose puzzles are drawn with `seed` or read from `config.path`."""
    return puzzle_task(Countdown(config), config, seed)


class Countdown(Game):
    """The rules of Countdown."""

    name: str = "countdown"

    def __init__(self, config: CountdownConfig) -> None:
        self._config = config
        self.must_use_all: bool = config.use_all

    def draws(self, rng: Random, is_wanted: Callable[[Puzzle], bool]) -> Iterator[DrawnPuzzle | None]:
        num_numbers = between(rng, self._config.min_numbers, self._config.max_numbers)
        return (self._draw(rng, num_numbers, is_wanted) for _ in repeat(None))

    def published_prompt(self, puzzle: Puzzle) -> str:
        """Return the prompt of TinyZero (github.com/Jiayi-Pan/TinyZero), which others use too."""
        return (
            f"Using the numbers [{', '.join(map(str, puzzle.numbers))}], create an equation that equals {puzzle.target}. You can use basic "
            "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return "
            "the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
        )

    def _draw(self, rng: Random, num_numbers: int, is_wanted: Callable[[Puzzle], bool]) -> DrawnPuzzle | None:
        config = self._config
        numbers = tuple(between(rng, config.number_min, config.number_max) for _ in range(num_numbers))
        solution = self._combine(rng, [number_term(number) for number in numbers])
        if solution is None or solution.value in numbers or not config.target_min <= _whole(solution) <= config.target_max:
            return None
        puzzle = Puzzle(numbers=numbers, target=_whole(solution), must_use_all=config.use_all)
        return DrawnPuzzle(puzzle=puzzle, solution=solution.text) if is_wanted(puzzle) else None

    def _combine(self, rng: Random, terms: list[Term]) -> Term | None:
        """Combine all terms into one. Return None if no operation makes a positive integer of some pair."""
        while len(terms) > 1:
            left = terms.pop(below(rng, len(terms)))
            right = terms.pop(below(rng, len(terms)))
            if _whole(left) < _whole(right):
                left, right = right, left
            possible = [sign for sign in self._config.operations if _makes_whole_positive(_whole(left), sign, _whole(right))]
            if not possible:
                return None
            terms.append(combined(left, possible[below(rng, len(possible))], right))
        return terms[0]


def _whole(term: Term) -> int:
    assert term.value is not None
    return int(term.value)


def _makes_whole_positive(left: int, sign: str, right: int) -> bool:
    """Return whether `left sign right` is a positive integer, given `left >= right`."""
    return {"-": left > right, "/": left % right == 0}.get(sign, True)
