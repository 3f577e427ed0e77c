"""The Game of 24: reach 24 with four numbers, each used exactly once. Intermediate values may be fractions.

Four numbers are drawn until the exact solver finds a solution, as it does for 1362 of the 1820 sets of four numbers
from 1 to 13."""

from collections.abc import Callable, Iterator
from itertools import repeat
from random import Random
from typing import Self

from pydantic import Field, model_validator

from tasks.base import Task
from tasks.data.draws import between
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.puzzle_tasks import DrawnPuzzle, Game, PuzzleConfig, puzzle_task

__all__ = ["Game24", "Game24Config", "game24_task"]

_NUM_NUMBERS = 4
_PUBLISHED = """\
Use numbers and basic arithmetic operations (+ - * /) to obtain 24.
Input: 4 4 6 8
Answer: (4 + 8) * (6 - 4) = 24
Input: 2 9 10 12
Answer: 2 * 12 * (10 - 9) = 24
Input: 4 9 10 13
Answer: (13 - 9) * (10 - 4) = 24
Input: 1 4 8 8
Answer: (8 / 4 + 1) * 8 = 24
Input: 5 5 5 9
Answer: 5 + 5 + 5 + 9 = 24
"""


class Game24Config(PuzzleConfig):
    """Where the puzzles come from, how they are posed, and which are drawn."""

    number_max: int = Field(default=13, ge=1, le=10**6)
    """Largest number of a drawn puzzle. Numbers are uniform in 1..number_max."""
    target: int = Field(default=24, ge=1, le=10**6)
    """The target of drawn puzzles. The published wording asks for 24."""

    @model_validator(mode="after")
    def _published_wording_asks_for_24(self) -> Self:
        if self.wording == "published" and self.target != 24:
            raise ValueError(f'target {self.target} with wording = "published", which asks for 24: set the wording to "plain"')
        return self


def game24_task(config: Game24Config, seed: int) -> Task:
    """Make the task, whose puzzles are drawn with `seed` or read from `config.path`."""
    return puzzle_task(Game24(config), config, seed)


class Game24(Game):
    """The rules of the Game of 24."""

    name: str = "game24"
    must_use_all: bool = True

    def __init__(self, config: Game24Config) -> None:
        self._config = config

    def draws(self, rng: Random, is_wanted: Callable[[Puzzle], bool]) -> Iterator[DrawnPuzzle | None]:
        return (self._draw(rng, is_wanted) for _ in repeat(None))

    def published_prompt(self, puzzle: Puzzle) -> str:
        """Return the prompt of Tree of Thoughts (Yao et al. 2023, arXiv:2305.10601) with its five examples."""
        return f"{_PUBLISHED}Input: {' '.join(map(str, puzzle.numbers))}\n"

    def _draw(self, rng: Random, is_wanted: Callable[[Puzzle], bool]) -> DrawnPuzzle | None:
        from tasks.puzzles.solver import solve

        numbers = tuple(between(rng, 1, self._config.number_max) for _ in range(_NUM_NUMBERS))
        puzzle = Puzzle(numbers=numbers, target=self._config.target, must_use_all=True)
        solution = solve(numbers, self._config.target, must_use_all=True) if is_wanted(puzzle) else None
        return None if solution is None else DrawnPuzzle(puzzle=puzzle, solution=solution.text)
