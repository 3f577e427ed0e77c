"""Problems of any generator of reasoning-gym (github.com/open-thought/reasoning-gym), an optional dependency.

    task = ReasoningGym(ReasoningGymConfig(dataset="chain_sum", options={"max_terms": 3}), seed=0)
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

The library only makes the problems: some of its scorers run the answer as code. Here the reference answer decides:

| scoring    | the answer                               | is right if it                                   |
| ---------- | ---------------------------------------- | ------------------------------------------------ |
| number     | the stated number (`tasks.answers`)      | has the value of the reference                   |
| exact      | the last box or line                     | is the reference, up to case and spacing         |
| text       | the last <answer> tag, else the last box | is the reference, up to spaces at ends of lines  |
|            | else the whole response                  |                                                  |
| expression | the stated expression                    | has the reference's value and uses its numbers   |

Splits share no question (`tasks.data.held_out`), and no question occurs twice. They depend on (seed, split, dataset,
options) and the version of the library.

Some generators depend on the order of sets, hence on string hashes, which differ between processes: in version 0.1.25,
6 of 105 (isomorphic_strings, knight_swap, list_functions, polynomial_multiplication, ransom_note, word_ladder). So a
second process makes the first problems too, and they must be equal. Whatever fails inside the library, the work of a
hundred authors, becomes a TaskError with its reason."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks.answers import canonical_text, final_number, final_text, last_boxed, number_verdict, reference_number
from tasks.base import JudgingConfig, Message, Problem, Section, Task, TaskError, Verdict, judge, with_instruction
from tasks.data.held_out import require_split, split_of
from tasks.puzzles.exact_expression import ExpressionError, parse
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.stated_expression import final_expression, last_tagged

__all__ = ["VERSION", "Entry", "Generator", "ReasoningGym", "ReasoningGymConfig", "print_digests"]

VERSION = "0.1.25"
_DRAWS_PER_PROBLEM = 8  # questions repeat; a generator that needs more draws has too few of them
_NUM_COMPARED = 32
_COMPARE_TIMEOUT_S = 120.0
_MARK = "\ndigests:"  # separates the digests from what a generator prints


class ReasoningGymConfig(Section):
    """Which generator makes the problems, and how they are posed and scored."""

    dataset: str | None = None
    """Name of the generator, for example "chain_sum"."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The generator's own options, except size and seed."""
    size: int = Field(default=1000, ge=1, le=100_000)
    """Number of problems in "train"."""
    held_out_size: int = Field(default=200, ge=1, le=100_000)
    """Number of problems in "test", and in "dev"."""
    held_out_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of all questions that only "test" may ask. "dev" has as many of its own, and "train" has the rest, whatever
    the seed."""
    scoring: Literal["number", "exact", "text", "expression"] = "number"
    """How an answer is judged: `tasks.reasoning_gym` has the table."""
    instruction: str = "Put the final answer within \\boxed{}."
    """Follows every question, on a line of its own. It is not part of the problem id."""


class ReasoningGym(Task):
    """The task. The head of the module shows its use. Only `problems` imports the library."""

    name: str = "reasoning-gym"
    deadline_s: float = 2.0

    def __init__(self, config: ReasoningGymConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split`, which are all made before the first is returned. Raises TaskError for another
        split; if the library, the generator or an option does not exist; and if problems differ between processes, are
        too few, or have no answer that `scoring` can use."""
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
        """Return, in canonical form, what `scoring` takes for the answer."""
        return _STATED[self._config.scoring](response, self.judging)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Give reward 1.0 if the answer is right by `scoring`, else 0.0; NO_ANSWER if there is none."""
        if self._config.scoring == "expression":
            return _puzzle(problem.answer).judge(response, self.judging)
        if self._config.scoring == "number":
            return number_verdict(response, problem.answer, self.judging)
        canonical = canonical_text if self._config.scoring == "exact" else _verbatim
        return judge(self.final_answer(problem, response), canonical(problem.answer))

    def _drawn(self, split: str, generator: Generator, wanted: int) -> list[Problem]:
        """Return the generator's first `wanted` different questions that belong to `split`."""
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
    """Return the puzzle that `reference` solves. Raises ExpressionError if it is not an expression of positive integers
    whose value is one too."""
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


def _final_verbatim(response: str, judging: JudgingConfig) -> str | None:
    text = judging.answer_part(response)
    return _verbatim(last_tagged(text) or last_boxed(text) or text)


