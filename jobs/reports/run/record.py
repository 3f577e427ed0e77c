"""What a run has written down, read while it may write on. Nothing here is written, locked or waited for.

    record = read_record(Path("runs/quickstart"))      # raises UserError for a directory without a training run
    record.metrics, record.evaluations, record.events, record.status
    record.notes                                       # what could not be read, in sentences

A file that is damaged, or that the run replaces just now, is read as far as it goes, and a note says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jobs.cluster.runs import is_alive
from jobs.configuration.user_error import UserError, one_line
from jobs.directory.events import EVENTS, Event, read_events
from jobs.directory.job_dir import CONFIG, read_json
from jobs.directory.metrics import damaged_lines, evaluations_of, read_metrics
from jobs.directory.run_state import STATUS, RunStatus, read_status

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run at one moment."""

    directory: Path
    status: RunStatus | None
    is_alive: bool
    """Whether its process holds the lock of the directory."""
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    events: list[Event]
    notes: tuple[str, ...]


def read_record(directory: Path) -> RunRecord:
    """Read the run in `directory`. Raises UserError where none was ever started there."""
    if not any((directory / name).exists() for name in (STATUS, METRICS, EVENTS)):
        raise UserError(f"{directory} holds no training run: it has none of {STATUS}, {METRICS} and {EVENTS}")
    notes: list[str] = []
    metrics = directory / METRICS
    return RunRecord(
        directory=directory,
        status=read_status(directory),
        is_alive=is_alive(directory),
        config=_config(directory / CONFIG, notes),
        metrics=_records(metrics, notes),
        evaluations=_records(evaluations_of(metrics), notes),
        events=_as_far_as_it_goes(lambda: read_events(directory / EVENTS), notes),
        notes=tuple(notes),
    )


def _config(file: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return read_json(file)
    except (OSError, UserError) as error:
        notes.append(f"The settings are missing: {one_line(str(error))}.")
        return {}


def _records(jsonl: Path, notes: list[str]) -> list[dict[str, float]]:
    """Return the records of a file of metrics. Damaged lines are left out and named."""
    if damaged := _as_far_as_it_goes(lambda: damaged_lines(jsonl), notes):
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        notes.append(f"Left out as damaged: {damaged[0]}{more}.")
    return _as_far_as_it_goes(lambda: read_metrics(jsonl), [])


def _as_far_as_it_goes(read: Callable[[], Iterable[T]], notes: list[str]) -> list[T]:
    found: list[T] = []
    try:
        for item in read():
            found.append(item)
    except FileNotFoundError as error:
        notes.append(f"{Path(error.filename).name} is missing.")
    except (OSError, ValueError) as error:
        notes.append(f"Read up to a damaged place: {one_line(str(error))}.")
    return found
