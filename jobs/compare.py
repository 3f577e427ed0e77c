"""`repexp compare COMPARE.toml [--set key=value ...]`: train several methods with several seeds, evaluate the
policies of some of their steps, and report how they differ from a baseline. `jobs.compare_config` has every key.

    repexp compare configs/compare/quick.toml --dry-run        # how many runs, hours and tokens
    repexp compare configs/compare/quick.toml                  # hours; the report is written after each of them

The commands are carried out one after the other on this machine or, with --address, side by side as jobs of a Ray
cluster. Exit codes: 0 done, 2 refused (one line says why), 1 a run or an evaluation failed, 130 or 143 stopped. The
same command then continues."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from jobs.cluster.package import select
from jobs.cluster.remote import address_of, connect
from jobs.compare_config import CompareConfig
from jobs.configuration.files import load, source_of
from jobs.configuration.user_error import UserError, answering
from jobs.processes.environment import require_ray_address

if TYPE_CHECKING:
    from jobs.comparison.experiment import Experiment
    from jobs.comparison.session import Executor

AT_ONCE = 4


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp compare", description="Compare methods of training.")
    add = parser.add_argument
    add("config", help="TOML file, for example configs/compare/quick.toml")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key of the file; repeatable")
    add("--dry-run", action="store_true", help="print the resolved config and the plan, start nothing")
    add("--address", metavar="URL", help="train and evaluate on a cluster: the job server of its head, http://HEAD:8265")
    add("--at-once", type=int, metavar="N", help=f"with --address: so many runs at a time (default {AT_ONCE})")
    add("--python", metavar="PATH", help="with --address: interpreter on the head; default: python")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    config = load(CompareConfig, options.config, options.overrides)
    if options.at_once is not None and options.at_once < 1:
        raise UserError(f"--at-once {options.at_once}: at least 1 run must be at work")
    if not options.address and (options.at_once is not None or options.python is not None):
        raise UserError("--at-once and --python go with --address: on this machine one run is at work at a time")
    from jobs.comparison.experiment import resolve

    experiment = resolve(config, source=source_of(options.config))
    if options.dry_run:
        from jobs.comparison.forecast import forecast
        from jobs.plan import look_unloaded
        from jobs.screens.console import show_plan

        for shown in (experiment.shared, *(run.config for run in experiment.runs[: len(config.methods)])):
            look_unloaded(shown.model, shown.sampling, shown.rollout)
        return show_plan(config, forecast(experiment))
    if not options.address:
        require_ray_address()
    from jobs.comparison.session import run_comparison
    from jobs.screens.terminal import terminal

    console = terminal()
    if not options.address and not all(one.is_done for one in experiment.evaluations):
        from jobs.comparison.look import look_at_runs
        from jobs.screens.terminal import say

        look_at_runs(experiment, lambda text: say(console, f"warning: {text}"))
    return run_comparison(experiment, _executor(experiment, options, console), console)


def _executor(experiment: Experiment, options: argparse.Namespace, console: Console) -> Executor:
    from jobs.comparison.local import LocalExecutor
    from jobs.comparison.on_cluster import ClusterExecutor
    from jobs.screens.terminal import say

    address = address_of(options.address) if options.address else None
    if address is None:
        return LocalExecutor(experiment, say=lambda text: say(console, text))
    package = select(Path.cwd())
    package.check_size()
    return ClusterExecutor(
        experiment,
        connect(address),
        package,
        at_once=options.at_once or AT_ONCE,
        python=options.python or "python",
        say=lambda text: say(console, text),
    )


if __name__ == "__main__":
    sys.exit(main())
