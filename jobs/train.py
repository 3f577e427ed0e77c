"""`repexp train CONFIG.toml [--set key=value ...]`: train a policy, asynchronously, with the exploration bonus.
Exit codes: 0 done, 2 refused (one line says why), 1 the run failed, 130 or 143 stopped by Ctrl-C or SIGTERM after a
checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.config import RunConfig, load_config
from jobs.configuration.files import path_of
from jobs.configuration.user_error import UserError, answering
from jobs.machine.look import available_memory_gib
from jobs.plan import look_unloaded, make_plan, require_disk, require_memory
from jobs.processes.environment import quieten_libraries, require_placements, require_ray_address
from jobs.processes.methods import require_run_methods


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp train", description="Train a policy with the exploration bonus.")
    add = parser.add_argument
    add("config", nargs="?", help="TOML file, for example configs/quickstart.toml")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a config key; repeatable")
    add("--dry-run", action="store_true", help="print the resolved config and the plan, start nothing")
    add("--resume", choices=("auto", "latest", "never"), default="auto", help="default: resume when there is a checkpoint")
    saved = "train on saved rollouts, without engines or Ray: the batches of a run, or .jsonl and .parquet rows"
    add("--replay-from", metavar="DIR", help=saved)
    add("--rescore", action="store_true", help="with --replay-from: let the task's verifier give the rewards again")
    add("--synchronous", action="store_true", help="one thing after the other; needs max_policy_lag = 0")
    add("--keys", nargs="?", const="", metavar="PREFIX", help="print the configuration keys, all or those under PREFIX, and start nothing")
    options = parser.parse_args(arguments)
    if options.keys is not None and vars(options) != vars(parser.parse_args(["--keys", options.keys])):
        parser.error("--keys goes with no other argument")
    if options.keys is None and options.config is None:
        parser.error("the following arguments are required: config")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    if options.keys is not None:
        return _keys(options.keys)
    config = load_config(options.config, options.overrides)
    if options.synchronous and config.max_policy_lag != 0:
        raise UserError(f"--synchronous needs max_policy_lag = 0, the configuration has {config.max_policy_lag}")
    replays = options.replay_from is not None
    if replays and (options.synchronous or options.resume != "auto"):
        raise UserError("--replay-from goes with neither --synchronous nor --resume: it begins at the first rollouts")
    if options.rescore and not replays:
        raise UserError("--rescore goes with --replay-from: in a run the verifier gives the rewards anyway")
    quieten_libraries()  # before a module of the user's own may import what reads it
    require_run_methods(config, samples=not replays)
    require_placements(config)
    if options.dry_run:
        from jobs.screens.console import show_plan

        look_unloaded(config.model, config.sampling, config.rollout)
        return show_plan(config, make_plan(config).lines())
    if replays:
        from jobs.offline.replay_from import replay_from_session

        return replay_from_session(config, str(path_of(options.replay_from)), rescore=options.rescore)
    return _train(config, options)


def _keys(prefix: str) -> int:
    from jobs.screens.config_keys import selected, show
    from jobs.screens.terminal import terminal

    show(selected(RunConfig, prefix), terminal())
    return 0


def _train(config: RunConfig, options: argparse.Namespace) -> int:
    require_ray_address()
    plan = make_plan(config)
    require_memory(plan, available_memory_gib())
    require_disk(plan, config.run_dir, config.checkpoint.storage)
    from jobs.run.session import run_session  # imports Ray, so only now that the configuration is valid

    return run_session(
        config, config_path=options.config, overrides=options.overrides, resume=options.resume, synchronous=options.synchronous
    )


if __name__ == "__main__":
    sys.exit(main())
