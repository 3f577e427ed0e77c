"""`repexp follow RUN --address http://HEAD:8265`: the output of a run on a cluster, to its end. Exit codes: 0
the job succeeded, 1 it failed or was stopped, 2 refused (one line says why), 130 Ctrl-C (the run continues)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cluster.remote import ADDRESS_HELP, Cluster, address_of, connect
from jobs.configuration.user_error import EXIT_FAILED, EXIT_INTERRUPTED, UserError, answering


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp follow", description="Show the output of a run on a cluster as it comes.")
    parser.add_argument("run", help="its name")
    parser.add_argument("--address", help=ADDRESS_HELP)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    address = address_of(options.address)
    if address is None:
        raise UserError("no cluster is named: give --address http://HEAD:8265 (a run of this machine shows itself where it was started)")
    cluster = connect(address)
    return follow(cluster, cluster.newest(options.run).id)


def follow(cluster: Cluster, job_id: str) -> int:
    """Print a job's output until it ends, and return the exit code of that end."""
    try:
        for text in cluster.follow(job_id):
            print(text, end="", flush=True)
        job = cluster.job(job_id)
    except KeyboardInterrupt:
        print(f"\n{job_id} continues")
        return EXIT_INTERRUPTED
    print(f"{job_id}: {job.state.lower()}" + (f" ({job.message})" if job.state == "FAILED" else ""))
    return 0 if job.state == "SUCCEEDED" else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
