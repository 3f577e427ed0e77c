"""A comparison as a process that can be killed: `python -m tests.jobs.comparison_process COMPARE.toml [MOMENT]`.

It prints what is done, and kills itself with SIGKILL at the MOMENT-th time that something is put in its place: a file
of any kind, a checkpoint, a trained step or a judged problem."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import resolve
from jobs.comparison.session import run_comparison
from jobs.configuration.files import load
from learners.checkpoint import CheckpointManager
from tests.jobs.comparison_fixture import InProcess


class Death:
    """Counts moments."""

    def __init__(self, moment: int) -> None:
        self._left = moment

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, owner: type, method: str) -> None:
        """Count every call of a method, before it is made."""
        made: Callable[..., Any] = getattr(owner, method)

        def counted(*args: Any, **options: Any) -> Any:
            self.count()
            return made(*args, **options)

        setattr(owner, method, counted)


def main() -> int:
    file, *moment = sys.argv[1:]
    death = Death(int(moment[0]) if moment else 0)
    death.before(Path, "replace")
    death.before(CheckpointManager, "commit")
    death.before(CheckpointManager, "truncate")

    def note(line: str) -> None:
        print(line, flush=True)
        death.count()

    experiment = resolve(load(CompareConfig, file), source=file)
    return run_comparison(experiment, InProcess(note), Console(quiet=True))


if __name__ == "__main__":
    sys.exit(main())
