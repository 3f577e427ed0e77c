"""The tasks by name. To add one: implement `tasks.base.Task`, name it in `TaskConfig.name`, and list it here.

A task's module is imported when the task is made: a verifier process starts with one of them, not with all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

from tasks.base import Task
from tasks.config import TaskConfig

__all__ = ["TASKS", "make_task"]


def _make_aime(config: TaskConfig) -> Task:
    from tasks.aime import Aime

    return Aime(config.aime)


def _make_arithmetic(config: TaskConfig) -> Task:
    from tasks.arithmetic import Arithmetic

    return Arithmetic(config.arithmetic, config.seed)


def _make_dapo_math(config: TaskConfig) -> Task:
    from tasks.dapo_math import DapoMath

    return DapoMath(config)


def _make_gsm8k(config: TaskConfig) -> Task:
    from tasks.gsm8k import Gsm8k

    return Gsm8k(config.gsm8k)


def _make_math(config: TaskConfig) -> Task:
    from tasks.hendrycks_math import HendrycksMath

    return HendrycksMath(config.math)


def _make_mbpp_plus(config: TaskConfig) -> Task:
    from tasks.mbpp_plus import MbppPlus

    return MbppPlus(config.mbpp_plus)


def _make_parquet(config: TaskConfig) -> Task:
    from tasks.parquet import ParquetTask

    return ParquetTask(config.parquet)


def _make_countdown(config: TaskConfig) -> Task:
    from tasks.countdown import Countdown
    from tasks.puzzles.puzzle_tasks import puzzle_task

    return puzzle_task(Countdown(config.countdown), config.countdown, config.seed)


def _make_game24(config: TaskConfig) -> Task:
    from tasks.game24 import Game24
    from tasks.puzzles.puzzle_tasks import puzzle_task

    return puzzle_task(Game24(config.game24), config.game24, config.seed)


def _make_reasoning_gym(config: TaskConfig) -> Task:
    from tasks.reasoning_gym_task import ReasoningGym

    return ReasoningGym(config.reasoning_gym, config.seed)


def _make_mixture(config: TaskConfig) -> Task:
    """A part under its task's own name has the problems that the task has alone; others have a seed of their own."""
    from tasks.mixture import Mixture, Part, naming_part

    parts: dict[str, Part] = {}
    for label, part in config.mixture.parts.items():
        seed = config.seed if part.name == label else _part_seed(config.seed, label)
        with naming_part(label):
            task = make_task(TaskConfig.model_validate({"name": part.name, "seed": seed, **part.sections}))
        parts[label] = Part(task=task, weight=part.weight)
    return Mixture(parts, config.seed)


TASKS: Mapping[str, Callable[[TaskConfig], Task]] = {
    "aime": _make_aime,
    "arithmetic": _make_arithmetic,
    "countdown": _make_countdown,
    "dapo-math": _make_dapo_math,
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
