"""`repexp report RUN [--out FILE]`: one HTML page of a training run, from its directory alone, also while it
trains. It shows learning curves, the timeline of every process, and all rollouts, token for token; it needs no server
and no network. RUN is a run directory or a name. Exit codes: 0, 2 refused (one line says why), 130 Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cluster.runs import find_run, shown
from jobs.configuration.files import path_of
from jobs.configuration.user_error import UserError, answering
from jobs.directory.atomic import replacing
from jobs.screens.terminal import say, terminal

PAGE, MAX_MB = "report.html", 25.0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp report", description="Write one HTML page about a training run.")
    parser.add_argument("run", help="its directory or its name")
    parser.add_argument("--out", metavar="FILE", help=f"the page; default: {PAGE} in the run's directory")
    help_text = f"about how large rollouts may make the page; older steps are left out (default {MAX_MB:g})"
    parser.add_argument("--max-mb", type=float, default=MAX_MB, metavar="MB", help=help_text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    if not options.max_mb > 0:
        raise UserError(f"--max-mb {options.max_mb:g}: give a size above 0")
    directory = find_run(options.run)
    page = path_of(options.out) if options.out else directory / PAGE
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"--out {page}: name a file in a directory that exists")
    from jobs.reports.run.record import read_record
    from jobs.reports.run.report import run_report

    report = run_report(read_record(directory), max_bytes=int(options.max_mb * 1e6))
    with replacing(page) as staging:
        staging.write_text(report.page({}), encoding="utf-8")
    console = terminal()
    for sentence in (*report.summary, *report.notes, *report.rollouts.notes):
        say(console, sentence)
    say(console, f"{shown(page.absolute())}: {page.stat().st_size / 1e6:.1f} MB, {report.rollouts.num_responses:,} responses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
