"""The live console of a run: one table row for each step, the newest at the bottom, and the summary at the end."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from jobs.configuration.characters import spelled_out
from jobs.directory.events import EventKind
from jobs.screens.terminal import plain, say, terminal

SHOWN_STEPS, SHOWN_REMARKS = 14, 12
Column = tuple[str, str, str]
COLUMNS: tuple[Column, ...] = (
    ("reward", "reward/mean", ".2f"),
    ("pass@1", "reward/pass@1", ".2f"),
    ("pass@K", "reward/pass@K", ".2f"),
    ("all ok", "groups/all_correct", ".0%"),
    ("none ok", "groups/all_wrong", ".0%"),
    ("bonus", "bonus/mean", ".3f"),
    ("spread", "bonus/spread", ".3f"),
    ("entropy", "policy/entropy", ".2f"),
    ("lag", "policy/lag_mean", ".1f"),
    ("mismatch", "mismatch/mean", ".3f"),
    ("tok/s", "rollout/tokens_per_s", ".0f"),
    ("step s", "time/step_s", ".1f"),
    ("learner waits", "time/wait_for_batch_s", ".1f"),
    ("rollout waits", "rollout/idle_s", ".1f"),
)
"""Heading, metric and format; docs/metrics.md defines the metrics."""


class RunConsole:
    """Shows steps as they come. Without a terminal it prints one line for each step instead."""

    def __init__(self, title: str, total_steps: int, console: Console | None = None) -> None:
        self._console = console or terminal()
        self._title, self._total_steps = title, total_steps
        self._rows: deque[tuple[int, dict[str, float]]] = deque(maxlen=SHOWN_STEPS)
        self._status = ""
        self._remarks: deque[tuple[str, str]] = deque(maxlen=SHOWN_REMARKS)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()

    def status(self, text: str) -> None:
        """Show what the run is doing, until the next step."""
        self._status = text
        self._show(text)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Show a step."""
        self._rows.append((step, metrics))
        if self._live is None:
            cells = "  ".join(f"{heading} {cell(metrics, name, form)}" for heading, name, form in COLUMNS)
            say(self._console, f"step {step}/{self._total_steps}  {cells}")
        else:
            self._status = ""
            self._live.update(self._render())

    def warn(self, text: str) -> None:
        """Show a warning, which stays until newer remarks take its place."""
        self._say(f"warning: {text}", "yellow")

    def note(self, text: str) -> None:
        """Show a remark as `warn` does, about something that is well."""
        self._say(text, "cyan")

    def event(self, kind: EventKind, fields: dict[str, Any]) -> None:
        """Take an event; a person is shown none."""

    def _say(self, text: str, style: str) -> None:
        self._remarks.append((text, style))
        self._show(text)

    def _show(self, text: str) -> None:
        if self._live is None:
            say(self._console, text)
        else:
            self._live.update(self._render())

    def finish(self, title: str, lines: Sequence[str]) -> None:
        """End the live part and print the summary below it, without cutting a line."""
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
        self._console.rule(plain(title), align="left")
        for line in lines:
            say(self._console, line)

    def failed(self, details: str, message: str) -> None:
        """End the live part, print the details, and last the one line that says what happened."""
        if self._live is not None:
            self._live.stop()
        for text in (details, message):
            if text:
                print(text, file=sys.stderr)

    def _render(self) -> Group:
        """Return the progress, the last steps in columns that fit, and below the rest of the newest step in words."""
        done = self._rows[-1][0] if self._rows else 0
        shown, rest = split_columns(self._console.width)
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("step", justify="right", no_wrap=True)
        for heading, _, _ in shown:
            table.add_column(heading, justify="right", width=_column_width(heading))
        for step, metrics in self._rows:
            table.add_row(str(step), *(cell(metrics, name, form) for _, name, form in shown))
        progress = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._total_steps, completed=done, width=20)
        progress.add_row(plain(self._title, "bold"), bar, f"{done}/{self._total_steps}", plain(self._status))
        newest = self._rows[-1][1] if self._rows else {}
        words = ", ".join(f"{heading} {cell(newest, name, form)}" for heading, name, form in rest)
        below = [plain(words, "dim")] if words and newest else []
        below += [plain(text, style) for text, style in self._remarks]
        return Group(progress, table, *below)


def split_columns(width: int) -> tuple[Sequence[Column], Sequence[Column]]:
    """Return the columns that fit into `width` characters beside the step, and the others."""
    used = len("step")
    for number, (heading, _, _) in enumerate(COLUMNS):
        used += 2 + _column_width(heading)
        if used > width:
            return COLUMNS[:number], COLUMNS[number:]
    return COLUMNS, ()


def _column_width(heading: str) -> int:
    """Return the width of a column: its heading may break at spaces, but its figures may not."""
    return max(5, *(len(word) for word in heading.split()))


def cell(metrics: dict[str, float], name: str, form: str) -> str:
    """Return a metric as text; a dash where the step has no such figure (for example, no group had signal)."""
    value = metrics.get(name)
    return "-" if value is None or math.isnan(value) else format(value, form)


def show_plan(config: BaseModel, lines: Iterable[str]) -> int:
    """Print the resolved configuration and what it will do, which is all that --dry-run asks for."""
    console = terminal()
    text = config.model_dump_json()
    console.print_json(text, ensure_ascii=spelled_out(text) != text)
    for line in lines:
        say(console, line)
    return 0
