"""Metrics of a whole run, once a step (docs/metrics.md)."""

from __future__ import annotations

import asyncio

import psutil

from actors.replay import DrawnBatch, Logged
from jobs.run.components import Run
from jobs.run.rollouts import Rollouts
from tasks.stream import ProblemStream

RSS_TIMEOUT_S = 1.0


def run_metrics(run: Run, rollouts: Rollouts, drawn: DrawnBatch, logged: Logged) -> dict[str, float]:
    """Return what the books, replay and the workers say after a step."""
    return {
        **run.books.metrics(),
        **run.faults.metrics(),
        "replay/held_groups": float(drawn.held_groups),
        "replay/held_mib": drawn.held_bytes / 2**20,
        "replay/log_mib": logged.nbytes / 2**20,
        "replay/log_removed_steps": float(logged.removed_steps),
        "publication/refused": float(rollouts.num_refused),
        "rollout/workers": float(len(rollouts.fleet.serving)),
        **curriculum_metrics(run.stream),
    }


async def memory_metrics(run: Run, rollouts: Rollouts) -> dict[str, float]:
    """Return the resident memory in MiB of every process that answers in time."""
    handles = run.supervised | {encoder.name: encoder for encoder in run.encoders.handles}
    found = await asyncio.gather(*(handle.rss_bytes(timeout_s=RSS_TIMEOUT_S) for handle in handles.values()))
    memory = {name: rss for name, rss in zip(handles, found, strict=True) if rss is not None}
    memory |= {name: worker.beat.rss_bytes for name, worker in rollouts.workers.items() if worker.beat is not None}
    memory["driver"] = psutil.Process().memory_info().rss
    return {f"memory/{name}_mib": rss / 2**20 for name, rss in memory.items()}


def curriculum_metrics(stream: ProblemStream) -> dict[str, float]:
    """Return what the curriculum has measured; nothing without one."""
    rates = stream.pass_rates
    if not rates:
        return {}
    passed_over = {"curriculum/passed_over": float(stream.num_passed_over)}
    return passed_over | {f"curriculum/pass_rate/{kind}": rate for kind, rate in rates.items()}
