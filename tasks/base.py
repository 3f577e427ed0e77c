"""The interface of a task: it poses problems and judges the answers.

    task = make_task(config)
    for problem in task.problems("train"):
        messages = task.prompt(problem)                # chat messages; the rollout worker applies the chat template
        verdict = task.verify(problem, response)       # the reward, in a process that is killed at `deadline_s`
        answer = task.final_answer(problem, response)  # equal answers are equal strings

A task of your own subclasses `Task`, which leaves `name`, `problems` and `verify` to write; docs/tasks.md shows one.
Every verifier process makes the task, so making it must be cheap and must read no file. `problems` reads the files and
reports what is wrong with them as a TaskError before it returns the first problem.

Where the answer stands in a response is one rule for all tasks: `JudgingConfig.answer_part`."""

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from buffers.records import Problem, Verdict, VerdictStatus

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


class Section(BaseModel):
    """Base of the sections of the configuration: they are frozen, describe their fields and refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


_MARKER = r"<\|[A-Za-z0-9_]{1,40}\|>|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_turn>|</s>|\[/?INST\]"
_CHAT_MARKER = re.compile(_MARKER)
_HEADER = re.compile(rf"(?:\s*+(?:{_MARKER})(?:assistant|model)?)*+")


class JudgingConfig(Section):
    """Which part of a response is its answer, and how exact the answer must be, for all tasks alike."""

    reasoning_tags: tuple[str, str] = ("<think>", "</think>")
    """What opens and what closes a model's reasoning. Only what follows the last closing tag is read. A response whose
    reasoning never closes was cut off, so it states no answer. ["", ""]: the whole response is read."""
    reasoning_from_start: bool = False
    """Whether the prompt already opens the reasoning, as some chat templates do. A response without a closing tag then
    was cut off while it reasoned, and states no answer."""
    rounding: int | None = Field(default=None, ge=0, le=15)
    """N: a decimal also equals a value that it differs from by at most half a unit of its N-th decimal place, so 0.33
    is 1/3 with N = 2. It holds for mathematics and stated numbers. None: only exact values are equal."""

    def answer_part(self, response: str) -> str:
        """Return what follows the reasoning, up to the chat marker that ends the turn. It is empty if the reasoning
        does not end."""
        opening, closing = self.reasoning_tags
        first = response.find(closing) if closing else -1
        start, end = _turn(response, first + len(closing) if first >= 0 else 0)
        last = response.rfind(closing, 0, end) if closing else -1
        if last < 0 and closing and self.reasoning_from_start:
            return ""
        closed = last + len(closing) if last >= 0 else 0
        opened = response.find(opening, closed) if opening else -1
        return response[max(start, closed) : end] if opened < 0 or opened >= end else ""

    def shortened(self, response: str, num_chars: int) -> str:
        """Return the end of a response, whose answer part is the end of that of the whole. If the cut would hide where
        the reasoning begins or ends, a closing tag comes first."""
        if len(response) <= num_chars:
            return response
        end, part = response[-num_chars:], self.answer_part(response)[-num_chars:]
        return end if self.answer_part(end) == part else self.reasoning_tags[1] + part


DEFAULT_JUDGING = JudgingConfig()


def _turn(response: str, start: int) -> tuple[int, int]:
    """Return where the text from `start` begins, behind the markers that open a turn, and the marker that ends it."""
    header = _HEADER.match(response, start)
    start = header.end() if header else start
    marker = _CHAT_MARKER.search(response, start)
    return start, marker.start() if marker else len(response)


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
        return self.verify(problem, response).answer

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
    return Verdict(status=status, reward=float(is_correct), answer=found[:MAX_ANSWER_CHARS])


def with_instruction(question: str, instruction: str) -> str:
    """Return the question, followed by the instruction on a line of its own."""
    return f"{question}\n{instruction}" if instruction else question
