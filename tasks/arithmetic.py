"""Easy questions with exact answers: sums, differences, products, equations, letter reversal, letter counting.

    task = Arithmetic(config.arithmetic, config.seed)
    for problem in itertools.islice(task.problems("train"), 8):
        verdict = task.verify(problem, generate(task.prompt(problem)))
    task.problem("train", 1_000_000)   # any problem of a stream, at the cost of one

Both splits are endless. Problem i of a split depends on (seed, split, i) and the configuration only. A question is held
out for "test" by a hash of its text, so the splits share none, whatever their seeds (see
`ArithmeticConfig.held_out_share`)."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from hashlib import blake2b
from itertools import accumulate, count
from random import Random

from tasks.answers import last_number, last_word
from tasks.arithmetic_questions import MAKERS, Question, QuestionKind
from tasks.base import Message, Problem, TaskError, Verdict, judge
from tasks.config import ArithmeticConfig

__all__ = ["Arithmetic"]

SPLITS = ("train", "test")
_MAX_DRAWS = 100_000


class Arithmetic:
    """The arithmetic task; see the module for the loop that uses it. How an answer is read is stated in
    `tasks.answers`."""

    name: str = "arithmetic"
    has_verifier: bool = True
    deadline_s: float = 2.0

    def __init__(self, config: ArithmeticConfig, seed: int) -> None:
        """Raises TaskError where the configuration has no question at all for one of the splits."""
        self._config = config
        self._seed = seed
        weights = {kind: float(getattr(config.weights, kind)) for kind in QuestionKind}
        self._kinds = tuple(kind for kind in QuestionKind if weights[kind] > 0)
        self._cumulative_weights = tuple(accumulate(weights[kind] for kind in self._kinds))
        for split in SPLITS:
            self.problem(split, 0)

    def problems(self, split: str) -> Iterator[Problem]:
        """The endless stream of `split`. Raises TaskError for a split other than "train" and "test"."""
        _check_split(split)
        return (self.problem(split, index) for index in count())

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of `split`, made without those before it."""
        _check_split(split)
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

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """The last word where the answer is a word, else the last number."""
        return last_word(response) if problem.answer.isalpha() else last_number(response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Reward 1.0 where the response ends in the answer, else 0.0; NO_ANSWER (0.0) where it states none."""
        return judge(self.final_answer(problem, response), self.final_answer(problem, problem.answer))

    def _draw(self, split: str, index: int) -> tuple[QuestionKind, Question]:
        """The first question of the stream (seed, split, index) that belongs to `split`."""
        rng = Random(f"{self._seed}/{split}/{index}")
        for _ in range(_MAX_DRAWS):
            kind = self._kinds[self._draw_kind(rng)]
            question = MAKERS[kind](rng, self._config)
            if self._config.held_out_share == 0 or self._is_held_out(question) is (split == "test"):
                return kind, question
        raise TaskError(
            f"no question for split '{split}' in {_MAX_DRAWS} draws with held_out_share {self._config.held_out_share}: "
            "too few distinct questions; raise the difficulty, or set held_out_share to 0"
        )

    def _draw_kind(self, rng: Random) -> int:
        drawn = bisect(self._cumulative_weights, rng.random() * self._cumulative_weights[-1])
        return min(drawn, len(self._kinds) - 1)  # rounding can reach the upper end

    def _is_held_out(self, question: Question) -> bool:
        """The text alone decides: the same questions are held out in every run."""
        return int.from_bytes(_digest(question.text, 8), "big") < self._config.held_out_share * 2**64


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise TaskError(f"arithmetic has no split '{split}', only {' and '.join(SPLITS)}")


def _digest(text: str, num_bytes: int) -> bytes:
    return blake2b(text.encode(), digest_size=num_bytes).digest()
