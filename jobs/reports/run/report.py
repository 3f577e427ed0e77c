"""The page of a training run.

report = run_report(read_record(directory), max_bytes=25_000_000)
report.page({})                                    # HTML that needs nothing else"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from pyarrow import fs

from buffers.rollout_log import RolloutLog
from jobs.reports.report import Report, TextTable
from jobs.reports.run.curves import MAX_POINTS, curve_sections
from jobs.reports.run.record import ROLLOUTS, RunRecord
from jobs.reports.run.rollouts import PackedRollouts, pack_rollouts
from jobs.reports.run.timeline import Timeline, timeline_of
from jobs.reports.run.tokens import TokenPieces
from jobs.reports.text import NAME_LIMIT, TEXT_LIMIT, count, flattened, visible_text
from jobs.screens.status_screen import phase_of, verdict
from jobs.screens.summary import COMPARED, WINDOW, window_means

CHANGES = ("fault", "dead", "draining", "serving", "scaled", "resumed")
COLORS = {
    "train": "training step",
    "wait": "waits, or has old weights",
    "checkpoint": "checkpoint",
    "publish": "new weights on their way",
    "load": "loading weights",
    "starting": "starting",
    "draining": "leaving",
}
"""The meaning of a color of the timeline."""
MAX_CHANGES = 200
FATES = {
    "trained": "had a part in a loss",
    "masked": "too old for a loss, though their group was trained on",
    "in_flight": "safe or under way, and not yet trained on",
    "wasted_aborted": "their group was given up while it was sampled",
    "wasted_stale": "their group was too old",
    "wasted_filtered": "their group was not wanted",
    "wasted_lost": "lost with a worker or a node",
}


@dataclass(frozen=True, kw_only=True)
class RunReport(Report):
    """What a run did up to now."""

    template = "run/page.html.jinja"
    title = "Training run"
    captions: ClassVar[Mapping[str, str]] = {}

    run_id: str
    sections: list[dict[str, Any]]
    timeline: Timeline
    rollouts: PackedRollouts
    tokens: TextTable
    workers: TextTable
    waits: TextTable
    changes: TextTable

    @property
    def heading(self) -> str:
        """The run's name."""
        return f"{self.run_id}: training run"

    def page_values(self) -> dict[str, Any]:
        """Return when the page is written, the meaning of colors, and a word that the page's own scripts know: no text
        from outside can."""
        return {"nonce": secrets.token_urlsafe(16), "colors": COLORS, "written": _moment(time.time())}


def run_report(record: RunRecord, *, max_bytes: int) -> RunReport:
    """Return the report on a run; its rollouts may take about `max_bytes` of the page."""
    status, model = record.status, record.config.get("model")
    log = RolloutLog(fs.LocalFileSystem(), str(record.directory / ROLLOUTS))
    pieces = TokenPieces.of_run(record.directory, model if isinstance(model, str) else None)
    until = status.updated if status is not None and record.is_alive else None
    timeline = timeline_of(record.events, record.evaluations, until=until)
    rollouts = pack_rollouts(log, pieces, max_bytes=max_bytes)
    return RunReport(
        summary=_summary(record),
        notes=tuple(visible_text(note, TEXT_LIMIT) for note in (*record.notes, *_thinned(record, timeline))),
        settings=flattened(record.config),
        run_id=visible_text(record.directory.absolute().name, NAME_LIMIT),
        sections=curve_sections(record.metrics, record.evaluations),
        timeline=timeline,
        rollouts=rollouts,
        tokens=_ledger(record),
        workers=_workers(record),
        waits=_waits(record),
        changes=_changes(timeline),
    )


def _summary(record: RunRecord) -> tuple[str, ...]:
    """Return where the run is, and what has become of the figures that a summary compares."""
    status, history = record.status, record.metrics
    sentences = []
    if status is not None:
        phase = phase_of(status, is_alive=record.is_alive)
        sentences.append(f"{phase}: step {status.step} of {status.steps}, last heard of at {_moment(status.updated)}.")
        sentences += [text for text in (verdict(status, is_alive=record.is_alive, now=time.time()), status.detail) if text]
    elif history:
        sentences.append(f"step {history[-1]['step']:.0f}; the run's status cannot be read.")
    changes = {label: window_means(history, name) for label, name in COMPARED.items()}
    if len(history) >= 2 * WINDOW:
        told = [f"{label} {means[0]:.2f} → {means[1]:.2f}" for label, means in changes.items() if means is not None]
        sentences.append(f"{', '.join(told)} (first {WINDOW} steps → last {WINDOW}).")
    return tuple(visible_text(sentence, TEXT_LIMIT) for sentence in sentences) or ("Nothing is known of this run yet.",)


def _thinned(record: RunRecord, timeline: Timeline) -> list[str]:
    notes = []
    if len(record.metrics) > MAX_POINTS:
        notes.append(f"The curves show at most {MAX_POINTS} of {len(record.metrics)} steps, evenly chosen.")
    if timeline.left_out:
        notes.append(f"The timeline begins at {_moment(timeline.begin)}: it leaves out {timeline.left_out:,} older events.")
    return notes


def _ledger(record: RunRecord) -> TextTable:
    """Return what became of every sampled token, by the newest account of the run."""
    tokens: Mapping[str, float] = {} if record.status is None else record.status.tokens
    if not tokens and record.metrics:
        newest = record.metrics[-1].items()
        tokens = {name.removeprefix("tokens/"): number for name, number in newest if name.startswith("tokens/")}
    generated = tokens.get("generated", 0)
    rows = [
        (name.replace("_", " "), f"{tokens[name]:,.0f}", f"{tokens[name] / generated:.1%}" if generated else "–", meaning)
        for name, meaning in FATES.items()
        if name in tokens
    ]
    if rows:
        rows.append(("generated", f"{generated:,.0f}", "", "all of the above"))
    return TextTable(headings=("fate", "tokens", "share", "meaning"), rows=rows)


def _workers(record: RunRecord) -> TextTable:
    headings = ("process", "role", "state", "since", "version", "why")
    workers = () if record.status is None else record.status.workers
    rows = [
        (one.name, one.role, one.state, _moment(one.since), "–" if one.version is None else str(one.version), one.detail) for one in workers
    ]
    return TextTable(headings=headings, rows=[tuple(visible_text(cell, TEXT_LIMIT) for cell in row) for row in rows])


def _waits(record: RunRecord) -> TextTable:
    """Return what the loops of a live run wait for now."""
    status = record.status
    waits = status.waits if status is not None and record.is_alive else ()
    rows = [(wait.loop, visible_text(wait.waiting_for, TEXT_LIMIT), _moment(wait.since)) for wait in waits]
    return TextTable(headings=("loop", "waits for", "since"), rows=rows)


def _changes(timeline: Timeline) -> TextTable:
    """Return the faults and the changes of workers, newest first."""
    changes = [mark for mark in timeline.marks if mark.kind in CHANGES][::-1]
    rows = [(_moment(timeline.begin + mark.time), str(mark.step), mark.kind, mark.text) for mark in changes[:MAX_CHANGES]]
    if len(changes) > MAX_CHANGES:
        rows.append(("", "", "", f"and {count(len(changes) - MAX_CHANGES, 'older one')}"))
    return TextTable(headings=("time", "step", "kind", "what"), rows=rows)


def _moment(unix_time: float) -> str:
    return datetime.fromtimestamp(unix_time).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
