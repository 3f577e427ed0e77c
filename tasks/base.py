"""The interface of a task.

task = make_task(config)
for problem in task.problems("train"):
    messages = task.prompt(problem)                # chat messages; the rollout worker applies the chat template
    verdict = task.verify(problem, response)       # exact, pure, fast; hard limits are the verifier pool's business
    answer = task.final_answer(problem, response)  # what is compared: equal answers are equal strings

Making a task is cheap and touches no file: every verifier process makes one. Files are read by `problems`, and what is
wrong with them is a TaskError of that call, before its first problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from buffers.records import Problem, Verdict, VerdictStatus

__all__ = [
    "MAX_ANSWER_CHARS",
    "Message",
    "NeedsWarmUp",
    "Problem",
    "Task",
    "TaskError",
    "Verdict",
    "VerdictStatus",
    "judge",
    "with_instruction",
]

Message = dict[str, str]  # {"role": "user", "content": "..."}

MAX_ANSWER_CHARS = 64  # of an answer as recorded; comparison is of the whole


class TaskError(ValueError):
    """The task cannot do what is asked: no data, bad data, no such split, no verifier. One line a person can act on."""


class Task(Protocol):
    """A source of problems and the judge of their answers. Implementations hold configuration only, no state."""

    name: str
    has_verifier: bool
    """Whether `verify` can judge. A job that needs verdicts refuses a task without, before it starts anything."""
    deadline_s: float
    """Seconds that one verification may take where `verifier.timeout_s` does not say otherwise; then it is killed."""

    def problems(self, split: str) -> Iterator[Problem]:
        """Problems of `split` ("train", "test", ...) in a fixed order. May be endless; ids never repeat.

        Raises TaskError for a split the task does not have, and for missing or unusable data.
        """
        ...

    def prompt(self, problem: Problem) -> list[Message]:
        """Chat messages that pose `problem`."""
        ...

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """The answer that `response` states, in canonical form: one spelling a value. None where it states none.

        Whether the answer is right plays no part: of `problem`, only the form of the answer it asks for does. Never
        raises."""
        ...

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judge `response`. Deterministic; must not raise for any string, except TaskError where `has_verifier` is
        False."""
        ...


@runtime_checkable
class NeedsWarmUp(Protocol):
    """A task whose first verification in a process would take long: a verifier process calls `warm_up` before it takes
    any."""

    def warm_up(self) -> None: ...


def judge(found: str | None, expected: str | None) -> Verdict:
    """The verdict on an answer in canonical form: reward 1.0 where it equals `expected`, else 0.0; NO_ANSWER (0.0)
    where there is none."""
    if found is None:
        return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
    is_correct = found == expected
    status = VerdictStatus.CORRECT if is_correct else VerdictStatus.INCORRECT
    return Verdict(status=status, reward=float(is_correct), answer=found[:MAX_ANSWER_CHARS])


def with_instruction(question: str, instruction: str) -> str:
    """The question, and how to answer it on a line of its own."""
    return f"{question}\n{instruction}" if instruction else question
