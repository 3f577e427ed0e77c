"""Removes directories outside a run's own that a killed process left behind. Their names carry its process id."""

import os
import shutil
from pathlib import Path

import psutil


def remove_orphans(place: Path, prefix: str) -> None:
    """Delete the directories `place`/`prefix`PID-* of this user whose process is gone."""
    for directory in place.glob(f"{prefix}*-*"):
        owner = directory.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and directory.stat().st_uid == os.getuid():
            shutil.rmtree(directory, ignore_errors=True)
