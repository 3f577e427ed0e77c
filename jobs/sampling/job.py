"""What jobs that fill a directory with pools have in common: their problems, their progress, and how they end.

return run_to_end(lambda: asyncio.run(interruptibly(session.run())), console, directory, num_done)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from buffers.records import GroupUsage, Problem
from jobs.config import ConfigError
from jobs.plan import available_memory_gib
from jobs.processes.failures import NAMED_FAILURES, details, reason
from jobs.screens.console import say
from learners.models import ModelError, check_model
from tasks.base import Task, TaskError
from tasks.stream import is_endless

EXIT_FAILED = 1

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal asked for the end; what is finished is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# ---- before anything is started ----


def problems_of(task: Task, split: str, num: int) -> list[Problem]:
    """The first `num` problems of a split; 0: all. Raises ConfigError for a split without problems, or all of an
    endless one."""
    if num == 0 and is_endless(task):
        raise ConfigError(f"problems = 0 asks for the whole split '{split}', but task {task.name} has no end: give --problems N")
    try:
        problems = list(itertools.islice(task.problems(split), num or None))
    except TaskError as error:
        raise ConfigError(str(error)) from None
    if not problems:
        raise ConfigError(f"task {task.name} has no problems in split '{split}'")
    return problems


def require_model(model: str) -> None:
    """Raises ConfigError for a model that could never be found."""
    try:
        check_model(model)
    except ModelError as error:
        raise ConfigError(str(error)) from None


def require_memory(needed_gib: float | None) -> None:
    """Raises ConfigError where the job does not fit. None: unknown before the model is fetched."""
    available_gib = available_memory_gib()
    if needed_gib is not None and needed_gib > available_gib:
        raise ConfigError(
            f"this job needs about {needed_gib:.1f} GiB of memory and {available_gib:.1f} GiB are available: close other programs, or "
            "lower rollout.workers or rollout.kv_cache_gib"
        )


# ---- the end ----


def run_to_end(work: Callable[[], None], console: Console, directory: Path, num_done: Callable[[], int]) -> int:
    """The exit code of a job, and what it says where it is not 0: the seam to the person who started it. ConfigErrors
    pass."""
    try:
        work()
        return 0
    except ConfigError:
        raise
    except Stopped as stopped:
        say(console, f"stopped with {num_done()} pools finished in {directory}; the same command goes on")
        return 128 + stopped.number
    except Exception as error:
        if text := details(error, named=(*NAMED_FAILURES, OSError)):
            print(text, file=sys.stderr)
        print(f"error: the job failed: {reason(error)} ({num_done()} pools are finished; the same command goes on)", file=sys.stderr)
        return EXIT_FAILED


async def interruptibly(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns.

    The first SIGINT or SIGTERM gives up what is in flight and raises Stopped; a second one ends the process.
    """
    task = asyncio.ensure_future(work)
    got: list[int] = []
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if got:
            os._exit(128 + number)
        got.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not got:
            raise
        raise Stopped(got[0]) from None


# ---- progress ----


class Bar:
    """Progress with a remaining time: a bar where there is a terminal, else a line each.

    with Bar(console, total=60, done=12) as bar:
        bar.advance(usage)
    """

    def __init__(self, console: Console, *, total: int, done: int, what: str = "pool") -> None:
        self._console, self._total, self._done = console, total, done
        self._what = what
        self._begun, self._done_before = time.monotonic(), done
        columns = (
            TextColumn(f"{what}s"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, TextColumn("{task.description}"), console=console) if console.is_terminal else None
        self._task = self._progress.add_task("", total=total, completed=done) if self._progress else None

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, usage: GroupUsage | None) -> None:
        self._done += 1
        speed = "" if usage is None else f"{usage.response_tokens} tokens, {usage.response_tokens / max(usage.generate_s, 1e-9):.0f}/s"
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=self._done, description=speed)
        else:
            say(self._console, f"{self._what} {self._done}/{self._total}  {speed}  {self._left()}".rstrip())

    def _left(self) -> str:
        """At the mean speed of this start."""
        per_item_s = (time.monotonic() - self._begun) / (self._done - self._done_before)
        left_s = round(per_item_s * (self._total - self._done))
        return f"{left_s // 60}:{left_s % 60:02d} left" if left_s else ""
