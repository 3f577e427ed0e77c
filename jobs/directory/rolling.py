"""Logs of lines that stay below a cap: `NAME.jsonl`, and `NAME.older.jsonl` with the lines before. A file that has
grown to half of the cap replaces the older one. So between half of the cap and all of it is kept, and rolling costs two
renames."""

from __future__ import annotations

from pathlib import Path


def older(path: Path) -> Path:
    """Return the path of the older file."""
    return path.with_name(f"{path.stem}.older{path.suffix}")


def parts(path: Path) -> list[Path]:
    """Return the files that exist, oldest first."""
    return [part for part in (older(path), path) if part.exists()]


def roll(path: Path, max_bytes: int) -> bool:
    """Begin a new file if this has half of `max_bytes`, and return whether it did: open files must be reopened."""
    if path.stat().st_size < max_bytes // 2:
        return False
    path.replace(older(path))
    path.touch()
    return True
