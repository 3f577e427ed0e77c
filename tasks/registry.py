"""The tasks by name. To add one: implement `tasks.base.Task`, name it in `TaskConfig.name`, and list it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tasks.arithmetic import Arithmetic
from tasks.base import Task
from tasks.config import TaskConfig

__all__ = ["TASKS", "make_task"]


def _make_arithmetic(config: TaskConfig) -> Task:
    return Arithmetic(config.arithmetic, config.seed)


TASKS: Mapping[str, Callable[[TaskConfig], Task]] = {"arithmetic": _make_arithmetic}


def make_task(config: TaskConfig) -> Task:
    """The task that `config` names."""
    return TASKS[config.name](config)
