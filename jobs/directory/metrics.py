"""The one place that writes metrics: `metrics.jsonl` (a line for each step), `eval.jsonl` (a line for each evaluation)
and the trackers of the run. Names are defined in docs/metrics.md."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from jobs.directory.atomic import replacing
from jobs.directory.rolling import parts, roll
from jobs.directory.trackers import Trackers

KEPT_RECORDS = 1000
"""The number of first records, and of last records, that stay in memory."""


class MetricsWriter:
    """Appends one record for each step. On resume it first drops the records after the restored step."""

    def __init__(self, jsonl: Path, trackers: Trackers | None = None, *, resume_step: int = 0, max_bytes: int | None = None) -> None:
        self._jsonl = jsonl
        self._max_bytes = max_bytes
        self.evaluated = {int(record["step"]) for record in _keep_until(evaluations_of(jsonl), resume_step)}
        """Steps that earlier starts evaluated."""
        self.history = _keep_until(jsonl, resume_step)
        """The first and the last records, which a summary describes."""
        self._trackers = trackers
        self._unwritten: dict[Path, deque[str]] = {}

    def write_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write an evaluation of the policy of `step`, which may be before the step that is trained now. Raises OSError
        as `write` does."""
        self._append(evaluations_of(self._jsonl), self._record(step, metrics))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of `step`. Raises OSError where the disk is full: the record is then written with the next
        one."""
        record = self._record(step, metrics)
        self.history.append(record)
        del self.history[KEPT_RECORDS:-KEPT_RECORDS]
        self._append(self._jsonl, record)
        if self._max_bytes is not None:
            roll(self._jsonl, self._max_bytes)

    def close(self) -> None:
        """Try once more to write what could not be written, and end the trackers."""
        for file in self._unwritten:
            with suppress(OSError):
                self._flush(file)
        if self._trackers is not None:
            self._trackers.close()

    def _record(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        if self._trackers is not None:
            self._trackers.write(step, metrics)
        return {"step": step, "time": time.time(), **metrics}

    def _append(self, file: Path, record: dict[str, float]) -> None:
        self._unwritten.setdefault(file, deque(maxlen=KEPT_RECORDS)).append(json.dumps(record) + "\n")
        self._flush(file)

    def _flush(self, file: Path) -> None:
        lines = self._unwritten[file]
        before = file.stat().st_size if file.exists() else 0
        try:
            with open(file, "a", encoding="utf-8") as opened:
                opened.writelines(lines)
        except OSError:
            with suppress(OSError):
                os.truncate(file, before)  # no half of a line is left
            raise
        lines.clear()


def evaluations_of(jsonl: Path) -> Path:
    """Return where a run with its metrics in `jsonl` keeps its evaluations."""
    return jsonl.with_name("eval.jsonl")


def read_metrics(jsonl: Path) -> list[dict[str, float]]:
    """Return the records in step order. Left out are a last line that is half-written because its writer was killed,
    and lines that are damaged (`damaged_lines`)."""
    return [record for part in parts(jsonl) for record in _read(part)]


def damaged_lines(jsonl: Path) -> list[str]:
    """Return where lines are no records: "metrics.jsonl, line 3". A half-written last line is no damage."""
    lines = [(part, number, line) for part in parts(jsonl) for number, line in enumerate(_lines(part), start=1)]
    return [f"{part.name}, line {number}" for part, number, line in lines if line.endswith("\n") and _record(line) is None]


def newest_record(jsonl: Path, step: int) -> dict[str, float] | None:
    """Return the last record of a step up to `step`; None where there is none. Only what comes after it is parsed."""
    for part in reversed(parts(jsonl)):
        for line in reversed(_lines(part)):
            if (record := _record(line)) is not None and record["step"] <= step:
                return record
    return None


def _read(part: Path) -> list[dict[str, float]]:
    return [record for line in _lines(part) if (record := _record(line)) is not None]


def _lines(part: Path) -> list[str]:
    return part.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _record(line: str) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int | float) else None


def _keep_until(jsonl: Path, step: int) -> list[dict[str, float]]:
    """Drop the records of later steps from every file. Return those kept, without the middle of very many."""
    kept: list[dict[str, float]] = []
    for part in parts(jsonl):
        records = [record for record in _read(part) if record["step"] <= step]
        with replacing(part) as staging:
            staging.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        kept += records
    del kept[KEPT_RECORDS:-KEPT_RECORDS]
    return kept
