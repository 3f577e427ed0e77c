"""The output of a run as JSON lines, for programs that collect logs: `logs.format = "json"`.

    {"timestamp": "2026-01-02T03:04:05.678Z", "level": "info", "run": "quickstart", "message": "step 3/40", "step": 3}
    {"timestamp": …, "level": "debug", "run": …, "message": "dispatched", "group_id": 7, "worker": "rollout-0", …}

Every record has the first four fields. Events have the fields of `jobs.directory.events` besides."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from jobs.directory.events import EventKind
from jobs.screens.console import RunConsole


class JsonConsole(RunConsole):
    """Says what RunConsole shows, and every event, on standard output."""

    def __init__(self, run_id: str, total_steps: int) -> None:
        super().__init__(run_id, total_steps)
        self._run_id, self._total_steps = run_id, total_steps

    def __enter__(self) -> JsonConsole:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is live here."""

    def status(self, text: str) -> None:
        self._record("info", text)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self._record("info", f"step {step}/{self._total_steps}", step=step, metrics=metrics)

    def warn(self, text: str) -> None:
        self._record("warning", text)

    def note(self, text: str) -> None:
        self._record("info", text)

    def event(self, kind: EventKind, fields: dict[str, Any]) -> None:
        level = "warning" if kind is EventKind.FAULT else "debug" if "group_id" in fields else "info"
        self._record(level, kind.value, **fields)

    def finish(self, title: str, lines: Sequence[str]) -> None:
        for line in lines:
            self._record("info", line.strip())

    def failed(self, details: str, message: str) -> None:
        self._record("error", message, **({"details": details} if details else {}))

    def _record(self, level: str, message: str, **fields: Any) -> None:
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"timestamp": timestamp, "level": level, "run": self._run_id, "message": message, **fields}
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
