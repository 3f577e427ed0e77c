"""`repexp scale RUN --rollout 8 [--verifier 4] [--encoder 2] [--address http://HEAD:8265]`: resize a live run.
The command writes what is wanted into RUN_DIR/desired.json. The run reads it within a second and starts workers or lets
some leave; a resumed run keeps it. Exit codes: 0 asked, 2 refused (one line says why)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.cluster.remote import ADDRESS_HELP, address_of, connect
from jobs.cluster.runs import find_run, is_alive, owner
from jobs.configuration.user_error import UserError, answering, refusing
from jobs.directory.run_state import RunStatus, read_desired, read_status, write_desired

ROLES = ("rollout", "verifier", "encoder")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp scale", description="Change how many workers a live run has.")
    parser.add_argument("run", help="its directory or its name")
    parser.add_argument("--rollout", type=int, metavar="N", help="rollout workers, an engine each")
    parser.add_argument("--verifier", type=int, metavar="N", help="verifier processes")
    parser.add_argument("--encoder", type=int, metavar="N", help="encoder replicas")
    parser.add_argument("--address", help=ADDRESS_HELP)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    wanted = {role: number for role in ROLES if (number := getattr(options, role)) is not None}
    if not wanted:
        raise UserError("nothing is asked for: give --rollout N, --verifier N or --encoder N")
    for role, number in wanted.items():
        if number < 1:
            raise UserError(f"--{role} {number}: at least 1; to end a run use repexp stop")
    address = address_of(options.address)
    if address is None:
        print(scale(find_run(options.run), wanted))
        return 0
    cluster = connect(address)
    job = cluster.live(options.run)
    answer = cluster.ask(job, "scale", [word for role, number in wanted.items() for word in (f"--{role}", str(number))])
    if answer.exit_code != 0:
        raise UserError(answer.last_line.removeprefix("error: "))
    print(answer.last_line)
    return 0


def scale(directory: Path, wanted: Mapping[str, int]) -> str:
    """Ask for other numbers of workers and return what was asked. Raises UserError for no live run, or no encoders."""
    status = require_live(directory, read_status(directory), "change what it starts with by --set rollout.workers=N")
    if "encoder" in wanted and status.desired.get("encoder") == 0:
        raise UserError(f"{directory} has no encoders: its bonus is off, or takes the policy's own features")
    with refusing(OSError, ValueError):
        before = read_desired(directory)
        write_desired(directory, before.model_copy(update={**wanted, "serial": before.serial + 1}))
    changes = [f"{role} {status.desired.get(role, '?')} -> {number}" for role, number in wanted.items()]
    return f"{status.run_id}: asked for {', '.join(changes)}"


def require_live(directory: Path, status: RunStatus | None, otherwise: str) -> RunStatus:
    """Return the status of a live run. Raises UserError for any other; `otherwise` says what to do instead."""
    if not is_alive(directory):
        said = f", its last word was {status.phase!r} at step {status.step}" if status else ""
        raise UserError(f"{directory} is not running{said}: {otherwise}")
    if status is None or status.pid != owner(directory):
        raise UserError(f"{directory} is only just starting: ask again in a few seconds")
    if status.has_ended:
        raise UserError(f"{directory} is at its end ({status.phase}): {otherwise}")
    return status


if __name__ == "__main__":
    sys.exit(main())
