"""The cores of this machine, shared by the processes of a job that compute on CPU.

config = with_threads(config)      # a training run's; no process is told "auto"
"""

from __future__ import annotations

from typing import TypeVar

from actors.config import EncoderConfig, RolloutConfig, ScorerConfig
from jobs.config import RunConfig
from jobs.machine.look import look_at_cores
from learners.config import LearnerConfig
from learners.threads import resolve_threads

Computing = TypeVar("Computing", RolloutConfig, EncoderConfig, ScorerConfig, LearnerConfig)


def share_of_cores(config: Computing, sharing: int) -> Computing:
    """Return the section of one of `sharing` processes with its number of threads."""
    threads = resolve_threads(config.threads, cores=look_at_cores(), sharing=max(1, sharing), on_gpu=config.num_gpus > 0)
    return config.model_copy(update={"threads": threads})


def with_threads(config: RunConfig) -> RunConfig:
    """Return the configuration of a training run with the threads of rollout workers, learner ranks and encoders."""
    numbers = {"rollout": config.rollout.processes, "learner": config.learner.ranks, "encoder": config.num_encoders}
    sharing = sum(number for role, number in numbers.items() if not getattr(config, role).num_gpus)
    sections = {
        "rollout": share_of_cores(config.rollout, sharing),
        "learner": share_of_cores(config.learner, sharing),
        "encoder": share_of_cores(config.encoder, sharing),
    }
    return config.model_copy(update=sections)
