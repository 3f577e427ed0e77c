"""Tasks by name or by import path.

    require_methods(config)      # once, before anything starts: a wrong import path is one line
    task = make_task(config)

A known task is an entry of `TASKS`. Any other name is the import path of a class of your own (`tasks.base.Task`)."""

from collections.abc import Iterator
from hashlib import blake2b

from buffers.extensions import is_path, load
from tasks.base import DEFAULT_JUDGING, MEMBERS, JudgingConfig, Task
from tasks.config import MIXTURE, TASKS, PartConfig, TaskConfig
from tasks.mixture import Mixture, Part, naming_part

__all__ = ["TASKS", "make_task", "require_methods"]


def make_task(config: TaskConfig, judging: JudgingConfig = DEFAULT_JUDGING) -> Task:
    """Make the task that `config` names, which reads responses by `judging`; read no data. Raises ExtensionError for a
    class that makes no `Task`."""
    if config.name != MIXTURE:
        return _judging(_make(config, "task", config.seed), judging)
    parts: dict[str, Part] = {}
    for key, label, part in _parts(config):
        with naming_part(label):
            parts[label] = Part(task=_judging(_make(part, key, _seed(config, label, part)), judging), weight=part.weight)
    return Mixture(parts, config.seed)


def require_methods(config: TaskConfig) -> None:
    """Raise ExtensionError unless every class of your own that `config` names can be imported and made."""
    if is_path(config.name):
        _make(config, "task", config.seed)
    for key, _, part in _parts(config):
        if is_path(str(part.name)):
            _make(part, key, config.seed)


def _judging(task: Task, judging: JudgingConfig) -> Task:
    """Let `task` judge by `judging`, unless it is a class of your own that reads responses in another way."""
    if hasattr(task, "judging"):
        task.judging = judging
    return task


def _parts(config: TaskConfig) -> Iterator[tuple[str, str, PartConfig]]:
    """Yield key, label and configuration of each part of a mixture."""
    if config.name == MIXTURE:
        for label, part in config.mixture.parts.items():
            yield f"task.mixture.parts.{label}", label, part


def _make(config: TaskConfig | PartConfig, key: str, seed: int) -> Task:
    """Make one task. `key` is the place of `config` in the whole configuration, for messages."""
    name = str(config.name)
    if name not in TASKS:
        task: Task = load(name, config.options, key=f"{key}.name", options_key=f"{key}.options", methods=MEMBERS)
        return task
    values = config.values(seed)
    return TASKS[name].make(*(values[each] for each in TASKS[name].keys))


def _seed(config: TaskConfig, label: str, part: PartConfig) -> int:
    """Return the seed of a part: that of the task alone if the part has its name, else one of its own."""
    if part.name == label:
        return config.seed
    return int.from_bytes(blake2b(f"{config.seed}/{label}".encode(), digest_size=6).digest(), "big")
