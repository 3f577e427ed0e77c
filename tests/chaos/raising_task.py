"""A task whose verifier raises, in a module that spawned workers can import without torch."""

from __future__ import annotations

import zlib
from typing import Any

from buffers.records import Problem, Verdict
from tasks.base import Task
from tasks.config import TaskConfig
from tasks.registry import make_task


class RaisingTask:
    """Cannot verify every fourth response."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def verify(self, problem: Problem, response: str) -> Verdict:
        if zlib.crc32(response.encode()) % 4 == 0:
            raise ValueError(f"what is {response[:3]!r}?")
        return self._task.verify(problem, response)


def make_raising_task() -> RaisingTask:
    return RaisingTask(make_task(TaskConfig()))
