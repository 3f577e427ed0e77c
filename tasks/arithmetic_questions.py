"""The question makers of the arithmetic task: one function a kind, `random numbers -> Question`.

Only `tasks.data.draws` is drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from random import Random
from typing import TypeVar

from tasks.config import ArithmeticConfig
from tasks.data.draws import below
from tasks.words import WORDS

__all__ = ["MAKERS", "Question", "QuestionKind"]

_T = TypeVar("_T")


class QuestionKind(StrEnum):
    """The kinds of question, named as their weights are."""

    SUM = "sum"
    DIFFERENCE = "difference"
    PRODUCT = "product"
    EQUATION = "equation"
    REVERSE = "reverse"
    COUNT = "count"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked, without the instruction how to answer, and the one right answer."""

    text: str
    answer: str


def make_sum(rng: Random, config: ArithmeticConfig) -> Question:
    a, b = _operand(rng, config.sum_max), _operand(rng, config.sum_max)
    return Question(text=f"What is {a} + {b}?", answer=str(a + b))


def make_difference(rng: Random, config: ArithmeticConfig) -> Question:
    a, b = _operand(rng, config.difference_max), _operand(rng, config.difference_max)
    if not config.difference_negative:
        a, b = max(a, b), min(a, b)
    return Question(text=f"What is {a} - {b}?", answer=str(a - b))


def make_product(rng: Random, config: ArithmeticConfig) -> Question:
    a, b = _operand(rng, config.product_max), _operand(rng, config.product_max)
    return Question(text=f"What is {a} times {b}?", answer=str(a * b))


def make_equation(rng: Random, config: ArithmeticConfig) -> Question:
    known, step = _operand(rng, config.equation_max), 1 + below(rng, config.equation_max)
    if rng.random() < 0.5:
        return Question(text=f"x + {step} = {known + step}. What is x?", answer=str(known))
    return Question(text=f"x - {step} = {known}. What is x?", answer=str(known + step))


def make_reverse(rng: Random, config: ArithmeticConfig) -> Question:
    word = _pick(rng, _words(config.reverse_min_length, config.reverse_max_length))
    return Question(text=f'Spell the word "{word}" backwards.', answer=word[::-1])


def make_count(rng: Random, config: ArithmeticConfig) -> Question:
    by_count = _letters_by_count(config.count_word_length, config.count_max)
    count, letters = _pick(rng, by_count)
    word, letter = _pick(rng, letters)
    return Question(text=f'How many times does the letter "{letter}" occur in the word "{word}"?', answer=str(count))


MAKERS: Mapping[QuestionKind, Callable[[Random, ArithmeticConfig], Question]] = {
    QuestionKind.SUM: make_sum,
    QuestionKind.DIFFERENCE: make_difference,
    QuestionKind.PRODUCT: make_product,
    QuestionKind.EQUATION: make_equation,
    QuestionKind.REVERSE: make_reverse,
    QuestionKind.COUNT: make_count,
}


def _operand(rng: Random, largest: int) -> int:
    return below(rng, largest + 1)


def _pick(rng: Random, items: tuple[_T, ...]) -> _T:
    return items[below(rng, len(items))]


@cache
def _words(shortest: int, longest: int) -> tuple[str, ...]:
    return tuple(word for word in WORDS if shortest <= len(word) <= longest)


@cache
def _letters_by_count(longest: int, largest_count: int) -> tuple[tuple[int, tuple[tuple[str, str], ...]], ...]:
    """`(count, ((word, letter), ...))` for every count that some word has."""
    pairs = [(word, letter) for word in _words(1, longest) for letter in sorted(set(word))]
    table = {n: tuple((word, letter) for word, letter in pairs if word.count(letter) == n) for n in range(1, largest_count + 1)}
    return tuple((n, letters) for n, letters in table.items() if letters)
