"""Problems of any generator of reasoning-gym (github.com/open-thought/reasoning-gym), an optional dependency.

    task = ReasoningGym(ReasoningGymConfig(dataset="chain_sum", options={"max_terms": 3}), seed=0)
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

The library makes problems and nothing else: some of its scorers run the answer as code. Scoring is ours, by the
reference answer:

| scoring    | the answer                                               | is right where                                              |
| ---------- | -------------------------------------------------------- | ----------------------------------------------------------- |
| number     | the stated number (`tasks.answers`)                      | it has the value of the reference                           |
| exact      | the last box or line                                     | it is the reference, but for case and spacing               |
| text       | the last <answer> tag, else the last box, else the reply | it is the reference, but for spaces                         |
| expression | the stated expression                                    | it has the value of the reference and uses the same numbers |

Splits share no question (`tasks.data.held_out`) and none occurs twice. They depend on (seed, dataset, options) and the
library's version."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Literal

from pydantic import Field

from tasks.answers import canonical_text, final_number, final_text, last_boxed, reference_number
from tasks.base import Message, Problem, TaskError, Verdict, judge, with_instruction
from tasks.data.held_out import require_split, split_of
from tasks.puzzles.exact_expression import ExpressionError, parse
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.stated_expression import final_expression, last_tagged
from tasks.reasoning_gym_source import Entry, Generator
from tasks.strict import Section

__all__ = ["ReasoningGym", "ReasoningGymConfig"]

_DRAWS_PER_PROBLEM = 8  # questions come twice; a generator that needs more has too few


class ReasoningGymConfig(Section):
    """Which generator, and how its problems are put and scored."""

    dataset: str | None = None
    """Name of the generator, for example "chain_sum"."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The generator's own options; not size and seed."""
    size: int = Field(default=1000, ge=1, le=100_000)
    """Problems of "train"."""
    held_out_size: int = Field(default=200, ge=1, le=100_000)
    """Problems of "test", and of "dev"."""
    held_out_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of all questions that only "test" may ask; "dev" has as many of its own, and "train" the rest, whatever the
    seed."""
    scoring: Literal["number", "exact", "text", "expression"] = "number"
    """How an answer is judged: `tasks.reasoning_gym_task` has the table."""
    instruction: str = "Put the final answer within \\boxed{}."
    """Appended to every question, on a line of its own. Not part of the problem id."""


class ReasoningGym:
    """The task; see the module for the loop that uses it. Only `problems` imports the library."""

    name: str = "reasoning-gym"
    has_verifier: bool = True
    deadline_s: float = 2.0

    def __init__(self, config: ReasoningGymConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def problems(self, split: str) -> Iterator[Problem]:
        """The problems of `split`, all made before the first is returned. Raises TaskError for another split; where
        library, generator or option are not there; and where problems differ between processes, are too few, or have no
        answer that `scoring` can use."""
        require_split(self.name, split)
        dataset = self._config.dataset
        if dataset is None:
            raise TaskError(f"task {self.name}: no generator: set task.reasoning_gym.dataset, for example to chain_sum")
        seed = blake2b(f"{self._seed}/{dataset}/{split}".encode(), digest_size=4).digest()
        wanted = self._config.size if split == "train" else self._config.held_out_size
        share = 1 - 2 * self._config.held_out_share if split == "train" else self._config.held_out_share
        size = math.ceil(_DRAWS_PER_PROBLEM * wanted / share)
        generator = Generator(dataset, self._config.options, size=size, seed=int.from_bytes(seed, "big") // 2)
        generator.require_reproducible()
        return iter(self._drawn(split, generator, wanted))

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": with_instruction(problem.question, self._config.instruction)}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """What `scoring` takes for the answer, in canonical form."""
        match self._config.scoring:
            case "number":
                return final_number(response)
            case "exact":
                return final_text(response)
            case "text":
                return _verbatim(last_tagged(response) or last_boxed(response) or response)
            case "expression":
                return final_expression(response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Reward 1.0 where the answer is right by `scoring`, else 0.0; NO_ANSWER where there is none."""
        match self._config.scoring:
            case "number":
                return judge(self.final_answer(problem, response), final_number(problem.answer))
            case "exact":
                return judge(self.final_answer(problem, response), canonical_text(problem.answer))
            case "text":
                return judge(self.final_answer(problem, response), _verbatim(problem.answer))
            case "expression":
                return _puzzle(problem.answer).judge(response)

    def _drawn(self, split: str, generator: Generator, wanted: int) -> list[Problem]:
        """The generator's first questions that belong to `split`."""
        problems: dict[str, Problem] = {}
        for index in range(generator.size):
            entry = generator.entry(index)
            question = " ".join(entry.question.split())
            if question not in problems and split_of(question, self._config.held_out_share) == split:
                problems[question] = self._problem(f"{generator.name}/{split}/{index:06d}", entry)
                if len(problems) == wanted:
                    return list(problems.values())
        size = "size" if split == "train" else "held_out_size"
        raise generator.error(
            f"only {len(problems)} different questions for split '{split}' among {generator.size}: lower task.reasoning_gym.{size} to "
            "that, or widen the generator's options"
        )

    def _problem(self, place: str, entry: Entry) -> Problem:
        dataset = str(self._config.dataset)
        readable = [scoring for scoring, is_readable in _IS_READABLE.items() if is_readable(entry.answer)]
        if self._config.scoring not in readable:
            raise TaskError(
                f'task {self.name}: scoring = "{self._config.scoring}" cannot read the answer {entry.answer[:60]!r} of {dataset}: '
                f"set task.reasoning_gym.scoring to {' or '.join(readable)}"
            )
        return Problem(
            task=self.name,
            problem_id=f"{self.name}/{place}-{entry.digest(4)}",
            question=entry.question,
            answer=entry.answer,
            meta={"kind": dataset},
        )


def _verbatim(text: str) -> str | None:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(lines) or None


def _puzzle(reference: str) -> Puzzle:
    """The puzzle that `reference` solves. Raises ValueError where it is no expression of positive whole numbers with
    such a value."""
    expression = parse(reference)
    whole = [int(number) for number in (*expression.numbers, expression.value or 0) if number == int(number) > 0]
    if len(whole) <= len(expression.numbers) or len(whole) < 3:
        raise ExpressionError("no expression of positive whole numbers with such a value")
    return Puzzle(numbers=tuple(whole[:-1]), target=whole[-1], must_use_all=True)


def _is_solution(reference: str) -> bool:
    try:
        _puzzle(reference)
    except ExpressionError:
        return False
    return True


_IS_READABLE: Mapping[str, Callable[[str], bool]] = {
    "number": lambda answer: reference_number(answer) is not None,
    "exact": lambda answer: canonical_text(answer) != "",
    "text": lambda answer: _verbatim(answer) is not None,
    "expression": _is_solution,
}
