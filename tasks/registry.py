"""The tasks by name. To add one: implement `tasks.base.Task`, name it in `TaskConfig.name`, and list it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tasks.aime import Aime
from tasks.arithmetic import Arithmetic
from tasks.base import Task
from tasks.config import TaskConfig
from tasks.dapo_math import DapoMath
from tasks.gsm8k import Gsm8k
from tasks.hendrycks_math import HendrycksMath
from tasks.parquet import ParquetTask

__all__ = ["TASKS", "make_task"]


def _make_arithmetic(config: TaskConfig) -> Task:
    return Arithmetic(config.arithmetic, config.seed)


def _make_aime(config: TaskConfig) -> Task:
    return Aime(config.aime)


def _make_gsm8k(config: TaskConfig) -> Task:
    return Gsm8k(config.gsm8k)


def _make_math(config: TaskConfig) -> Task:
    return HendrycksMath(config.math)


def _make_parquet(config: TaskConfig) -> Task:
    return ParquetTask(config.parquet)


TASKS: Mapping[str, Callable[[TaskConfig], Task]] = {
    "aime": _make_aime,
    "arithmetic": _make_arithmetic,
    "dapo-math": DapoMath,
    "gsm8k": _make_gsm8k,
    "math": _make_math,
    "parquet": _make_parquet,
}


def make_task(config: TaskConfig) -> Task:
    """The task that `config` names. Cheap: no data is read before `problems`."""
    return TASKS[config.name](config)
