"""Imports every method that a configuration names, once and in the driver, before anything starts.

What cannot be used is an ExtensionError: one line that names the key (`buffers.extensions`). Known methods are checked
with the configuration; only methods of your own are imported here, so that a dry run does not wait for torch.
"""

from __future__ import annotations

from actors import engines
from actors.config import AnswerSamplingConfig, RolloutConfig
from actors.vllm_arguments import require_known
from buffers import samplers
from buffers.extensions import ExtensionError, is_path
from jobs.config import RunConfig
from jobs.directory import trackers
from tasks import registry
from tasks.config import TaskConfig


def require_run_methods(config: RunConfig, *, samples: bool = True) -> None:
    """Import all methods of a training run; without `samples` those that sample are not used. Raises ExtensionError."""
    learner = config.learner
    if any(is_path(name) for name in (learner.loss.surrogate, learner.loss.correction, learner.advantage.estimator)):
        from learners import methods as of_learner  # imports torch

        of_learner.require_methods(learner)
    if any(is_path(part.kind) for part in config.bonus.parts):
        from bonus import methods as of_bonus  # imports torch

        of_bonus.require_methods(config.bonus)
    samplers.require_methods(config.replay)
    trackers.require_methods(config.trackers, config.tracker_options)
    pool_states = config.feature_source == "policy"
    require_known(config.rollout.engine_args)
    if samples and is_path(config.rollout.engine):
        engines.require_methods(config.rollout, deterministic=config.deterministic, pool_states=pool_states)
    registry.require_methods(config.task)


def require_sampling_methods(
    task: TaskConfig, rollout: RolloutConfig, sampling: AnswerSamplingConfig, *, pool_states: bool = False
) -> None:
    """Import the task and the engine of a job that samples candidates. Raises ExtensionError."""
    require_known(rollout.engine_args)
    if (sampling.top_p, sampling.top_k) != (1.0, 0) and not engines.facts_of(rollout).truncates:
        raise ExtensionError(
            f'sampling.top_p = {sampling.top_p} and sampling.top_k = {sampling.top_k}: rollout.engine = "{rollout.engine}" samples from '
            "the whole distribution, so leave them at 1.0 and 0, or take another engine"
        )
    if is_path(rollout.engine):
        engines.require_methods(rollout, pool_states=pool_states)
    registry.require_methods(task)
