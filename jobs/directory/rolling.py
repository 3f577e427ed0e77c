"""Logs of lines that take no more than their cap: `NAME.jsonl`, and `NAME.older.jsonl` with what came before.

Where a file has grown to half of the cap it becomes the older one, in the place of that before, so between half of the
cap and all of it is kept, in two renames' worth of work."""

from __future__ import annotations

from pathlib import Path


def older(path: Path) -> Path:
    """Where what came before is kept."""
    return path.with_name(f"{path.stem}.older{path.suffix}")


def parts(path: Path) -> list[Path]:
    """The files there are, oldest first."""
    return [part for part in (older(path), path) if part.exists()]


def roll(path: Path, max_bytes: int) -> bool:
    """Begin a new file if this one has reached half of `max_bytes`; whether it did. Whoever has it open must open it
    again."""
    if path.stat().st_size < max_bytes // 2:
        return False
    path.replace(older(path))
    path.touch()
    return True
