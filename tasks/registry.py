"""The tasks by name. To add one: implement `tasks.base.Task`, name it in `TaskConfig.name`, and list it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tasks.arithmetic import Arithmetic
from tasks.base import Task
from tasks.config import TaskConfig
from tasks.gsm8k import Gsm8k
from tasks.mbpp_plus import MbppPlus
from tasks.parquet import ParquetTask

__all__ = ["TASKS", "make_task"]


def _make_arithmetic(config: TaskConfig) -> Task:
    return Arithmetic(config.arithmetic, config.seed)


def _make_gsm8k(config: TaskConfig) -> Task:
    return Gsm8k(config.gsm8k)


def _make_mbpp_plus(config: TaskConfig) -> Task:
    return MbppPlus(config.mbpp_plus)


def _make_parquet(config: TaskConfig) -> Task:
    return ParquetTask(config.parquet)


TASKS: Mapping[str, Callable[[TaskConfig], Task]] = {
    "arithmetic": _make_arithmetic,
    "gsm8k": _make_gsm8k,
    "mbpp-plus": _make_mbpp_plus,
    "parquet": _make_parquet,
}


def make_task(config: TaskConfig) -> Task:
    """The task that `config` names. Cheap: no data is read before `problems`."""
    return TASKS[config.name](config)