_STATED: Mapping[str, Callable[[str, JudgingConfig], str | None]] = {
    "number": final_number,
    "exact": final_text,
    "text": _final_verbatim,
    "expression": final_expression,
}
_IS_READABLE: Mapping[str, Callable[[str], bool]] = {
    "number": lambda answer: reference_number(answer) is not None,
    "exact": lambda answer: canonical_text(answer) != "",
    "text": lambda answer: _verbatim(answer) is not None,
    "expression": _is_solution,
}


# ---- the library ----
@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A question of the library and its reference answer."""

    question: str
    answer: str

    def digest(self, num_bytes: int) -> str:
        text = f"{self.question}={self.answer}"
        return blake2b(text.encode(errors="surrogatepass"), digest_size=num_bytes).hexdigest()


class Generator:
    """A generator of the library, whose problems must be the same in every process.

    generator = Generator("chain_sum", {"max_terms": 3}, seed=7, size=1000)
    generator.require_reproducible()
    entry = generator.entry(0)"""

    def __init__(self, name: str, options: Mapping[str, Any], *, seed: int, size: int) -> None:
        """Make the generator of problems 0 … size − 1. Raises TaskError for what the library lacks or refuses."""
        self.name = name
        self.size = size
        self._options = dict(options)
        self._seed = seed
        self._dataset = self._make()

    def entry(self, index: int) -> Entry:
        """Return problem `index`. Raises TaskError if it has no reference answer to score by."""
        try:
            entry = self._dataset[index]
        except Exception as error:
            raise self.error(f"problem {index} cannot be made: {_reason(error)}") from None
        question, answer = entry["question"], entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise self.error("its problems have no one right answer, and the library's own scorers are not used: choose another generator")
        return Entry(question=question.strip(), answer=answer.strip())

    def require_reproducible(self) -> None:
        """Raise TaskError unless a process with other string hashes makes the same first problems in two minutes."""
        mine = self.digests()  # first, because this process reports faults of the generator better
        theirs = self._digests_of_another_process()
        different = next((index for index, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), None)
        if different is not None:
            raise self.error(
                f"problem {different} is another one in another process: a run could not be resumed, and a test set would be none; "
                "choose another generator"
            )

    def digests(self) -> list[str]:
        """Return the digests of the problems that are compared."""
        return [self.entry(index).digest(16) for index in range(min(_NUM_COMPARED, self.size))]

    def error(self, problem: str) -> TaskError:
        return _error(f"generator {self.name}: {problem}")

    def _make(self) -> Any:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise _error(f"{error}: pip install reasoning-gym=={VERSION} (docs/tasks.md)") from None
        if self.name not in DATASETS:
            raise _error(f"there is no generator '{self.name}'{_nearest(self.name, DATASETS)}")
        known = {field.name for field in fields(DATASETS[self.name][1])} - {"seed", "size"}
        for option in sorted(self._options.keys() - known):
            raise self.error(f"it has no option '{option}'{_nearest(option, known)}")
        try:
            return create_dataset(self.name, seed=self._seed, size=self.size, **self._options)
        except Exception as error:
            raise self.error(f"it refuses the options {self._options}: {_reason(error)}") from None

    def _digests_of_another_process(self) -> list[str]:
        import subprocess

        request = json.dumps({"name": self.name, "options": self._options, "seed": self._seed, "size": self.size})
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        other_seed = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
        environment = {**os.environ, "PYTHONHASHSEED": other_seed, "PYTHONPATH": path}
        code = f"from {__name__} import print_digests; print_digests()"
        command = [sys.executable, "-c", code]
        try:
            done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True, timeout=_COMPARE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self.error(f"another process did not make {_NUM_COMPARED} problems within {_COMPARE_TIMEOUT_S:g} s") from None
        if done.returncode:
            raise self.error(f"it fails in another process: {done.stderr.strip().rpartition(chr(10))[2]}")
        theirs: list[str] = json.loads(done.stdout.rpartition(_MARK)[2])
        return theirs


def print_digests() -> None:
    """Print the digests of the generator that standard input names. The second process calls this."""
    generator = Generator(**json.load(sys.stdin))
    print(f"{_MARK}{json.dumps(generator.digests())}")


def _error(problem: str) -> TaskError:
    return TaskError(f"task reasoning-gym: {problem}")


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(sorted(known))}"


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
