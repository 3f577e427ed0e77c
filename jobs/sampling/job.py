"""What all jobs share that sample for a list of problems: the problems, the progress, and how a job ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.config import PromptConfig, SamplingConfig
from buffers.records import GroupUsage, Problem
from jobs.configuration.user_error import EXIT_FAILED, UserError, refusing
from jobs.machine.look import available_memory_gib
from jobs.processes.failures import NAMED_FAILURES, details, reason
from jobs.processes.prompts import PromptLook
from jobs.screens.terminal import say
from learners.model_check import ModelFacts
from learners.models import ModelError
from tasks.base import Task
from tasks.stream import is_endless

MAX_REPEATS = 1000
"""So many drawn questions in turn that came before are taken as the end of all that there are."""

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal ended the job; what is finished is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def problems_of(task: Task, split: str, num: int, *, warn: Callable[[str], None]) -> list[Problem]:
    """Return the first `num` problems of a split, or all of them for 0. A drawn question counts once, and where there
    are fewer than `num` it warns. Raises UserError for a split without problems and for all problems of an endless
    split; TaskError where the task cannot read them."""
    is_drawn = is_endless(task)
    if num == 0 and is_drawn:
        raise UserError(f"problems = 0 asks for the whole split '{split}', but task {task.name} has no end: give --problems N")
    found = task.problems(split)
    problems = list(itertools.islice(distinct(found) if is_drawn else found, num or None))
    if not problems:
        raise UserError(f"task {task.name} has no problems in split '{split}'")
    if is_drawn and len(problems) < num:
        warn(f"split '{split}' of task {task.name} has only {len(problems)} different questions, {num} were asked for")
    return problems


def distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Return the problems without those whose question came before. A question twice would count as two problems, and
    an interval over problems would be too short. It ends after `MAX_REPEATS` questions in turn that came before."""
    seen: set[str] = set()
    repeats = 0
    for problem in problems:
        if problem.question in seen:
            repeats += 1
            if repeats == MAX_REPEATS:
                return
            continue
        repeats = 0
        seen.add(problem.question)
        yield problem


def usable_of(problems: Sequence[Problem], unusable: Collection[str]) -> list[Problem]:
    """Return the problems whose ids are not among `unusable`. Raises UserError where none are left."""
    left = [problem for problem in problems if problem.problem_id not in unusable]
    if not left:
        raise UserError(f"none of the {len(problems)} problems from {problems[0].problem_id} on can be posed")
    return left


def posed(
    models: Sequence[ModelFacts],
    problems: Sequence[Problem],
    prompt: PromptConfig,
    sampling: SamplingConfig,
    task: Task,
    *,
    warn: Callable[[str], None],
) -> tuple[list[Problem], list[SamplingConfig]]:
    """Return the problems that all `models` can be asked, and for each model how it samples. Raises UserError where
    prompts are too long and are not to be left out."""
    with refusing(ModelError):
        fits = [PromptLook(facts, prompt, sampling, task.prompt).at(problems, is_all=True) for facts in models]
    unusable = {name for fit in fits for name in fit.unusable}
    for text in dict.fromkeys(text for fit in fits for text in fit.warnings):
        warn(f"warning: {text}")
    if unusable:
        warn(f"warning: {len(unusable)} of {len(problems)} problems are left out")
    return usable_of(problems, unusable), [fit.sampling for fit in fits]


def require_memory(needed_gib: float | None) -> None:
    """Raise UserError where the job does not fit. None stands for what is unknown before the model is fetched."""
    available_gib = available_memory_gib()
    if needed_gib is not None and needed_gib > available_gib:
        raise UserError(
            f"this job needs about {needed_gib:.1f} GiB of memory and {available_gib:.1f} GiB are available: close other programs, or "
            "lower rollout.workers or rollout.kv_cache_gib"
        )


def run_to_end(work: Callable[[], None], console: Console, directory: Path, num_done: Callable[[], int]) -> int:
    """Return the exit code of a job, and tell the person who started it why it is not 0. A UserError passes."""
    try:
        work()
        return 0
    except UserError:
        raise
    except Stopped as stopped:
        say(console, f"stopped: {num_done()} problems are finished in {directory}; the same command continues")
        return 128 + stopped.number
    except Exception as error:
        if text := details(error, named=(*NAMED_FAILURES, OSError)):
            print(text, file=sys.stderr)
        finished = f"{num_done()} problems are finished; the same command continues"
        print(f"error: the job failed: {reason(error)} ({finished})", file=sys.stderr)
        return EXIT_FAILED


async def interruptibly(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns. A first SIGINT or SIGTERM cancels it and raises Stopped, a second one exits.
    Afterwards they do what they always do."""
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
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Bar:
    """Progress with the remaining time: a bar on a terminal, elsewhere a line for each problem."""

    def __init__(self, console: Console, *, total: int, done: int, what: str = "problem") -> None:
        self._console, self._total, self._done, self._what = console, total, done, what
        self._begun, self._done_before = time.monotonic(), done
        shown = (TextColumn(f"{what}s"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*shown, TextColumn("{task.description}"), console=console) if console.is_terminal else None
        self._task = self._progress.add_task("", total=total, completed=done) if self._progress else None

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, usage: GroupUsage | None) -> None:
        """Count one more as done; `usage` is what sampling it took."""
        self._done += 1
        speed = "" if usage is None else f"{usage.response_tokens} tokens, {usage.response_tokens / max(usage.generate_s, 1e-9):.0f}/s"
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=self._done, description=speed)
        else:
            say(self._console, f"{self._what} {self._done}/{self._total}  {speed}  {self._left()}".rstrip())

    def _left(self) -> str:
        per_item_s = (time.monotonic() - self._begun) / (self._done - self._done_before)
        left_s = round(per_item_s * (self._total - self._done))
        return f"{left_s // 60}:{left_s % 60:02d} left" if left_s else ""
