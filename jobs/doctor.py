"""`repexp doctor [--json] [--deep] [--runs DIR]`: what this machine has, what is missing, and how to fix it. It
works in an incomplete environment: it imports only the standard library, and tries rich, torch and vLLM where it needs
them. Exit status: 0 when nothing failed (warnings are allowed), 1 when a check failed, 2 for a wrong command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs.machine.checks import Check
from jobs.machine.look import machine_checks, software_checks


def exit_status(checks: Iterable[Check]) -> int:
    """Return 1 when a check failed, else 0."""
    return int(any(check.status == "fail" for check in checks))


def as_json(checks: Sequence[Check]) -> str:
    """Return one JSON object."""
    return json.dumps({"ok": exit_status(checks) == 0, "checks": [check.to_json() for check in checks]}, indent=2)


def as_text(checks: Sequence[Check]) -> str:
    """Return the plain report, for an environment without rich."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"{check.status:<4}  {check.name:<{width}}  {check.found}" + (f"\n{'':<{width + 8}}-> {check.fix}" if check.fix else "")
        for check in checks
    )


def summary(checks: Sequence[Check]) -> str:
    """Return the numbers of checks by status."""
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    ready = "" if counts["fail"] else ": ready for `make train`"
    return f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed{ready}"


def print_report(checks: Sequence[Check]) -> None:
    """Print a table, or the plain report without rich."""
    try:
        from rich.table import Table

        from jobs.screens.terminal import plain, say, terminal
    except ImportError:
        print(as_text(checks), summary(checks), sep="\n\n")
        return
    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("check", "status", title="repexp doctor")
    table.add_column("found", overflow="fold")
    table.add_column("fix", overflow="fold")
    for check in checks:
        cells = map(plain, (check.name, check.status, check.found, check.fix))
        table.add_row(*cells, style=None if check.status == "ok" else colors[check.status])
    console = terminal()
    console.print(table)
    say(console, summary(checks))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="repexp doctor", description="What this machine has, what is missing, how to fix it.")
    parser.add_argument("--json", action="store_true", help="print one JSON object: ok, checks[name, status, found, mend]")
    parser.add_argument("--deep", action="store_true", help="also import vLLM and name its platform (about 10 s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs will be written (default: ./runs)")
    options = parser.parse_args(argv)
    checks = machine_checks(Path(os.path.expanduser(options.runs))) + software_checks(options.deep)
    if options.json:
        print(as_json(checks))
    else:
        print_report(checks)
    return exit_status(checks)


if __name__ == "__main__":
    sys.exit(main())
