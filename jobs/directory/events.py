"""What happened in a run, in its order: `RUN_DIR/events.jsonl`, one JSON object on each line.

    {"seq": 41, "time": 1760000000.1, "step": 7, "event": "batch", "group_ids": [3, 4, 6]}

    log = EventLog(path)                                     # or EventLog(path, resume_step=20)
    log.write(EventKind.BATCH, step=7, group_ids=[3, 4, 6])
    log.close()

Events beyond the cap are forgotten, oldest first (`jobs.directory.rolling`). A run that continues from a checkpoint
writes RESUMED; its events then supersede those of later steps before it. An event of a group or a worker carries the
step of the last event that had one."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from jobs.directory.rolling import parts, roll

MAX_BUFFERED_EVENTS = 1000
"""Events are written when this many have gathered, at the latest: a killed process can lose no more."""
MAX_KEPT_EVENTS = 10 * MAX_BUFFERED_EVENTS
"""Events that are kept while the disk is full, the newest ones: a bound of memory. A gap in `seq` shows a loss."""


class EventKind(StrEnum):
    """The kinds of events, each with its fields."""

    _fields: frozenset[str]

    def __new__(cls, value: str, *fields: str) -> Self:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind._fields = frozenset(fields)
        return kind

    # a group
    ADMITTED = "admitted", "group_id", "problem_id", "attempt", "version"
    """A problem took a slot; `version` is the newest live version."""
    DISPATCHED = "dispatched", "group_id", "worker", "tries", "resumed_tokens"
    """A worker got the group, for the `tries`-th time; `resumed_tokens` were sampled before."""
    COMPLETED = "completed", "group_id", "worker", "tokens", "aborted"
    """A worker returned the group: the tokens of all its responses, and the number of unfinished responses."""
    VERDICTS = "verdicts", "group_id", "counts"
    """The group was verified: the number of responses by verdict status."""
    INSERTED = "inserted", "group_id", "result"
    """Replay was offered the group: an `InsertResult`."""
    DROPPED = "dropped", "group_id", "reason"
    """The group gave its slot back without a gradient."""

    # a step
    BATCH = "batch", "step", "group_ids"
    """The groups of this step were drawn, with ids in the order of the batch's rows."""
    ABSORBED = "absorbed", "step", "groups"
    """This many groups were scored and are now part of the exploration memory."""
    TRAINED = "trained", "step", "version"
    """The gradient was applied and made this version."""
    PUBLISHED = "published", "version", "workers"
    """This many workers hold this version."""
    LOADED = "loaded", "worker", "version", "check_s", "load_s"
    """A rollout worker took this version: it checked the weights while it sampled, and stood still to load them."""
    CHECKPOINT = "checkpoint", "step", "seconds"
    """A checkpoint of this step is complete, and took this long."""
    RESUMED = "resumed", "step"
    """The run continues from the checkpoint of this step, and supersedes events of later steps before this one."""

    # the run's parts
    WORKER = "worker", "worker", "role", "state", "reason"
    """A process entered a state (`jobs.run.fleet`)."""
    FAULT = "fault", "role", "name", "kind", "error"
    """Something failed; `kind` is the kind of failure (`jobs.processes.failures`)."""
    DESIRED = "desired", "role", "count", "by"
    """From now on `count` processes of a role are wanted; `by` says who wants them."""

    @property
    def fields(self) -> frozenset[str]:
        """The names of its fields."""
        return self._fields


EVENTS = "events.jsonl"
FLUSHED = frozenset((EventKind.BATCH, EventKind.CHECKPOINT, EventKind.RESUMED, EventKind.FAULT))
"""Kinds that are on disk, with all events before, when `write` returns: a batch is known before it is trained on."""

HEAD = ("seq", "time", "step", "event")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line. `seq` counts over all starts of a run, `time` is Unix time, `fields` are its own but the step."""

    seq: int
    time: float
    step: int
    kind: EventKind
    fields: Mapping[str, Any]


class EventLog:
    """Appends to a run's event log. One process at a time may do that; its memory is bounded."""

    def __init__(self, path: Path, *, resume_step: int = 0, max_bytes: int | None = None) -> None:
        """Append to what earlier starts wrote, and mark it as superseded after `resume_step`."""
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
        """Write an event. Raises TypeError for fields other than its kind's, and for a value that JSON cannot hold."""
        if fields.keys() != event.fields:
            raise TypeError(f"event '{event}' has the fields {sorted(event.fields)}, not {sorted(fields)}")
        self._step = fields.pop("step", self._step)
        record = {"seq": self._seq, "time": time.time(), "step": self._step, "event": event.value, **fields}
        self._buffered.append(json.dumps(record) + "\n")
        self._seq += 1
        if event in FLUSHED or len(self._buffered) >= MAX_BUFFERED_EVENTS:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered. Raises OSError where the disk is full: the events then stay for the next flush."""
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
        """Write what is buffered, and end."""
        try:
            self.flush()
        finally:
            os.close(self._file)


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events in order, without a last line that is half-written because its writer was killed. Raises
    FileNotFoundError without a log, and ValueError with the number of a damaged line."""
    for part in parts(path) or [path]:
        with open(part, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield _event(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"{part}, line {number} is no event: {line[:80]!r}") from None


def _event(record: dict[str, Any]) -> Event:
    seq, at, step, kind = (record[name] for name in HEAD)
    fields = {name: value for name, value in record.items() if name not in HEAD}
    return Event(seq=seq, time=at, step=step, kind=EventKind(kind), fields=fields)


def _end(path: Path) -> tuple[int, Event | None]:
    """Return where the last whole line of the file ends, and the last event of the log."""
    if not parts(path):
        return 0, None
    last = deque(read_events(path), maxlen=1)
    end = 0
    if path.exists():
        with open(path, "rb") as file:
            end = sum(len(line) for line in file if line.endswith(b"\n"))
    return end, last[0] if last else None
