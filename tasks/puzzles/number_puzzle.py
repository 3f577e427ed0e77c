"""A number puzzle, as in Countdown and the Game of 24: reach a target from given numbers with + - * / and brackets.

    puzzle = Puzzle(numbers=(95, 24, 21), target=98, must_use_all=False)
    verdict = puzzle.judge("95 + (24 - 21) = 98")
    Puzzle.of(puzzle.question) == puzzle

The question alone is enough to judge an answer, so any verifier process and any reader of a log can do it.
`tasks.puzzles.stated_expression` says how an answer is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.base import DEFAULT_JUDGING, MAX_ANSWER_CHARS, JudgingConfig, Verdict, VerdictStatus
from tasks.data.held_out import split_of
from tasks.puzzles.exact_expression import ExpressionError, Number
from tasks.puzzles.stated_expression import read_expression, stated_expression

__all__ = ["Puzzle"]

_QUESTION = re.compile(
    r"Using the numbers \[([0-9]++(?:, [0-9]++)*+)\], write an arithmetic expression that equals ([0-9]++)\. "
    r"Use only \+ - \* / and parentheses, and use each number (exactly|at most) once\."
)
_MAX_VALUE_CHARS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Puzzle:
    """Positive numbers and a positive target. Each number may be used once, or must be if `must_use_all` is set."""

    numbers: tuple[int, ...]
    target: int
    must_use_all: bool

    @classmethod
    def of(cls, question: str) -> Puzzle:
        """Return the puzzle that `question` poses. Raises ValueError for any other text."""
        match = _QUESTION.match(question)
        if match is None:
            raise ValueError(f"this is no number puzzle: {question[:80]!r}")
        return cls(numbers=tuple(map(int, match[1].split(", "))), target=int(match[2]), must_use_all=match[3] == "exactly")

    @property
    def question(self) -> str:
        often = "exactly" if self.must_use_all else "at most"
        return (
            f"Using the numbers [{', '.join(map(str, self.numbers))}], write an arithmetic expression that equals {self.target}. "
            f"Use only + - * / and parentheses, and use each number {often} once."
        )

    def split(self, held_out_share: float) -> str:
        """Return the split of the puzzle (`tasks.data.held_out`), by its numbers, in any order, and its target."""
        return split_of(f"{','.join(map(str, sorted(self.numbers)))}={self.target}", held_out_share)

    def judge(self, response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> Verdict:
        """Give reward 1.0 for an expression of the right value and numbers, else 0.0; `detail` says what is wrong. The
        status is MALFORMED for an answer that is not an expression, and NO_ANSWER if there is no answer."""
        stated = stated_expression(response, judging)
        if stated is None:
            return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
        try:
            expression = read_expression(stated)
        except ExpressionError as error:
            answer = stated.strip()[:MAX_ANSWER_CHARS]
            return Verdict(status=VerdictStatus.MALFORMED, reward=0.0, answer=answer, detail=f"no expression: {error}")
        faults = [*self._misused(expression.numbers), *self._missed(expression.value)]
        return Verdict(
            status=VerdictStatus.INCORRECT if faults else VerdictStatus.CORRECT,
            reward=0.0 if faults else 1.0,
            answer=expression.text[:MAX_ANSWER_CHARS],
            detail="; ".join(faults) or None,
        )

    def _misused(self, numbers: tuple[Number, ...]) -> Iterator[str]:
        """Yield what is wrong with the numbers used: the first fault of each kind."""
        given, used = Counter[Number](self.numbers), Counter(numbers)
        if excess := used - given:
            number = next(iter(excess))
            often = f" {_times(used[number])}, given {_times(given[number])}" if number in given else ", which is not given"
            yield f"uses {_short(number)}{often}"
        if self.must_use_all and (missing := given - used):
            yield f"leaves out {', '.join(map(str, missing.elements()))}"

    def _missed(self, value: Number | None) -> Iterator[str]:
        if value is None:
            yield "divides by zero"
        elif value != self.target:
            yield f"equals {_short(value)}, not {self.target}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _short(value: Number) -> str:
    text = str(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 3]}..."
