"""What every process did, and what it waited for, on one axis of time: made of the events of a run.

    timeline = timeline_of(events, evaluations)        # lanes and marks; times are seconds after `begin`

A lane of spans says what the one learner does, or in which state a worker is. A lane of counts says how many groups are
at a place: a place that is empty waits for the one before it, and one that is full waits for the one after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from buffers.replay import InsertResult
from jobs.directory.events import Event, EventKind
from jobs.reports.text import NAME_LIMIT, TEXT_LIMIT, visible_text

MAX_EVENTS = 50_000
"""Of more events than this, the newest are shown."""
Fields = Mapping[str, Any]


@dataclass(kw_only=True)
class Lane:
    """One row of the picture. `spans` are (begin, end, kind, text), `counts` are (time, number of groups from then
    on)."""

    name: str
    what: str = ""
    spans: list[tuple[float, float, str, str]] = field(default_factory=list)
    counts: list[tuple[float, int]] = field(default_factory=list)
    _groups: set[int] = field(default_factory=set, repr=False)

    def span(self, begin: float, end: float, kind: str, text: str) -> None:
        """This lasts from `begin` to `end`."""
        if end > begin:
            self.spans.append((begin, end, kind, text))

    def enter(self, time: float, group_id: int) -> None:
        """The group is here from now on."""
        self._groups.add(group_id)
        self._count(time)

    def leave(self, time: float, *group_ids: int) -> None:
        """The groups are here no more, if they were."""
        if self._groups.intersection(group_ids):
            self._groups.difference_update(group_ids)
            self._count(time)

    def empty(self, time: float) -> None:
        """Nothing is here any more."""
        self.leave(time, *self._groups)

    def _count(self, time: float) -> None:
        if self.counts and self.counts[-1][0] == time:
            self.counts.pop()
        self.counts.append((time, len(self._groups)))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at one moment."""

    time: float
    step: int
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The picture. `begin` is the Unix time of its left edge, `left_out` the number of older events."""

    begin: float
    end: float
    lanes: tuple[Lane, ...]
    marks: tuple[Mark, ...]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, with columns in place of records."""
        lanes = [
            {
                "name": lane.name,
                "what": lane.what,
                "spans": list(zip(*lane.spans, strict=True)),
                "counts": list(zip(*lane.counts, strict=True)),
            }
            for lane in self.lanes
        ]
        marks = [[mark.time, mark.step, mark.kind, mark.text] for mark in self.marks]
        return {"begin": self.begin, "end": self.end, "lanes": lanes, "marks": marks}


def timeline_of(events: Sequence[Event], evaluations: Sequence[Mapping[str, float]] = (), *, until: float | None = None) -> Timeline:
    """Return the picture of `events`. What lasts is drawn to `until` (Unix time), by default to the last event."""
    shown = events[-MAX_EVENTS:]
    begin = shown[0].time if shown else 0.0
    end = round(max(until or 0.0, shown[-1].time) - begin, 3) if shown else 0.0
    drawing = _Drawing()
    for event in shown:
        drawing.add(event, round(event.time - begin, 3))
    drawing.close(end)
    for one in evaluations:
        if one.get("time", 0.0) >= begin > 0.0:
            drawing.mark(round(one["time"] - begin, 3), int(one["step"]), "evaluation", f"the evaluation of step {one['step']:.0f} is done")
    return Timeline(
        begin=begin,
        end=end,
        lanes=tuple(lane for lane in drawing.all_lanes() if lane.spans or lane.counts),
        marks=tuple(sorted(drawing.marks, key=lambda mark: mark.time)),
        left_out=len(events) - len(shown),
    )


