"""Saving and restoring an actor's part of a checkpoint, in its own process, by its own `save` and `load`."""

from typing import Any

from learners.checkpoint import CheckpointManager, FileEntry


class Checkpointed:
    """Mixed into actors that have `save(directory)` and `load(directory)`."""

    def save_part(self: Any, manager: CheckpointManager, step: int, part: str) -> list[FileEntry]:
        return manager.save(step, part, self.save)

    def load_part(self: Any, manager: CheckpointManager, step: int, part: str) -> None:
        manager.restore(step, part, self.load)
