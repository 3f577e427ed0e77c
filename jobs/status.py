"""`repexp status RUN [--address http://HEAD:8265]`: the state of a run on one screen. RUN is a run directory or
a name; with an address, a name on that cluster. Exit codes: 0, 2 refused (one line says why), 130 Ctrl-C."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from jobs.cluster.remote import ADDRESS_HELP, Cluster, Job, address_of, connect
from jobs.cluster.runs import age, find_run, is_alive
from jobs.configuration.user_error import UserError, answering
from jobs.directory.run_state import RunStatus, read_status
from jobs.screens.status_screen import one_line, screen
from jobs.screens.terminal import plain, say, wide_terminal

LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 1.0, 5.0
"""Seconds between two looks with --watch; on a cluster each look is a small job."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a run shows."""

    status: RunStatus | None
    is_alive: bool
    job: str = ""
    """What the cluster says about its job."""

    def as_json(self) -> str:
        """Return one line: the record of status.json, and whether the run's process is alive."""
        values = {} if self.status is None else self.status.model_dump(mode="json")
        return json.dumps(values | {"alive": self.is_alive} | ({"job": self.job} if self.job else {}))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp status", description="Say how a run is.")
    parser.add_argument("run", help="its directory or its name")
    parser.add_argument("--address", help=ADDRESS_HELP)
    parser.add_argument("--json", action="store_true", help="print the record of RUN_DIR/status.json, one line")
    parser.add_argument("--watch", action="store_true", help="look again and again until the run ends")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    address = address_of(options.address)
    if address is None:
        directory = find_run(options.run)
        look, interval_s = lambda: look_at(directory), LOCAL_INTERVAL_S
    else:
        cluster = connect(address)
        look, interval_s = lambda: look_on(cluster, options.run), REMOTE_INTERVAL_S
    seen = looks(look, time.sleep, interval_s) if options.watch else iter([look()])
    show(seen, wide_terminal(), as_json=options.json, watch=options.watch)
    return 0


def look_at(directory: Path) -> Look:
    """Look at a run of this machine. Raises UserError for one that has never written a status."""
    status, alive = read_status(directory), is_alive(directory)
    if status is None and not alive:
        raise UserError(f"{directory} has no status.json that can be read: nothing was run in it yet, or not by this version")
    return Look(status=status, is_alive=alive)


def look_on(cluster: Cluster, run: str) -> Look:
    """Look at a run of a cluster. One whose job has ended is read from the file that it left."""
    job = cluster.newest(run)
    status = cluster.read_status(job) if job.state != "PENDING" else None
    if status is not None and job.is_live and job.started is not None and status.started < job.started:
        status = None  # the last word of the job before, which this one resumes
    return Look(status=status, is_alive=job.is_live, job=job_line(job, time.time()))


def job_line(job: Job, now: float) -> str:
    """Return what the cluster says about a job."""
    times = [f"started {age(job.started, now)} ago"] if job.started else []
    times += [f"ended {age(job.ended, now)} ago"] if job.ended else []
    said = f": {job.message}" if job.message and job.state in ("PENDING", "FAILED") else ""
    return f"{job.id} {job.state.lower()}, {', '.join(times)}{said}" if times else f"{job.id} {job.state.lower()}{said}"


def looks(look: Callable[[], Look], sleep: Callable[[float], None], interval_s: float) -> Iterator[Look]:
    """Yield one look after the other until the run is over."""
    while True:
        now = look()
        yield now
        if not now.is_alive:
            return
        sleep(interval_s)


def show(looks: Iterator[Look], console: Console, *, as_json: bool, watch: bool) -> None:
    """Show looks. A watched run is one changing screen on a terminal, elsewhere a line for each new phase or step."""
    if as_json:
        for look in looks:
            print(look.as_json(), flush=True)
    elif watch and console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for look in looks:
                live.update(_rendered(look), refresh=True)
    elif watch:
        last = ""
        for look in looks:
            line = one_line(look.status, is_alive=look.is_alive) if look.status else _nothing_yet(look)
            if line != last:
                say(console, line)
            last = line
    else:
        for look in looks:
            console.print(_rendered(look))


def _rendered(look: Look) -> RenderableType:
    if look.status is None:
        return plain(_nothing_yet(look))
    return screen(look.status, is_alive=look.is_alive, now=time.time(), job=look.job)


def _nothing_yet(look: Look) -> str:
    return f"the run has not said anything yet{f' ({look.job})' if look.job else ''}"


if __name__ == "__main__":
    sys.exit(main())
