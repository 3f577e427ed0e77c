"""What of a comparison is to be done next. A unit is a run with its evaluations, or the evaluation of the base model;
its commands are carried out one after the other, and units do not wait for each other.

    unit.next_command()       # from what lies on the disk: None when all is done
    unit.tidy()               # afterwards

Nothing else remembers how far a comparison is. So it may be killed at any point, and no command is given twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.comparison.experiment import ComparedRun, Evaluated, Experiment
from jobs.configuration.user_error import UserError


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as a person would type it after `python -m`."""

    name: str
    title: str
    """What it does, in words."""
    module: str
    arguments: tuple[str, ...]
    directory: Path
    """The directory that it works in, and whose lock it holds."""
    takes_from: Path | None = None
    """The directory of a run whose policy it takes."""


class Unit(Protocol):
    """One part of a comparison."""

    @property
    def name(self) -> str: ...
    def next_command(self) -> Command | None:
        """Return what is to be done next, or None. Raises UserError where that cannot be said."""

    def tidy(self) -> None:
        """Remove what is not needed once everything is done."""


class BaseUnit:
    """The evaluation of the base model, which all methods share."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.name = experiment.base.name

    def next_command(self) -> Command | None:
        base = self._experiment.base
        return None if base.is_done else _evaluate(self._experiment, base, f"base model ({base.model})")

    def tidy(self) -> None:
        """There is nothing to remove."""


class RunUnit:
    """One run: it is trained to its end, then the policies of its steps are evaluated."""

    def __init__(self, experiment: Experiment, run: ComparedRun) -> None:
        self._experiment, self._run = experiment, run
        self.name = run.name

    def next_command(self) -> Command | None:
        waiting = self._run.waiting
        if not waiting:
            return None
        title = f"{self._run.method}, seed {self._run.seed}"
        if self._run.has_policies:
            return _evaluate(self._experiment, waiting[0], f"{title}, step {waiting[0].step}", takes_from=self._run.directory.path)
        self._require_trainable(waiting)
        return Command(
            name=self.name,
            title=f"{title}: training, {self._run.config.steps} steps",
            module="jobs.train",
            arguments=(str(self._experiment.run_file(self._run)),),
            directory=self._run.directory.path,
        )

    def tidy(self) -> None:
        """Remove checkpoints and snapshots once every policy is evaluated."""
        if not self._run.waiting and not self._experiment.config.keep_checkpoints:
            self._run.directory.checkpoints.truncate(after_step=-1)
            self._run.directory.forget_snapshots()

    def _require_trainable(self, waiting: list[Evaluated]) -> None:
        """Raise UserError for a run whose checkpoints are gone, of which only results are here, or that has passed a
        step without keeping its policy."""
        directory, step = self._run.directory, waiting[0].step
        if not directory.path.exists() and self._run.found:
            raise UserError(f"{directory.path} is not here, and what was found of it has no policy of step {step}: {self._anew()}")
        latest, exported = directory.checkpoints.latest(), directory.policy_step
        if latest is None and exported is not None:
            raise UserError(
                f"{directory.path} ended at step {exported} and its checkpoints were removed, so it has no policy of step {step}: choose "
                f"another with --set out=DIR (and keep_checkpoints = true), or {self._anew()}"
            )
        passed = [
            one.step for one in waiting if latest is not None and one.step <= latest and one.step not in directory.checkpoints.steps()
        ]
        if passed and passed[0] != exported:
            raise UserError(f"{directory.path} is past step {passed[0]} and did not keep its policy: {self._anew()}")

    def _anew(self) -> str:
        """Return what must be deleted before the run may be trained again: policies of two trainings do not go
        together."""
        directory = self._run.directory.path
        there = [directory, *self._run.found] if directory.exists() else self._run.found
        return f"to train it again, delete {' '.join(map(str, there))}"


def units_of(experiment: Experiment) -> Iterator[Unit]:
    """Yield all units in the order in which they are begun."""
    yield BaseUnit(experiment)
    for run in experiment.runs:
        yield RunUnit(experiment, run)


def _evaluate(experiment: Experiment, one: Evaluated, title: str, *, takes_from: Path | None = None) -> Command:
    return Command(
        name=one.name,
        title=f"{title}: {experiment.config.evaluation.samples} responses to {experiment.config.evaluation.problems} problems",
        module="jobs.evaluate",
        arguments=(str(experiment.evaluation_file), "--model", one.model, "--out", str(one.directory)),
        directory=one.directory,
        takes_from=takes_from,
    )
