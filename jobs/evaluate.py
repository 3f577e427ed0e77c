"""`repexp evaluate --model M [--model …] [CONFIG.toml]`: pass@k of one or more models, and how they compare.
The job samples n responses to every problem, judges them all, and reports pass@k and majority votes with intervals, how
varied the answers are, and how likely a base model finds them. Of several models it also reports the differences and
the sample efficiency. `jobs.evaluation_config` has every key.

    repexp evaluate --model runs/quickstart --model smollm2-135m --samples 256 --problems 100

Exit codes: 0 done, 2 refused (one line says why), 1 failed, 130 or 143 stopped. The same command then continues."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.analysis.pass_at_k import pass_at_k
from jobs.configuration.files import changed_keys, merged, read_values, source_of, validated
from jobs.configuration.user_error import UserError, answering
from jobs.evaluation_config import CHANGEABLE_BETWEEN_STARTS, TAKEN_FROM_A_RUN, EvaluateConfig
from jobs.processes.environment import require_placements, require_ray_address
from jobs.processes.methods import require_sampling_methods
from jobs.sampling.flags import Flags, add_flags, overrides_of, resolved

if TYPE_CHECKING:
    from jobs.sampling.evaluated_models import EvaluatedModel

__all__ = ["main", "pass_at_k"]

FLAGS: Flags = {
    "base-model": ("base_model", "report how likely this model finds all responses"),
    "task": ("task.name", "whose problems; by default those of the run"),
    "split": ("split", "split of the task"),
    "problems": ("problems", "how many problems (0: the whole split)"),
    "samples": ("samples", "responses to each problem"),
    "k": ("k", "of pass@k, e.g. 1,2,4,8"),
    "out": ("out", "directory of samples and report"),
    "workers": ("rollout.workers", "engines that sample"),
    "seed": ("seed", ""),
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repexp evaluate", description="pass@k of models, and how they compare.")
    parser.add_argument("config", nargs="?", help="TOML file; the flags override it")
    named = "a run (RUN@STEP for a checkpoint), directory, embedded alias or hub id; repeatable (models)"
    parser.add_argument("--model", action="append", dest="models", metavar="MODEL", help=named)
    add_flags(parser, FLAGS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(parse_arguments(arguments)))


def _main(options: argparse.Namespace) -> int:
    config, models, base = resolve(values_of(options), source=source_of(options.config), data=options.data, overrides=options.overrides)
    require_sampling_methods(config.task, config.rollout, config.sampling)
    require_placements(config)
    if options.dry_run:
        from jobs.plan import evaluate_lines, evaluate_memory_gib, look_unloaded
        from jobs.screens.console import show_plan

        for model in [*models, *([base] if base else [])]:
            if model.run is None:
                look_unloaded(model.model, config.sampling, config.rollout)
        memory = evaluate_memory_gib(config, [model.model for model in models], base.model if base else None)
        described = [model.describe() for model in models]
        return show_plan(config, evaluate_lines(config, described, base.describe() if base else None, memory))
    require_ray_address()
    from jobs.sampling.evaluate_session import run_evaluate  # imports Ray, so only now that the configuration is valid

    return run_evaluate(config, models, base)


def values_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the file, overridden by the flags, and these by --set."""
    values = read_values(EvaluateConfig, options.config, overrides_of(options, FLAGS))
    return values | ({"models": options.models} if options.models else {})


def resolve(
    values: dict[str, Any], *, source: str, data: str | None = None, overrides: Sequence[str] = ()
) -> tuple[EvaluateConfig, list[EvaluatedModel], EvaluatedModel | None]:
    """Return the configuration and the models it names. A run among them gives what it does not say of task, sampling,
    rollout and verifier. `data` and `overrides` are those of `resolved`. Raises UserError and ModelError for values
    that do not fit together, a model that does not exist, and runs that differ in what is left to them."""
    from jobs.sampling.evaluated_models import find_model, find_models

    models = find_models(validated(EvaluateConfig, values, source=source).models)
    own = [model for model in models if model.settings is not None]
    configs = [validated(EvaluateConfig, _beneath(model, values), source=f"{model.label} and {source}") for model in own]
    for model, config in zip(own[1:], configs[1:], strict=True):
        if different := changed_keys(configs[0].model_dump(mode="json"), config, CHANGEABLE_BETWEEN_STARTS):
            raise UserError(f"{own[0].label} and {model.label} differ in {', '.join(different[:3])}: choose one by --set or flags")
    values = _beneath(own[0], values) if own else values
    config = resolved(EvaluateConfig, values, source=source, data=data, overrides=overrides)
    return config, models, None if config.base_model is None else find_model(config.base_model)


def _beneath(model: EvaluatedModel, values: dict[str, Any]) -> dict[str, Any]:
    assert model.settings is not None
    return merged({name: model.settings[name] for name in TAKEN_FROM_A_RUN if name in model.settings}, values)


if __name__ == "__main__":
    sys.exit(main())
