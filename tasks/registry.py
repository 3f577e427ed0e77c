"""The tasks by name. To add one: implement `tasks.base.Task`, name it in `TaskConfig.name`, and list it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

from tasks.aime import Aime
from tasks.arithmetic import Arithmetic
from tasks.base import Task
from tasks.config import TaskConfig
from tasks.countdown import Countdown
from tasks.dapo_math import DapoMath
from tasks.game24 import Game24
from tasks.gsm8k import Gsm8k
from tasks.hendrycks_math import HendrycksMath
from tasks.mbpp_plus import MbppPlus
from tasks.mixture import Mixture, Part
from tasks.parquet import ParquetTask
from tasks.puzzle_tasks import puzzle_task
from tasks.reasoning_gym_task import ReasoningGym

__all__ = ["TASKS", "make_task"]


def _make_arithmetic(config: TaskConfig) -> Task:
    return Arithmetic(config.arithmetic, config.seed)


def _make_aime(config: TaskConfig) -> Task:
    return Aime(config.aime)


def _make_gsm8k(config: TaskConfig) -> Task:
    return Gsm8k(config.gsm8k)


def _make_math(config: TaskConfig) -> Task:
    return HendrycksMath(config.math)


def _make_mbpp_plus(config: TaskConfig) -> Task:
    return MbppPlus(config.mbpp_plus)


def _make_parquet(config: TaskConfig) -> Task:
    return ParquetTask(config.parquet)


def _make_countdown(config: TaskConfig) -> Task:
    return puzzle_task(Countdown(config.countdown), config.countdown, config.seed)


def _make_game24(config: TaskConfig) -> Task:
    return puzzle_task(Game24(config.game24), config.game24, config.seed)


def _make_reasoning_gym(config: TaskConfig) -> Task:
    return ReasoningGym(config.reasoning_gym, config.seed)


def _make_mixture(config: TaskConfig) -> Task:
    """A part under its task's own name has the problems that the task has alone; others have a seed of their own."""
    parts: dict[str, Part] = {}
    for label, part in config.mixture.parts.items():
        seed = config.seed if part.name == label else _part_seed(config.seed, label)
        task = make_task(TaskConfig.model_validate({"name": part.name, "seed": seed, **part.sections}))
        parts[label] = Part(task=task, weight=part.weight)
    return Mixture(parts, config.seed)


TASKS: Mapping[str, Callable[[TaskConfig], Task]] = {
    "aime": _make_aime,
    "arithmetic": _make_arithmetic,
    "countdown": _make_countdown,
    "dapo-math": DapoMath,
    "game24": _make_game24,
    "gsm8k": _make_gsm8k,
    "math": _make_math,
    "mbpp-plus": _make_mbpp_plus,
    "mixture": _make_mixture,
    "parquet": _make_parquet,
    "reasoning-gym": _make_reasoning_gym,
}


def make_task(config: TaskConfig) -> Task:
    """The task that `config` names. Cheap: no data is read before `problems`."""
    return TASKS[config.name](config)


def _part_seed(seed: int, label: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{label}".encode(), digest_size=6).digest(), "big")