class _Drawing:
    """Turns one event after the other into lanes and marks. Times are those of the picture."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._learner = Lane(name="learner", what="training steps, and waits for groups")
        self._weights = Lane(name="new weights", what="from a trained version until every worker samples with it")
        self._workers: dict[str, Lane] = {}
        self._verifiers = Lane(name="verifiers", what="groups being judged")
        self._encoders = Lane(name="encoders", what="groups on their way to replay: verdicts, features, room")
        self._replay = Lane(name="replay", what="groups that wait for the learner")
        self._states: dict[str, tuple[float, str, str]] = {}  # by worker: since when, in which state, why
        self._trained: dict[int, float] = {}  # by version: when it was made
        self._free_since = 0.0
        self._training: tuple[float, int] | None = None
        self._last = 0.0
        self._draw: dict[EventKind, Callable[[float, int, Fields], None]] = {
            EventKind.DISPATCHED: self._dispatched,
            EventKind.COMPLETED: self._completed,
            EventKind.VERDICTS: self._verdicts,
            EventKind.INSERTED: self._inserted,
            EventKind.DROPPED: self._dropped,
            EventKind.BATCH: self._batch,
            EventKind.TRAINED: self._trained_step,
            EventKind.PUBLISHED: self._published,
            EventKind.LOADED: self._loaded,
            EventKind.CHECKPOINT: self._checkpoint,
            EventKind.RESUMED: self._resumed,
            EventKind.WORKER: self._worker_state,
            EventKind.FAULT: self._fault,
            EventKind.DESIRED: self._desired,
        }

    def all_lanes(self) -> list[Lane]:
        """Return the lanes from top to bottom."""
        workers = [self._workers[name] for name in sorted(self._workers, key=_by_number)]
        return [self._learner, self._weights, *workers, self._verifiers, self._encoders, self._replay]

    def add(self, event: Event, at: float) -> None:
        """Draw an event. One that lacks a field, because another version wrote it, is passed over."""
        if (draw := self._draw.get(event.kind)) is not None:
            with suppress(KeyError):
                draw(at, event.step, event.fields)
        self._last = at

    def mark(self, at: float, step: int, kind: str, text: str) -> None:
        """Draw a moment."""
        self.marks.append(Mark(time=at, step=step, kind=kind, text=visible_text(text, TEXT_LIMIT)))

    def close(self, end: float) -> None:
        """End at `end` what lasts."""
        if self._training is not None:
            self._learner.span(self._training[0], end, "train", f"training step {self._training[1]}, not yet done")
        for name, (since, state, why) in self._states.items():
            self._worker(name).span(since, end, state, why)
        self._states.clear()

    def _worker(self, name: str) -> Lane:
        return self._workers.setdefault(name, Lane(name=visible_text(name, NAME_LIMIT), what="groups being sampled"))

    # ---- one method for each kind of event that is drawn ----

    def _dispatched(self, at: float, step: int, fields: Fields) -> None:
        self._worker(fields["worker"]).enter(at, fields["group_id"])

    def _completed(self, at: float, step: int, fields: Fields) -> None:
        self._worker(fields["worker"]).leave(at, fields["group_id"])
        if not fields["aborted"]:
            self._verifiers.enter(at, fields["group_id"])
            self._encoders.enter(at, fields["group_id"])

    def _verdicts(self, at: float, step: int, fields: Fields) -> None:
        self._verifiers.leave(at, fields["group_id"])

    def _inserted(self, at: float, step: int, fields: Fields) -> None:
        self._encoders.leave(at, fields["group_id"])
        if fields["result"] in (InsertResult.ACCEPTED, InsertResult.DUPLICATE):
            self._replay.enter(at, fields["group_id"])

    def _dropped(self, at: float, step: int, fields: Fields) -> None:
        for lane in (*self._workers.values(), self._verifiers, self._encoders, self._replay):
            lane.leave(at, fields["group_id"])

    def _batch(self, at: float, step: int, fields: Fields) -> None:
        self._replay.leave(at, *fields["group_ids"])
        self._learner.span(self._free_since, at, "wait", f"waits for the groups of step {step}")
        self._training = (at, step)

    def _trained_step(self, at: float, step: int, fields: Fields) -> None:
        if self._training is not None:
            self._learner.span(self._training[0], at, "train", f"training step {step}")
        self._training, self._free_since = None, at
        self._trained[fields["version"]] = at

    def _published(self, at: float, step: int, fields: Fields) -> None:
        version = fields["version"]
        self._weights.span(self._trained.pop(version, at), at, "publish", f"version {version} to {fields['workers']} workers")

    def _loaded(self, at: float, step: int, fields: Fields) -> None:
        begin = max(0.0, round(at - fields["load_s"], 3))
        self._worker(fields["worker"]).span(begin, at, "load", f"loads version {fields['version']}")

    def _checkpoint(self, at: float, step: int, fields: Fields) -> None:
        self.mark(at, step, "checkpoint", f"checkpoint of step {step}")
        begin = max(self._free_since, round(at - fields["seconds"], 3))
        self._learner.span(begin, at, "checkpoint", f"checkpoint of step {step}")
        self._free_since = at

    def _resumed(self, at: float, step: int, fields: Fields) -> None:
        """The start before has ended with its last event; nothing of it lasts."""
        self.close(self._last)
        for lane in self.all_lanes():
            lane.empty(self._last)
        self._training, self._free_since = None, at
        self._trained.clear()
        self.mark(at, step, "resumed", f"the run continues from step {step}")

    def _worker_state(self, at: float, step: int, fields: Fields) -> None:
        name, state, why = fields["worker"], fields["state"], visible_text(str(fields["reason"]), TEXT_LIMIT)
        if name in self._states:
            since, before, reason = self._states.pop(name)
            self._worker(name).span(since, at, before, reason)
        if state == "dead":
            self._worker(name).empty(at)
        else:
            self._states[name] = (at, state, why)
        if state in ("dead", "draining", "serving"):
            self.mark(at, step, state, f"{name} is {state}{f': {why}' if why else ''}")

    def _fault(self, at: float, step: int, fields: Fields) -> None:
        self.mark(at, step, "fault", f"{fields['role']} {fields['name']}: {fields['error']}")

    def _desired(self, at: float, step: int, fields: Fields) -> None:
        self.mark(at, step, "scaled", f"{fields['count']} processes of role {fields['role']} are wanted, by {fields['by']}")


def _by_number(name: str) -> tuple[str, int]:
    role, _, number = name.rpartition("-")
    return (role, int(number)) if number.isdecimal() else (name, -1)
