"""The runs of this machine, as people name them: by a directory, or a name in ./runs or ~/repexp-runs."""

from __future__ import annotations

import difflib
import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from jobs.configuration.files import path_of
from jobs.configuration.user_error import UserError
from jobs.directory.job_dir import LOCK
from jobs.directory.run_state import STATUS

STORAGE = "~/repexp-runs"
"""Where the head of a cluster keeps submitted runs, unless `--storage` says otherwise."""
LOCAL_RUNS = "runs"


def run_places() -> list[Path]:
    """Return ./runs, and the storage directory unless it is missing or closed to this user."""
    storage = Path(os.path.expanduser(STORAGE))
    return [Path(LOCAL_RUNS), *([storage] if os.access(storage, os.R_OK | os.X_OK) else [])]


def local_runs() -> list[Path]:
    """Return the directories of runs in ./runs and in the storage directory, sorted by name."""
    return sorted((file.parent for place in run_places() for file in place.glob(f"*/{STATUS}")), key=lambda directory: directory.name)


def find_run(run: str) -> Path:
    """Return the directory that `run` names. Raises UserError, with the nearest names, where there is none."""
    run = run.rstrip("/") or run
    places = [path_of(run)] if "/" in run else [*(place / run for place in run_places()), Path(run)]
    for directory in places:
        if (directory / STATUS).is_file() or (directory / LOCK).is_file():
            return directory
    known = {directory.name for directory in local_runs()}
    raise UserError(unknown_run(Path(run).name, known, f"in ./{LOCAL_RUNS} or {STORAGE}"))


def unknown_run(run: str, known: Iterable[str], where: str) -> str:
    """Return one line: there is no such run, and which runs have a similar name."""
    names = sorted(set(known))
    near = difflib.get_close_matches(run, names, n=3) or names[:5]
    return f"no run {run!r} {where} ({'there are: ' + ', '.join(near) if near else 'there is none at all'})"


def is_alive(directory: Path) -> bool:
    """Return whether a process holds the run's lock. Asking takes a free lock, shared, for microseconds."""
    try:
        with open(directory / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def owner(directory: Path) -> int | None:
    """Return the process id in the run's lock file: that of the process which holds the lock, or held it last."""
    try:
        return int((directory / LOCK).read_text())
    except (OSError, ValueError):
        return None


def shown(path: Path) -> str:
    """Return `path` relative to the current directory where it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def command_line(name: str, *words: str) -> str:
    """Return `repexp NAME WORDS` as a person types it in a shell. In an environment without that command, as on the
    head of a cluster, it is `python -m jobs.NAME WORDS`."""
    script = Path(sys.executable).with_name("repexp")
    if not script.is_file():
        return python_line(f"jobs.{name}", *words)
    return shlex.join(["repexp" if shutil.which("repexp") == str(script) else shown(script), name, *words])


def python_line(module: str, *words: str) -> str:
    """Return `python -m MODULE WORDS` as a person types it in a shell, with the interpreter of this process."""
    return shlex.join([shown(Path(sys.executable)), "-m", module, *words])


def age(then: float, now: float | None = None) -> str:
    """Return how long ago a Unix time was: "12 s", "3 min", "2.5 h", "4 d"."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for limit, unit, form in ((90.0, 1.0, "{:.0f} s"), (5400.0, 60.0, "{:.0f} min"), (172800.0, 3600.0, "{:.1f} h")):
        if seconds < limit:
            return form.format(seconds / unit)
    return f"{seconds / 86400:.0f} d"
