"""`repexp list [--address http://HEAD:8265]`: the runs of a cluster, or of this machine. Exit codes: 0, 2
refused (one line says why)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from jobs.cluster.remote import ADDRESS_HELP, Job, address_of, connect
from jobs.cluster.runs import LOCAL_RUNS, STORAGE, age, is_alive, local_runs
from jobs.configuration.user_error import answering
from jobs.directory.run_state import read_status
from jobs.screens.status_screen import phase_of
from jobs.screens.terminal import plain, say, wide_terminal


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="repexp list", description="List runs.")
    parser.add_argument("--address", help=ADDRESS_HELP)
    options = parser.parse_args(arguments)
    address = address_of(options.address)
    if address is None:
        rows, nothing = local_rows(local_runs(), time.time()), f"no runs in ./{LOCAL_RUNS} or {STORAGE}"
    else:
        rows, nothing = remote_rows(connect(address).jobs(), time.time()), f"no runs on the cluster at {address}"
    if not rows:
        say(wide_terminal(), nothing)
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row.values()))
    wide_terminal().print(table)
    return 0


def local_rows(directories: Sequence[Path], now: float) -> list[dict[str, str]]:
    """Return a row for each run, from its status file and its lock."""
    rows = []
    for directory in directories:
        status = read_status(directory)
        if status is not None:
            phase = phase_of(status, is_alive=is_alive(directory))
            step, word = f"{status.step}/{status.steps}", f"{age(status.updated, now)} ago"
            rows.append({"run": directory.name, "phase": phase, "step": step, "last word": word, "in": str(directory)})
    return rows


def remote_rows(jobs: Sequence[Job], now: float) -> list[dict[str, str]]:
    """Return a row for each run, about its newest job. `jobs` are given oldest first."""
    newest = {job.run: job for job in jobs}
    return [
        {
            "run": job.run,
            "job": job.id,
            "state": job.state.lower(),
            "started": f"{age(job.started, now)} ago" if job.started else "-",
            "duration": age(job.started, job.ended or now) if job.started else "-",
            "commit": job.metadata.get("commit", "-"),
            "kept in": job.storage,
        }
        for job in sorted(newest.values(), key=lambda job: job.run)
    ]


if __name__ == "__main__":
    sys.exit(main())
