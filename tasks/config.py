"""Which tasks there are, and how a configuration chooses among them.

Each section is defined beside its task. Every job imports these modules, so they import nothing heavy at the top."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from buffers.extensions import Known
from tasks.aime import Aime, AimeConfig
from tasks.arithmetic import Arithmetic, ArithmeticConfig
from tasks.base import Section, Task
from tasks.countdown import CountdownConfig, countdown_task
from tasks.curriculum import CurriculumConfig
from tasks.dapo_math import DapoMath, DapoMathConfig
from tasks.game24 import Game24Config, game24_task
from tasks.gsm8k import Gsm8k, Gsm8kConfig
from tasks.hendrycks_math import HendrycksMath, MathConfig
from tasks.mbpp_plus import MbppPlus, MbppPlusConfig
from tasks.parquet import ParquetConfig, ParquetTask
from tasks.reasoning_gym import ReasoningGym, ReasoningGymConfig

__all__ = ["MIXTURE", "PATH_KEYS", "TASKS", "KnownTask", "MixtureConfig", "PartConfig", "TaskConfig", "TaskSections"]


class KnownTask(NamedTuple):
    """A task of this package: what makes it, and the keys of `[task]` whose values that is called with."""

    make: Callable[..., Task]
    keys: tuple[str, ...]


TASKS: Mapping[str, KnownTask] = {
    "aime": KnownTask(Aime, ("aime",)),
    "arithmetic": KnownTask(Arithmetic, ("arithmetic", "seed")),
    "countdown": KnownTask(countdown_task, ("countdown", "seed")),
    "dapo-math": KnownTask(DapoMath, ("dapo_math", "math", "aime")),
    "game24": KnownTask(game24_task, ("game24", "seed")),
    "gsm8k": KnownTask(Gsm8k, ("gsm8k",)),
    "math": KnownTask(HendrycksMath, ("math",)),
    "mbpp-plus": KnownTask(MbppPlus, ("mbpp_plus",)),
    "parquet": KnownTask(ParquetTask, ("parquet",)),
    "reasoning-gym": KnownTask(ReasoningGym, ("reasoning_gym", "seed")),
}
"""The known tasks by name, without the mixture of several."""

MIXTURE = "mixture"


class TaskSections(Section):
    """The sections that tasks are made with: one for each known task, and the options of a class of your own."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of your own class, if `name` is its import path. A known task has a section below instead."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """The arithmetic task."""
    countdown: CountdownConfig = CountdownConfig()
    """Countdown."""
    game24: Game24Config = Game24Config()
    """The Game of 24."""
    gsm8k: Gsm8kConfig = Gsm8kConfig()
    """The GSM8K task."""
    math: MathConfig = MathConfig()
    """MATH, whose test set dapo-math reads as well."""
    aime: AimeConfig = AimeConfig()
    """AIME, whose problems are also dapo-math's dev and test."""
    dapo_math: DapoMathConfig = DapoMathConfig()
    """DAPO-Math."""
    mbpp_plus: MbppPlusConfig = MbppPlusConfig()
    """MBPP+."""
    parquet: ParquetConfig = ParquetConfig()
    """The task of your own files."""
    reasoning_gym: ReasoningGymConfig = ReasoningGymConfig()
    """The generators of reasoning-gym."""

    def values(self, seed: int) -> dict[str, Any]:
        """Return what a task can be made with, by key."""
        return {"seed": seed, **{name: getattr(self, name) for name in TaskSections.model_fields}}


class PartConfig(TaskSections):
    """One part of a mixture. Only the sections that its own task reads may be given."""

    name: Annotated[str, AfterValidator(Known(*TASKS))] | None = None
    """Which task it is: a known name, or the import path of a class of your own. Unset: the label is the name."""
    weight: float = Field(default=1.0, gt=0)
    """How often the part is drawn from, in proportion to the other parts."""

    @model_serializer(mode="wrap")
    def _without_the_other_tasks(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if key not in TaskSections.model_fields or key in _sections_of(self.name)}


class MixtureConfig(Section):
    """The parts of a mixture."""

    parts: dict[str, PartConfig] = Field(default_factory=dict)
    """The parts by label. Ids, logs and metrics call the problems of a part by its label."""

    @field_validator("parts")
    @classmethod
    def _parts_have_names(cls, parts: dict[str, PartConfig]) -> dict[str, PartConfig]:
        return {label: _named(label, part) for label, part in parts.items()}


def _named(label: str, part: PartConfig) -> PartConfig:
    """Return `part` with its name. Raises ValueError if it has none, or if the part contradicts itself."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", label):
        raise ValueError(f"part '{label}': a label is made of up to 40 letters, digits, - and _")
    if part.name is None and label not in TASKS:
        raise ValueError(f"part '{label}' is not called by a task: set its name to one of {', '.join(TASKS)}, or to an import path")
    if label in TASKS and part.name not in (None, label):
        raise ValueError(f"part '{label}' has the name \"{part.name}\": a part called by a task is that task; call it otherwise")
    named = part if part.name else part.model_copy(update={"name": label})
    others = part.model_fields_set & TaskSections.model_fields.keys() - _sections_of(named.name)
    if others:
        raise ValueError(f"part '{label}' is the task {named.name}, but has a section {min(others)}")
    return named


def _sections_of(name: str | None) -> set[str]:
    if name is None:
        return set()
    return set(TASKS[name].keys) - {"seed"} if name in TASKS else {"options"}


class TaskConfig(TaskSections):
    """The task of a job. The sections of other tasks have no effect."""

    name: Annotated[str, AfterValidator(Known(*TASKS, MIXTURE))] = "arithmetic"
    """Which task it is: a known name, or the import path "package.module:Class" of a class of your own."""
    seed: int = 0
    """Seed of the known tasks that draw their problems. Each split draws its own numbers from it. It does not affect
    which questions are held out, nor tasks that read files."""
    mixture: MixtureConfig = MixtureConfig()
    """Several tasks as one."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Whether training chooses problems by how often the policy solves them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == MIXTURE and not self.mixture.parts:
            raise ValueError('name = "mixture" without parts: add sections [task.mixture.parts.LABEL]')
        if self.options and (self.name in TASKS or self.name == MIXTURE):
            raise ValueError(f'options are for a class of your own, and name = "{self.name}" is a known task: set its own section')
        return self


def _path_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name == "path":
            yield f"{prefix}.path"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _path_keys(field.annotation, f"{prefix}.{name}")


PATH_KEYS = tuple(_path_keys(TaskConfig, "task"))
"""Where the files of each task are. These keys may differ between two starts of one run."""
