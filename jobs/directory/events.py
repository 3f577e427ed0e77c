"""What happened in a run, in the order in which it did: `RUN_DIR/events.jsonl`, one JSON object a line.

    {"seq": 41, "time": 1760000000.1, "step": 7, "event": "batch", "group_ids": [3, 4, 6]}

    log = EventLog(path)                                     # or EventLog(path, resume_step=20)
    log.write(EventKind.BATCH, step=7, group_ids=[3, 4, 6])
    log.close()

    recorded = batches(read_events(path))                    # {1: [0, 1, 2], ...}, as `jobs.offline.replay_from` trains on them again

What exceeds the cap is forgotten, oldest first (`jobs.directory.rolling`). A run that goes on from a checkpoint says so
by RESUMED; what it then does again supersedes what was written of the later steps. An event of a group or a worker
carries the step of the last event that had one."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from jobs.directory.rolling import parts, roll

MAX_BUFFERED_EVENTS = 1000
"""Written at the latest when there are so many: what a killed process can lose."""
MAX_KEPT_EVENTS = 10 * MAX_BUFFERED_EVENTS
"""Kept, newest first, for a disk that is full and may not stay so: the memory the log can take. A gap in `seq` says
that some were lost."""


class EventKind(StrEnum):
    """Kinds, each with its fields."""

    _fields: frozenset[str]

    def __new__(cls, value: str, *fields: str) -> Self:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind._fields = frozenset(fields)
        return kind

    # a group
    ADMITTED = "admitted", "group_id", "problem_id", "attempt", "version"
    """A problem took a slot; `version` is the newest live one."""
    DISPATCHED = "dispatched", "group_id", "worker", "tries", "resumed_tokens"
    """Given to a worker, for the `tries`-th time, with so many tokens sampled before."""
    COMPLETED = "completed", "group_id", "worker", "tokens", "aborted"
    """A worker gave it back: tokens of all its responses, and how many of these are unfinished."""
    VERDICTS = "verdicts", "group_id", "counts"
    """Verified: number of responses by verdict status."""
    INSERTED = "inserted", "group_id", "result"
    """Offered to replay: an `InsertResult`."""
    DROPPED = "dropped", "group_id", "reason"
    """Its slot was given back without a gradient."""

    # a step
    BATCH = "batch", "step", "group_ids"
    """Drawn, to be trained on as this step; ids in the order of the batch's rows."""
    ABSORBED = "absorbed", "step", "groups"
    """So many groups were scored and are now part of what exploration remembers."""
    TRAINED = "trained", "step", "version"
    """The gradient was applied and made this version."""
    PUBLISHED = "published", "version", "workers"
    """So many workers hold this version."""
    CHECKPOINT = "checkpoint", "step"
    """A checkpoint of this step is complete."""
    RESUMED = "resumed", "step"
    """The run goes on from the checkpoint of this step. Events of later steps before this one are superseded."""

    # the run's parts
    WORKER = "worker", "worker", "role", "state", "reason"
    """A process came into a state (`jobs.run.fleet`)."""
    FAULT = "fault", "role", "name", "kind", "error"
    """Something failed: what, and the kind of failure (`jobs.processes.failures`)."""
    DESIRED = "desired", "role", "count", "by"
    """So many processes of a role are wanted from now on, and who wants it."""

    @property
    def fields(self) -> frozenset[str]:
        return self._fields


EVENTS = "events.jsonl"

FLUSHED = frozenset((EventKind.BATCH, EventKind.CHECKPOINT, EventKind.RESUMED, EventKind.FAULT))
"""On disk, with all before them, when `write` returns. A batch is known before it is trained on."""

HEAD = ("seq", "time", "step", "event")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line. `seq` counts over all starts of a run; `time` is Unix time; `fields` are those of `kind` without the
    step."""

    seq: int
    time: float
    step: int
    kind: EventKind
    fields: Mapping[str, Any]


class EventLog:
    """Appends to a run's event log. One process at a time; bounded memory."""

    def __init__(self, path: Path, *, resume_step: int = 0, max_bytes: int | None = None) -> None:
        """Go on behind what earlier starts wrote, which is marked as superseded beyond `resume_step`."""
        self._path = path
        self._max_bytes = max_bytes
        self._seq, self._step = 0, resume_step
        self._buffered: deque[str] = deque(maxlen=MAX_KEPT_EVENTS)
        end, last = _end(path)
        self._file = self._open()
        os.ftruncate(self._file, end)
        if last is not None:
            self._seq = last.seq + 1
            self.write(EventKind.RESUMED, step=resume_step)

    def write(self, event: EventKind, /, **fields: Any) -> None:
        """Raises TypeError unless `fields` are those of the kind, and for a value that JSON cannot hold."""
        if fields.keys() != event.fields:
            raise TypeError(f"event '{event}' has the fields {sorted(event.fields)}, not {sorted(fields)}")
        self._step = fields.pop("step", self._step)
        record = {"seq": self._seq, "time": time.time(), "step": self._step, "event": event.value, **fields}
        self._buffered.append(json.dumps(record) + "\n")
        self._seq += 1
        if event in FLUSHED or len(self._buffered) >= MAX_BUFFERED_EVENTS:
            self.flush()

    def flush(self) -> None:
        """Raises OSError where the disk is full; nothing is then written, and the events stay for the next flush."""
        if not self._buffered:
            return
        data, before = "".join(self._buffered).encode(), os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise
        self._buffered.clear()
        if self._max_bytes is not None and roll(self._path, self._max_bytes):
            os.close(self._file)
            self._file = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            os.close(self._file)


def read_events(path: Path) -> Iterator[Event]:
    """The events in order, read as they are asked for. A last line that is half-written (its writer was killed) is left
    out.

    Raises FileNotFoundError without a log and ValueError, with the number of the line, for one that is damaged.
    """
    for part in parts(path) or [path]:
        with open(part, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield _event(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"{part}, line {number} is no event: {line[:80]!r}") from None


def batches(events: Iterable[Event]) -> dict[int, list[int]]:
    """Group ids by step, in the order in which they were trained on. Where a step was begun several times, the last
    time counts.

    Raises ValueError for a batch without them.
    """
    by_step: dict[int, list[int]] = {}
    for event in events:
        if event.kind is EventKind.RESUMED:
            by_step = {step: ids for step, ids in by_step.items() if step <= event.step}
        elif event.kind is EventKind.BATCH:
            if not isinstance(ids := event.fields.get("group_ids"), list):
                raise ValueError(f"event {event.seq}, the batch of step {event.step}, has no group_ids")
            by_step[event.step] = ids
    return by_step


def _event(record: dict[str, Any]) -> Event:
    seq, at, step, kind = (record[name] for name in HEAD)
    fields = {name: value for name, value in record.items() if name not in HEAD}
    return Event(seq=seq, time=at, step=step, kind=EventKind(kind), fields=fields)


def _end(path: Path) -> tuple[int, Event | None]:
    """Where the last whole line of the file ends, and the last event of the log."""
    if not parts(path):
        return 0, None
    last = deque(read_events(path), maxlen=1)
    end = 0
    if path.exists():
        with open(path, "rb") as file:
            end = sum(len(line) for line in file if line.endswith(b"\n"))
    return end, last[0] if last else None
