"""`repexp explore [CONFIG.toml] [--model M --task T ...]`: exploration at inference time. The job samples
candidate answers to every problem, orders them by novelty (and by what novelty is compared with), asks the verifier,
and reports how many verifications each order needs. `--verify selected` is the production use: only the chosen few are
verified. Exit codes: 0 done, 2 refused (one line says why), 1 failed, 130 or 143 stopped. The same command then
continues."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.configuration.files import merged, read_values, source_of
from jobs.configuration.user_error import UserError, answering
from jobs.explore_config import ExploreConfig
from jobs.processes.environment import require_placements, require_ray_address
from jobs.processes.methods import require_sampling_methods
from jobs.sampling.candidates import read_candidates
from jobs.sampling.flags import Flags, add_flags, overrides_of, resolved

FLAGS: Flags = {
    "model": ("model", "the model that answers: embedded alias, directory, or hub id"),
    "task": ("task.name", "whose problems"),
    "split": ("split", "split of the task"),
    "problems": ("problems", "how many problems (0: the whole split)"),
    "pool": ("pool", "candidates for each problem"),
    "select": ("select", "how many are verified, e.g. 1,2,4,8"),
    "out": ("out", "directory of candidates and report"),
    "verify": ("verify", "all (a study), selected (only the chosen), none (write the chosen out)"),
    "quality": ("selection.quality", "none (the paper's order) or logprob (novelty weighted with likelihood)"),
    "ridge": ("selection.ridge", "lam, a number or auto"),
    "dim": ("selection.dim", "size of projected features"),
    "center": ("selection.center", "none or pool"),
    "layer": ("encoder.layer", "whose hidden states: -1 the last"),
    "pooling": ("encoder.pooling", "mean or last"),
    "workers": ("rollout.workers", "engines that sample"),
    "seed": ("seed", ""),
}
OF_POOLS = ("model", "task", "verifier")
"""What old candidates are encoded and judged with unless something else is asked for: what they were sampled with."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp explore", description="Explore candidate answers by their representations.")
    add = parser.add_argument
    add("config", nargs="?", help="TOML file; the flags override it")
    add_flags(parser, FLAGS)
    add("--from-pools", metavar="FILE", help="order and judge candidates sampled before, with these settings; nothing is sampled")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    values = read_values(ExploreConfig, options.config, overrides_of(options, FLAGS))
    pools = None if options.from_pools is None else read_candidates(options.from_pools)
    if pools is not None:
        values = merged({key: pools[1][key] for key in OF_POOLS if key in pools[1]}, values)
    config = resolved(ExploreConfig, values, source=source_of(options.config), data=options.data, overrides=options.overrides)
    require_sampling_methods(config.task, config.rollout, config.sampling, pool_states=config.from_engine)
    require_placements(config)
    if pools is not None and (theirs := pools[1].get("task", {}).get("name", config.task.name)) != config.task.name:
        raise UserError(f"--from-pools {options.from_pools}: these are answers to problems of {theirs}, not of {config.task.name}")
    if options.dry_run:
        from jobs.plan import explore_lines, look_unloaded
        from jobs.sampling.reselect import needs_encoder
        from jobs.screens.console import show_plan

        encodes = needs_encoder(config, None if pools is None else pools[1])
        if pools is None or encodes:
            look_unloaded(config.model, config.sampling, config.rollout)
        return show_plan(config, explore_lines(config, options.from_pools, encodes=encodes))
    if pools is None:  # which may need no Ray at all
        require_ray_address()
    from jobs.sampling.explore_session import run_explore  # imports Ray, so only now that the configuration is valid

    return run_explore(config, pools)


if __name__ == "__main__":
    sys.exit(main())
