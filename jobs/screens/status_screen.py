"""A run at one moment, on one screen."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from jobs.cluster.runs import age
from jobs.directory.run_state import RunStatus
from jobs.screens.terminal import plain

SILENT_S = 30.0
"""A live run that has written no status for this long counts as silent."""
PHASE_STYLES = {"training": "green", "finished": "green", "failed": "red", "starting": "cyan", "stopping": "yellow", "stopped": "yellow"}
STATE_STYLES = {"serving": "green", "dead": "red", "draining": "yellow"}
METRICS = (
    ("reward", "reward/mean", ".3f"),
    ("pass@1", "reward/pass@1", ".2f"),
    ("pass@K", "reward/pass@K", ".2f"),
    ("bonus", "bonus/mean", ".3f"),
    ("lag", "policy/lag_mean", ".1f"),
    ("tok/s", "rollout/tokens_per_s", ".0f"),
    ("step s", "time/step_s", ".1f"),
)
"""Heading, metric and format; docs/metrics.md defines the metrics."""


def phase_of(status: RunStatus, *, is_alive: bool) -> str:
    """Return the phase that the run reports, or "gone" where its process ended without a word."""
    return status.phase if is_alive or status.has_ended else "gone"


def verdict(status: RunStatus, *, is_alive: bool, now: float) -> str:
    """Return what a reader must know before believing the figures; nothing where they are current."""
    silent = age(status.updated, now)
    if not is_alive and not status.has_ended:
        return f"the process is gone (its last word is {silent} old): the same command resumes it{_from_checkpoint(status)}"
    if not is_alive and status.phase in ("failed", "stopped") and status.step < status.steps:
        return f"{status.phase} {silent} ago: the same command resumes it{_from_checkpoint(status)}"
    if is_alive and now - status.updated > SILENT_S:
        return f"the process lives, but has said nothing for {silent}"
    return ""


def screen(status: RunStatus, *, is_alive: bool, now: float, job: str = "") -> RenderableType:
    """Return the whole screen. `job` is what the cluster says about the run's job, in one line."""
    note = verdict(status, is_alive=is_alive, now=now)
    parts: list[RenderableType] = [_head(status, is_alive=is_alive)]
    parts += [plain(note, "bold yellow")] if note else []
    parts += [plain(status.detail, "red" if status.phase == "failed" else "")] if status.detail else []
    parts.append(_facts(status, now, job))
    if status.workers and is_alive:  # a run that is over has none, whatever its last status says
        parts.append(_workers(status, now))
    if status.waits and is_alive:
        parts.append(_waits(status, now))
    if status.faults:
        parts += [plain("last faults", "bold"), *(plain(f"  {fault}") for fault in status.faults)]
    return Group(*parts)


def one_line(status: RunStatus, *, is_alive: bool) -> str:
    """Return where the run is, as a line of a log."""
    where = f"{status.run_id}: {phase_of(status, is_alive=is_alive)}, step {status.step}/{status.steps}"
    return where + _figure(status, *METRICS[0])


def count(number: int) -> str:
    """Return 1234567 as "1.2 M"."""
    for limit, unit, sign in ((10**9, 10**9, " G"), (10**6, 10**6, " M"), (10**4, 10**3, " k")):
        if number >= limit:
            return f"{number / unit:.1f}{sign}"
    return str(number)


def _from_checkpoint(status: RunStatus) -> str:
    return "" if status.last_checkpoint is None else f" from step {status.last_checkpoint}"


def _figure(status: RunStatus, heading: str, name: str, form: str) -> str:
    value = status.metrics.get(name)
    return "" if value is None or math.isnan(value) else f", {heading} {value:{form}}"


def _head(status: RunStatus, *, is_alive: bool) -> Table:
    phase = phase_of(status, is_alive=is_alive)
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=status.steps, completed=status.step, width=20)
    shown = plain(phase, PHASE_STYLES.get(phase, "red"))
    head.add_row(plain(status.run_id, "bold"), shown, bar, f"step {status.step}/{status.steps}")
    return head


def _facts(status: RunStatus, now: float, job: str) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    shown = [_figure(status, *metric).removeprefix(", ") for metric in METRICS]
    checkpoint = "none yet"
    if status.last_checkpoint is not None:
        checkpoint = f"step {status.last_checkpoint}" + (f", {age(status.checkpoint_time, now)} ago" if status.checkpoint_time else "")
    rows = {
        "metrics": ", ".join(figure for figure in shown if figure),
        "versions": f"trained {status.trained_version}, live {status.live_version} (lag {status.trained_version - status.live_version})",
        "wanted": _listed(status.desired),
        "queues": _listed(status.queues),
        "tokens": tokens_line(status.tokens),
        "checkpoint": checkpoint,
        "process": f"{status.pid} on {status.host}, started {age(status.started, now)} ago, last word {age(status.updated, now)} ago",
        "prometheus": "" if status.has_ended else status.metrics_address,
        "job": job,
    }
    for name, text in rows.items():
        if text:
            facts.add_row(name, plain(text))
    return facts


def tokens_line(tokens: Mapping[str, int]) -> str:
    """Return the token ledger: what was generated, what became of it, and the waste by cause."""
    wasted = {name.removeprefix("wasted_"): number for name, number in tokens.items() if name.startswith("wasted_") and number}
    others = [f"{name.replace('_', ' ')} {count(number)}" for name, number in tokens.items() if not name.startswith("wasted_")]
    generated = tokens.get("generated", 0)
    if wasted and generated:
        causes = ", ".join(f"{cause.replace('_', ' ')} {count(num)}" for cause, num in sorted(wasted.items(), key=lambda item: -item[1]))
        others.append(f"wasted {sum(wasted.values()) / generated:.1%} ({causes})")
    return ", ".join(others)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in counts.items())


def _workers(status: RunStatus, now: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (("worker", "left"), ("state", "left"), ("since", "right"), ("version", "right"), ("groups", "right")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for heading, justify in (("tokens", "right"), ("memory", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for worker in status.workers:
        table.add_row(
            plain(worker.name),
            plain(worker.state, STATE_STYLES.get(worker.state, "")),
            age(worker.since, now),
            "-" if worker.version is None else str(worker.version),
            str(worker.groups),
            count(worker.sampled_tokens) if worker.role == "rollout" else "-",
            "-" if worker.rss_mib is None else f"{worker.rss_mib:.0f} MiB",
            plain(worker.detail),
        )
    return table


def _waits(status: RunStatus, now: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("loop", "waits for", "since"):
        table.add_column(heading)
    for wait in status.waits:
        table.add_row(plain(wait.loop), plain(wait.waiting_for), age(wait.since, now))
    return table
