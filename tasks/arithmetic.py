"""Easy questions with exact answers: sums, differences, products, equations, letter reversal, letter counting.

    task = Arithmetic(config.arithmetic, config.seed)
    for problem in itertools.islice(task.problems("train"), 8):
        verdict = task.verify(problem, generate(task.prompt(problem)))
    task.problem("train", 1_000_000)   # any problem of a stream, at the cost of one

The splits are endless. Problem i of a split depends on (seed, split, i) and the configuration only. A hash of the text
says to which split a question belongs, so that the splits share none (`tasks.data.held_out`)."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import blake2b
from itertools import accumulate, count
from random import Random
from typing import Self, TypeVar

from pydantic import Field, model_validator

from tasks.answers import last_number, last_word
from tasks.base import Problem, Section, Task, TaskError, Verdict, judge
from tasks.data.draws import below
from tasks.data.held_out import require_split, split_of

__all__ = ["WORDS", "Arithmetic", "ArithmeticConfig", "ArithmeticWeights", "QuestionKind"]

_MAX_DRAWS = 100_000
_MAX_OPERAND = 10**9
_T = TypeVar("_T")


class ArithmeticWeights(Section):
    """How often each kind is drawn, in proportion to its weight. Weight 0 leaves a kind out; not all may be 0."""

    sum: float = Field(default=4.0, ge=0)
    """a + b."""
    difference: float = Field(default=2.0, ge=0)
    """a - b."""
    product: float = Field(default=1.0, ge=0)
    """a times b."""
    equation: float = Field(default=0.5, ge=0)
    """Solve x + a = b or x - a = b for x."""
    reverse: float = Field(default=0.0, ge=0)
    """Spell a short common word backwards. The default mixture, which is easy, leaves it out."""
    count: float = Field(default=0.0, ge=0)
    """Say how often a letter occurs in a word. The default mixture, which is easy, leaves it out."""

    @model_validator(mode="after")
    def _some_kind_is_drawn(self) -> Self:
        if not any(weight > 0 for _, weight in self):
            raise ValueError(f"all weights are 0: give at least one of {', '.join(name for name, _ in self)} a positive weight")
        return self


class ArithmeticConfig(Section):
    """Which kinds of questions are drawn, and how hard each kind is."""

    weights: ArithmeticWeights = ArithmeticWeights()
    """How often each kind is drawn."""
    sum_max: int = Field(default=9, ge=0, le=_MAX_OPERAND)
    """Largest operand of a sum. Both operands are uniform in 0..sum_max."""
    difference_max: int = Field(default=9, ge=0, le=_MAX_OPERAND)
    """Largest operand of a difference."""
    difference_negative: bool = False
    """Whether the answer of a difference may be below 0. False: the larger operand comes first."""
    product_max: int = Field(default=5, ge=0, le=_MAX_OPERAND)
    """Largest factor of a product; 9 gives the whole one-digit table."""
    equation_max: int = Field(default=5, ge=1, le=_MAX_OPERAND)
    """Largest number added or subtracted in an equation, and largest x (of x + a = b) or b (of x - a = b)."""
    reverse_min_length: int = Field(default=3, ge=3, le=8)
    """Shortest word to reverse, in letters."""
    reverse_max_length: int = Field(default=4, ge=3, le=8)
    """Longest word to reverse, in letters."""
    count_word_length: int = Field(default=5, ge=3, le=8)
    """Longest word whose letters are counted."""
    count_max: int = Field(default=2, ge=1, le=4)
    """Largest count asked for. Counts 1..count_max are equally frequent where a word has such a letter, so that a
    constant guess does not pay."""
    held_out_share: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the distinct questions that only "test" asks, whatever the seed. "dev" gets as many, and "train" gets
    the rest. At 0 the splits differ by seed only, and where there are few questions all ask the same ones."""
    number_instruction: str = "Answer with the number only."
    """Ends every question whose answer is a number. It is part of the question, hence of the problem id."""
    word_instruction: str = "Answer with the word only."
    """Ends every question whose answer is a word."""

    @model_validator(mode="after")
    def _lengths_are_ordered(self) -> Self:
        if self.reverse_min_length > self.reverse_max_length:
            raise ValueError(f"reverse_min_length {self.reverse_min_length} exceeds reverse_max_length {self.reverse_max_length}")
        return self


