"""Directories outside a run's own, which outlive a process that was killed: named after its process id, so that the
next one may tell."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil


def remove_orphans(place: Path, prefix: str) -> None:
    """Delete the directories `place`/`prefix`PID-* that are this user's and whose process is gone."""
    for directory in place.glob(f"{prefix}*-*"):
        owner = directory.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and directory.stat().st_uid == os.getuid():
            shutil.rmtree(directory, ignore_errors=True)
