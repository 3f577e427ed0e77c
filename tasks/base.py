"""The interface of a task.

task = make_task(config)
for problem in task.problems("train"):
    messages = task.prompt(problem)          # chat messages; the rollout worker applies the chat template
    verdict = task.verify(problem, response)  # exact, pure, fast; hard limits are the verifier pool's business
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from buffers.records import Problem, Verdict, VerdictStatus

__all__ = ["Message", "Problem", "Task", "Verdict", "VerdictStatus"]

Message = dict[str, str]  # {"role": "user", "content": "..."}


class Task(Protocol):
    """A source of problems and the judge of their answers. Implementations hold configuration only, no state."""

    name: str

    def problems(self, split: str) -> Iterator[Problem]:
        """Problems of `split` ("train", "test") in a fixed, seeded order. May be endless; ids never repeat.

        Raises ValueError for a split the task does not have.
        """
        ...

    def prompt(self, problem: Problem) -> list[Message]:
        """Chat messages that pose `problem`."""
        ...

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judge `response`. Deterministic; must not raise for any string."""
        ...
