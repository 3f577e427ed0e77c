"""The runs of this machine, as people name them.

    directory = find_run("quickstart")          # a directory, or a name that is searched for in ./runs and ~/repexp-runs
    is_alive(directory)                         # by its lock, not by what its files say
"""

from __future__ import annotations

import difflib
import fcntl
import time
from collections.abc import Iterable
from pathlib import Path

from jobs.directory.job_dir import LOCK
from jobs.directory.run_state import STATUS
from jobs.user_error import UserError

STORAGE = "~/repexp-runs"
"""Where runs submitted to a cluster are kept on its head, unless `--storage` says otherwise."""
LOCAL_RUNS = "runs"


def local_runs() -> list[Path]:
    """Directories of runs in ./runs and in the storage directory, by name."""
    places = (Path(LOCAL_RUNS), Path(STORAGE).expanduser())
    return sorted((file.parent for place in places for file in place.glob(f"*/{STATUS}")), key=lambda directory: directory.name)


def find_run(run: str) -> Path:
    """The directory that `run` names. Raises UserError with the nearest names."""
    places = [Path(run)] if "/" in run else [Path(LOCAL_RUNS) / run, Path(STORAGE).expanduser() / run, Path(run)]
    for directory in places:
        if (directory / STATUS).is_file() or (directory / LOCK).is_file():
            return directory
    known = {directory.name for directory in local_runs()}
    raise UserError(unknown_run(Path(run).name, known, f"in ./{LOCAL_RUNS} or {STORAGE}"))


def unknown_run(run: str, known: Iterable[str], where: str) -> str:
    """One line: there is no such run, and which ones have names like it."""
    names = sorted(set(known))
    near = difflib.get_close_matches(run, names, n=3) or names[:5]
    return f"no run {run!r} {where} ({'there are: ' + ', '.join(near) if near else 'there is none at all'})"


def is_alive(directory: Path) -> bool:
    """Whether a process holds the run's lock. Asking takes the lock shared for microseconds where nobody holds it."""
    try:
        with open(directory / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def owner(directory: Path) -> int | None:
    """The process id in the run's lock file: of the process that holds it, or of the last that did."""
    try:
        return int((directory / LOCK).read_text())
    except (OSError, ValueError):
        return None


def age(then: float, now: float | None = None) -> str:
    """How long ago a Unix time was: "12 s", "3 min", "2.5 h", "4 d"."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for limit, unit, form in ((90.0, 1.0, "{:.0f} s"), (5400.0, 60.0, "{:.0f} min"), (172800.0, 3600.0, "{:.1f} h")):
        if seconds < limit:
            return form.format(seconds / unit)
    return f"{seconds / 86400:.0f} d"
