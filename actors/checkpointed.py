"""Saving and restoring an actor's part of a checkpoint, in its own process, by its own `save` and `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from learners.checkpoint import CheckpointManager, FileEntry


class Saved(Protocol):
    """What an actor with state offers."""

    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path) -> None: ...


class Checkpointed:
    """Mixed into actors that have `save(directory)` and `load(directory)`."""

    def save_part(self: Saved, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]:
        return manager.save(step, part, self.save)

    def load_part(self: Saved, manager: CheckpointManager, step: int, part: str) -> None:
        manager.restore(step, part, self.load)
