"""The interface of a task: it poses problems and judges the answers.

    task = make_task(config)
    for problem in task.problems("train"):
        messages = task.prompt(problem)                # chat messages; the rollout worker applies the chat template
        verdict = task.verify(problem, response)       # the reward, in a process that is killed at `deadline_s`
        answer = task.final_answer(problem, response)  # equal answers are equal strings

A task of your own subclasses `Task`, which leaves `name`, `problems` and `verify` to write; docs/tasks.md shows one.
Every verifier process makes the task, so making it must be cheap and must read no file. `problems` reads the files and
reports what is wrong with them as a TaskError before it returns the first problem.

Where the answer stands in a response is one rule for all tasks (`tasks.judging`)."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from buffers.records import Problem, Verdict, VerdictStatus
from tasks.judging import DEFAULT_JUDGING, JudgingConfig
from tasks.section import Section

__all__ = [
    "DEFAULT_JUDGING",
    "MAX_ANSWER_CHARS",
    "MEMBERS",
    "JudgingConfig",
    "Message",
    "NeedsWarmUp",
    "Problem",
    "Section",
    "Task",
    "TaskError",
    "Verdict",
    "VerdictStatus",
    "judge",
    "with_instruction",
]

Message = dict[str, str]  # {"role": "user", "content": "..."}

MAX_ANSWER_CHARS = 64  # a verdict records no more of an answer; the whole answer is compared

MEMBERS = ("name", "has_verifier", "deadline_s", "problems", "prompt", "final_answer", "verify")
"""What every task has. A subclass of `Task` inherits all but name, problems and verify."""


class TaskError(ValueError):
    """The task cannot do what is asked, for example because data are missing. The message is one line for a person."""


class Task(Protocol):
    """A source of problems and the judge of their answers. A task holds its configuration and no other state."""

    name: str
    """The task's name, which is also the `Problem.task` of its problems."""
    has_verifier: bool = True
    """Whether `verify` can judge. A job that needs verdicts refuses a task without a verifier before it starts."""
    deadline_s: float = 5.0
    """Seconds after which a verification is killed; `verifier.timeout_s` overrides them."""
    judging: JudgingConfig = DEFAULT_JUDGING
    """How responses are read, by the configuration of the job. `make_task` sets it."""

    @abstractmethod
    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split` ("train", "test", ...) in a fixed order. The iterator may be endless; ids
        never repeat. Raises TaskError for a split that the task does not have, and for missing or unusable data."""

    def prompt(self, problem: Problem) -> list[Message]:
        """Return the chat messages that pose `problem`: by default one message with the question."""
        return [{"role": "user", "content": problem.question}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the answer that `response` states, right or wrong, or None. Equal answers have one spelling. `problem`
        only says which form of answer it asks for. Never raises. The default is the answer that `verify` reports."""
        return self.verify(problem, response).whole_answer

    @abstractmethod
    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judge `response` by the question and the answer of `problem`; its `meta` may be missing. The verdict is
        deterministic. No string may make the method raise; only a task without a verifier raises TaskError."""


@runtime_checkable
class NeedsWarmUp(Protocol):
    """A task whose first verification would take long. A verifier process calls `warm_up` before its first response."""

    def warm_up(self) -> None: ...


def judge(found: str | None, expected: str | None) -> Verdict:
    """Return the verdict on `found`, the canonical form of a stated answer. The reward is 1.0 if `found` equals
    `expected`, else 0.0. The status is NO_ANSWER if `found` is None."""
    if found is None:
        return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
    is_correct = found == expected
    status = VerdictStatus.CORRECT if is_correct else VerdictStatus.INCORRECT
    return Verdict(status=status, reward=float(is_correct), answer=found[:MAX_ANSWER_CHARS], final_answer=found)


def with_instruction(question: str, instruction: str) -> str:
    """Return the question, followed by the instruction on a line of its own."""
    return f"{question}\n{instruction}" if instruction else question
