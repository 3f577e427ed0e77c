"""One start of `jobs.compare`: every unit is brought to its end, and the report is written again after each command.

    base ──evaluate──> done                          report
    run 1 ──train──> policies ──evaluate, …──> done  report, …
    run 2 …

Whoever carries out the commands (`Executor`) says how many units are at work at a time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from rich.console import Console

from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import Experiment
from jobs.comparison.results import Results
from jobs.comparison.units import Command, Unit, units_of
from jobs.configuration.user_error import EXIT_FAILED, UserError
from jobs.directory.job_dir import JobDirectory
from jobs.reports.compare.report import CompareReport, write_report
from jobs.screens.terminal import say
from learners.checkpoint import CheckpointError

CHANGEABLE = tuple(CompareConfig.model_fields)
"""Everything: methods, seeds and steps may be added. Runs and evaluations themselves keep one configuration each."""


class Executor(Protocol):
    """Carries out commands."""

    at_once: int
    """How many it takes at a time, each from a thread of its own."""
    stopped_hint: str
    """What becomes of commands under way when the comparison is stopped."""

    def execute(self, command: Command) -> str | None:
        """Carry out `command` and return None, or one line that says why that failed. After `stop` it returns soon, and
        what it returns does not count."""

    def stop(self, number: int) -> None:
        """End what is under way; `number` is the signal that asks for it."""


def run_comparison(experiment: Experiment, executor: Executor, console: Console) -> int:
    """Carry out the comparison and return its exit code. Raises UserError where it is refused."""
    out = str(experiment.out)
    with JobDirectory(out, experiment.config, changeable=CHANGEABLE, kind="the directory", option="--set out=DIR"):
        experiment.require_same_configurations()
        experiment.write_files()
        return CompareSession(experiment, executor, console).run()


class CompareSession:
    """The work of one start."""

    def __init__(self, experiment: Experiment, executor: Executor, console: Console) -> None:
        self._experiment, self._executor, self._console = experiment, executor, console
        self._results = Results(experiment)
        self._failures: dict[str, str] = {}
        self._signal: int | None = None
        self._reporting = threading.Lock()

    def run(self) -> int:
        """Bring every unit to its end. A unit that fails is named, and the others continue."""
        with _signals(self._stop), ThreadPoolExecutor(self._executor.at_once) as pool:
            work = [pool.submit(self._finish, unit) for unit in units_of(self._experiment)]
            for one in work:
                one.result()
        if self._signal is not None:
            say(self._console, f"stopped: {self._executor.stopped_hint}; the same command continues")
            return 128 + self._signal
        report = self._report()
        if report is not None:
            report.print(self._console)
        for name, why in self._failures.items():
            say(self._console, f"{name} failed: {why} ({self._experiment.log_file(name)})")
        say(self._console, f"{self._experiment.out}/report.html   overview.png   report.json   table.csv   seeds.csv")
        return EXIT_FAILED if self._failures else 0

    def _finish(self, unit: Unit) -> None:
        """Give the commands of one unit, until there is none or one fails."""
        try:
            while self._signal is None and (command := unit.next_command()) is not None:
                say(self._console, f"{command.title} ({self._experiment.log_file(command.name)})")
                why = self._executor.execute(command)
                if self._signal is not None:
                    return
                if why is None and unit.next_command() == command:
                    why = f"it ended before it was done, or did not write to {command.directory} on this machine"
                if why is not None:
                    self._fail(command.name, why)
                    return
                self._report()
            unit.tidy()
        except (UserError, CheckpointError, OSError) as error:
            self._fail(unit.name, str(error))

    def _fail(self, name: str, why: str) -> None:
        self._failures[name] = why
        say(self._console, f"{name} failed: {why}")

    def _report(self) -> CompareReport | None:
        """Write the report on what there is, and on what failed; None while that is nothing."""
        with self._reporting:
            found = self._results.read()
            if not found.policies:
                return None
            return write_report(found, self._experiment.config, self._experiment.out, failures=dict(self._failures))

    def _stop(self, number: int) -> None:
        self._signal = number
        self._executor.stop(number)


@contextmanager
def _signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call `stop` within the block."""

    def handle(number: int, _: FrameType | None) -> None:
        stop(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