class Arithmetic(Task):
    """The arithmetic task. The head of the module shows its use, and `tasks.answers` says how an answer is read."""

    name: str = "arithmetic"
    deadline_s: float = 2.0

    def __init__(self, config: ArithmeticConfig, seed: int) -> None:
        """Raise TaskError if the configuration has no question at all for "train" or "test"."""
        self._config = config
        self._seed = seed
        weights = {kind: float(getattr(config.weights, kind)) for kind in QuestionKind}
        self._kinds = tuple(kind for kind in QuestionKind if weights[kind] > 0)
        self._cumulative_weights = tuple(accumulate(weights[kind] for kind in self._kinds))
        for split in ("train", "test"):
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
        kind, question = self._draw(split, index)
        instruction = self._config.word_instruction if kind is QuestionKind.REVERSE else self._config.number_instruction
        text = f"{question.text} {instruction}".strip()
        return Problem(
            task=self.name,
            problem_id=f"{self.name}/{split}/{index:06d}-{_digest(f'{text}={question.answer}', 4).hex()}",
            question=text,
            answer=question.answer,
            meta={"kind": str(kind)},
        )

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the last word of the response where the answer is a word, else its last number."""
        return (last_word if problem.answer.isalpha() else last_number)(response, self.judging)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Give reward 1.0 if the last number (or word) is the answer, else 0.0; NO_ANSWER if there is none."""
        expected = (last_word if problem.answer.isalpha() else last_number)(problem.answer)
        return judge(self.final_answer(problem, response), expected)

    def _draw(self, split: str, index: int) -> tuple[QuestionKind, Question]:
        """Return the first question of the random stream (seed, split, index) that belongs to `split`."""
        rng = Random(f"{self._seed}/{split}/{index}")
        for _ in range(_MAX_DRAWS):
            drawn = bisect(self._cumulative_weights, rng.random() * self._cumulative_weights[-1])
            kind = self._kinds[min(drawn, len(self._kinds) - 1)]  # rounding can reach the upper end
            question = MAKERS[kind](rng, self._config)
            if self._config.held_out_share == 0 or split_of(question.text, self._config.held_out_share) == split:
                return kind, question
        raise TaskError(
            f"no question for split '{split}' in {_MAX_DRAWS} draws with held_out_share {self._config.held_out_share}: "
            "too few distinct questions; raise the difficulty, or set held_out_share to 0"
        )


def _digest(text: str, num_bytes: int) -> bytes:
    return blake2b(text.encode(), digest_size=num_bytes).digest()


# ---- questions: each maker draws from `tasks.data.draws` only ----
class QuestionKind(StrEnum):
    """The kinds of question. Each has a weight of the same name."""

    SUM = "sum"
    DIFFERENCE = "difference"
    PRODUCT = "product"
    EQUATION = "equation"
    REVERSE = "reverse"
    COUNT = "count"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked, without the instruction how to answer it, and the one right answer."""

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
    """Return `(count, ((word, letter), ...))` for every count that some word has."""
    pairs = [(word, letter) for word in _words(1, longest) for letter in sorted(set(word))]
    table = {n: tuple((word, letter) for word, letter in pairs if word.count(letter) == n) for n in range(1, largest_count + 1)}
    return tuple((n, letters) for n, letters in table.items() if letters)


# ---- words to spell: common English words of three to eight letters ----
# They are lower case and ASCII, none is a palindrome, and none occurs twice.
_TEXT = """
and ant arm art bag bar bat bed bee big box boy bus cap car cat cow cup cut day dog ear eat egg end fan far few
fish
fit fly fox fun get hat hen hit hot ice ink jam jar job key kid leg lid lip log man map mat men mix net new nut oak old one owl pan pen pet
pig pin pot rat red row run sea set sit sky son sun tea ten tie tin top toy tub two van wet win yes zoo
baby back ball band bank bear bell bird blue boat body bone book bowl cake call card city coat cold cook corn crab desk dish door down drum
duck face farm fast fire five flag foot fork four frog game gate gift girl goat gold good hair hand hill home hook horn jump king kite lake
lamp land leaf left line lion long look love milk mind moon moss name nest nine open park path pink pool rain ring road rock roof room root
rose salt sand seed shoe shop sing snow soap sock song star stem tail tall tree wall wind wolf wood
angel apple bacon beach berry black bread brick bring broom brown chair chess class cliff clock cloud daddy dress earth floor fruit funny
glass grape grass green happy heart honey horse house juice knife lemon light llama mango money mouse music night ocean onion paint paper
peach penny phone plant puppy queen river robin salad seven sheep sleep smile snake spoon stone sugar sweet table tiger toast tooth train
water wheel white woods world zebra
banana basket bottle bridge butter button carrot cheese circle coffee cookie dinner doctor dollar father finger flower forest garden hammer
island jacket ladder letter lizard market mirror monkey mother needle orange pepper pillow planet potato puddle rabbit rocket school silver
spider spring square street summer sunset ticket tomato turtle violin wallet window winter yellow
balloon blanket brother cabbage chicken cricket curtain feather giraffe hamster kitchen lettuce morning mustard pancake picture popcorn
rainbow sausage
scissors
sunrise teacher unicorn village weather whistle
airplane
blossom
computer dinosaur elephant football hospital mountain necklace notebook painting sandwich sunshine umbrella
"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())
