"""What a process that was killed leaves behind: directories outside a run's own, whose names carry its process id, and
the processes that it started."""

import multiprocessing
import os
import select
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import psutil


def remove_orphans(place: Path, prefix: str) -> None:
    """Delete the directories `place`/`prefix`PID-* of this user whose process is gone. Several processes may do so at
    once."""
    for directory in place.glob(f"{prefix}*-*"):
        owner = directory.name.removeprefix(prefix).partition("-")[0]
        with suppress(FileNotFoundError):  # another process was first
            if owner.isdigit() and not psutil.pid_exists(int(owner)) and directory.stat().st_uid == os.getuid():
                shutil.rmtree(directory, ignore_errors=True)


def end_with(owner: int) -> None:
    """Kill this process once process `owner` is gone, and its parent too if that is another one, between the two."""
    threading.Thread(target=_end_with, args=(owner,), name=f"end with {owner}", daemon=True).start()


def _end_with(owner: int) -> None:
    parent = multiprocessing.parent_process()
    with suppress(ProcessLookupError):  # it is gone already
        gone = select.poll()
        gone.register(os.pidfd_open(owner), select.POLLIN)
        gone.poll()
    if parent is not None and parent.pid is not None and parent.pid != owner:
        with suppress(ProcessLookupError):
            os.kill(parent.pid, signal.SIGKILL)
    os._exit(1)
