"""Tasks of number puzzles, which are drawn without end from a seed or read from files.

    task = puzzle_task(Countdown(config.countdown), config.countdown, seed)     # tasks.countdown, tasks.game24
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

Drawn problem i of a split depends on (seed, split, i) and the configuration only. Its `answer` is a solution."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count, islice
from random import Random
from typing import Literal, Protocol

from pydantic import Field

from buffers.fields import LocalPath
from tasks.base import Message, Problem, Section, Task, TaskError, Verdict, with_instruction
from tasks.data.held_out import SPLITS, require_split
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.stated_expression import final_expression

__all__ = ["DrawnPuzzle", "Game", "PuzzleConfig", "puzzle_task"]

_MAX_DRAWS = 20_000


class PuzzleConfig(Section):
    """Where puzzles come from and how they are posed."""

    path: LocalPath | None = None
    """A .parquet or .jsonl file of puzzles, or a directory of them (docs/tasks.md has the columns). Unset: puzzles are
    drawn."""
    wording: Literal["plain", "published"] = "plain"
    """How a puzzle is posed. "plain": the question and the instruction below. "published": the prompt of the papers
    (docs/tasks.md), which has instructions of its own."""
    instruction: str = "Answer with the expression only."
    """Follows the plain question, on a line of its own. It is not part of the problem id."""
    held_out_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of all puzzles that only "test" has. "dev" has as many of its own, and "train" has the rest, whatever the
    seed. Files that are splits already are taken as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnPuzzle:
    """A puzzle and one of its solutions."""

    puzzle: Puzzle
    solution: str


class Game(Protocol):
    """The rules of a game: which puzzles it has. A game holds its configuration and no other state."""

    name: str
    must_use_all: bool

    def draws(self, rng: Random, is_wanted: Callable[[Puzzle], bool]) -> Iterator[DrawnPuzzle | None]:
        """Yield endless attempts, drawn with `rng.random` only. None is one that makes no puzzle that is wanted."""

    def published_prompt(self, puzzle: Puzzle) -> str:
        """Return the prompt in the words of the papers."""


def puzzle_task(game: Game, config: PuzzleConfig, seed: int) -> Task:
    """Read the puzzles of `config.path` or draw them. Raises TaskError if a split has no drawn puzzle."""
    return _DrawnPuzzles(game, config, seed) if config.path is None else _FiledPuzzles(game, config, config.path)


class _Puzzles(Task):
    """What drawn puzzles and those of files share: how they are posed and judged."""

    deadline_s: float = 2.0

    def __init__(self, game: Game, config: PuzzleConfig) -> None:
        self.name: str = game.name
        self._game = game
        self._config = config

    def prompt(self, problem: Problem) -> list[Message]:
        if self._config.wording == "published":
            content = self._game.published_prompt(Puzzle.of(problem.question))
        else:
            content = with_instruction(problem.question, self._config.instruction)
        return [{"role": "user", "content": content}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the stated expression in its canonical spelling (`tasks.puzzles.stated_expression`)."""
        return final_expression(response, self.judging)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judge by the puzzle that the question poses (`Puzzle.judge`)."""
        return Puzzle.of(problem.question).judge(response, self.judging)

    def _problem(self, place: str, puzzle: Puzzle, solution: str) -> Problem:
        digest = blake2b(puzzle.question.encode(), digest_size=4).hexdigest()
        return Problem(
            task=self.name,
            problem_id=f"{self.name}/{place}-{digest}",
            question=puzzle.question,
            answer=solution,
            meta={"kind": f"{len(puzzle.numbers)} numbers"},
        )


class _DrawnPuzzles(_Puzzles):
    def __init__(self, game: Game, config: PuzzleConfig, seed: int) -> None:
        super().__init__(game, config)
        self._seed = seed
        for split in SPLITS:
            self.problem(split, 0)

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the endless stream of `split`. Raises TaskError for a split that is not one of SPLITS."""
        require_split(self.name, split)
        return (self.problem(split, index) for index in count())

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of `split` without making those before it."""
        require_split(self.name, split)
        if index < 0:
            raise ValueError(f"problem index {index} is negative")
        rng = Random(f"{self._seed}/{split}/{index}")
        draws = self._game.draws(rng, lambda puzzle: puzzle.split(self._config.held_out_share) == split)
        for drawn in islice(draws, _MAX_DRAWS):
            if drawn is not None:
                return self._problem(f"{split}/{index:06d}", drawn.puzzle, drawn.solution)
        raise TaskError(
            f"task {self.name}: no puzzle for split '{split}' in {_MAX_DRAWS} draws with held_out_share {self._config.held_out_share}: "
            "too few have a solution; widen the ranges"
        )


class _FiledPuzzles(_Puzzles):
    def __init__(self, game: Game, config: PuzzleConfig, path: str) -> None:
        super().__init__(game, config)
        self._path = path

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the puzzles of the file in its order (`tasks.puzzles.files`)."""
        from tasks.puzzles.files import read_puzzles

        filed = read_puzzles(self.name, self._path, split, must_use_all=self._game.must_use_all, held_out_share=self._config.held_out_share)
        return (self._problem(one.place, one.puzzle, one.solution) for one in filed)
