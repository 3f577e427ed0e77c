"""`repexp stop RUN [--wait] [--address http://HEAD:8265]`: let a run finish its step, write a checkpoint and
end. The command that started it resumes it. Exit codes: 0 asked (with --wait: ended as asked), 1 it ended otherwise, 2
refused (one line says why)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.cluster.remote import ADDRESS_HELP, ENDED_WELL, Cluster, address_of, connect
from jobs.cluster.runs import find_run, is_alive
from jobs.configuration.user_error import EXIT_FAILED, answering, refusing
from jobs.directory.run_state import read_desired, read_status, write_desired
from jobs.scale import require_live

POLL_S = 0.5


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp stop", description="Checkpoint a run and end it.")
    parser.add_argument("run", help="its directory or its name")
    parser.add_argument("--wait", action="store_true", help="until it has ended")
    parser.add_argument("--address", help=ADDRESS_HELP)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    address = address_of(options.address)
    if address is not None:
        return stop_on(connect(address), options.run, wait=options.wait)
    directory = find_run(options.run)
    print(stop(directory), flush=True)
    return wait_ended(directory, time.sleep) if options.wait else 0


def stop(directory: Path) -> str:
    """Ask a run of this machine to stop, and say what follows. Raises UserError for one that is not live."""
    status = require_live(directory, read_status(directory), "there is nothing to stop")
    with refusing(OSError, ValueError):
        write_desired(directory, read_desired(directory).model_copy(update={"stop": True}))
    return f"{status.run_id}: asked to stop; it finishes the step after {status.step}, writes a checkpoint and ends"


def wait_ended(directory: Path, sleep: Callable[[float], None]) -> int:
    """Wait for the run's process to end, say how it ended, and return the exit code."""
    while is_alive(directory):
        sleep(POLL_S)
    status = read_status(directory)
    if status is None or not status.has_ended:
        print(f"{directory}: the process ended without a word")
        return EXIT_FAILED
    print(f"{status.run_id}: {status.phase} at step {status.step}, last checkpoint of step {status.last_checkpoint}")
    return EXIT_FAILED if status.phase == "failed" else 0


def stop_on(cluster: Cluster, run: str, *, wait: bool) -> int:
    """Ask a run of a cluster to stop, by SIGTERM through Ray where it does not listen yet, and return the exit code."""
    job = cluster.live(run)
    answer = cluster.ask(job, "stop", []) if job.state == "RUNNING" else None
    if answer is not None and answer.exit_code == 0:
        print(answer.last_line, flush=True)
    else:
        cluster.stop(job)
        why = f" ({answer.last_line.removeprefix('error: ')})" if answer is not None else ""
        print(f"{job.id}: stopped through Ray, which sends it SIGTERM{why}", flush=True)
    if not wait:
        return 0
    job = cluster.wait_ended(job)
    print(f"{job.id}: {job.state.lower()}" + (f" ({job.message})" if job.state == "FAILED" else ""))
    return 0 if job.state in ENDED_WELL else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
