"""The configuration of `python -m jobs.evaluate`, and of the same evaluation in training. Imports neither torch, Ray
nor vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field, model_validator

from actors.config import STRICT, RolloutConfig, SamplingConfig, ScorerConfig, VerifierConfig
from tasks.config import PATH_KEYS, TaskConfig

MAX_RESPONSES = 1000
"""C(1000, 500) is 3e299: counts of draws from more responses do not fit a float64."""


class EvaluationConfig(BaseModel):
    """Evaluation in training: a section of a run's configuration."""

    model_config = STRICT

    every: int = Field(0, ge=0)
    """Evaluate the policy after every so many steps; 0: never. Training goes on meanwhile, the evaluation stays with
    the version it began with, and one that is due while another is under way is left out, and told."""
    split: str = "test"
    """Split of the task."""
    problems: int = Field(64, ge=1)
    """How many problems, from the start of the split: the same ones every time."""
    samples: int = Field(8, ge=1, le=MAX_RESPONSES)
    """n: responses to each problem."""
    k: tuple[int, ...] = ()
    """The k of pass@k and maj@k. Empty: 1, 2, 4, … and `samples`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ks(self.k, self.samples)
        return self


class EvaluateConfig(BaseModel):
    """Samples of one or more models on one set of problems, their statistics and how the models compare."""

    model_config = STRICT

    out: str = "runs/evaluate"
    """Where samples and report go. One job, one directory; the same command goes on where it was stopped."""
    models: tuple[str, ...] = Field(("smollm2-135m",), min_length=1)
    """What is evaluated, one after the other: a run (its directory or name; RUN@STEP for a checkpoint), a model
    directory, the embedded alias, or a hub id."""
    base_model: str | None = None
    """A model (as above) under which the likelihood of all responses is reported: lower is less mere sharpening."""
    seed: int = 0
    """Seeds sampling and the bootstrap. A model's responses to a problem depend on this seed, the model and the problem
    alone."""
    split: str = "test"
    """Split of the task."""
    problems: int = Field(100, ge=0)
    """How many problems, from the start of the split; 0: all of it."""
    samples: int = Field(256, ge=1, le=MAX_RESPONSES)
    """n: responses to each problem."""
    k: tuple[int, ...] = ()
    """The k of the tables. Empty: 1, 2, 4, … and `samples`."""
    resamples: int = Field(2000, ge=100)
    """Of the problems, for the bootstrap's intervals."""
    pool_timeout_s: float = Field(3600.0, gt=0)
    """Responses to one problem that are not sampled by then end the job with a message that names it."""
    wait_timeout_s: float = Field(900.0, gt=0)
    """No other call waits longer."""
    task: TaskConfig = TaskConfig()
    sampling: SamplingConfig = SamplingConfig(max_prompt_tokens=512, max_response_tokens=256)
    rollout: RolloutConfig = RolloutConfig()
    verifier: VerifierConfig = VerifierConfig()
    scorer: ScorerConfig = ScorerConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ks(self.k, self.samples)
        if len(set(self.models)) < len(self.models):
            twice = next(name for name in self.models if self.models.count(name) > 1)
            raise ValueError(f"models = {list(self.models)}: '{twice}' is there twice")
        return self


TAKEN_FROM_A_RUN = ("task", "sampling", "rollout", "verifier")
"""Sections that are a run's own unless something else is said."""

CHANGEABLE_BETWEEN_STARTS = (
    *("out", "k", "resamples", *PATH_KEYS, "task.curriculum"),
    *("pool_timeout_s", "wait_timeout_s", "rollout.workers", "verifier", "scorer.threads", "scorer.num_gpus", "scorer.tokens_per_batch"),
)
"""Keys that may differ when a stopped job is started again: they do not touch what is sampled, judged or scored."""


def check_ks(ks: Sequence[int], samples: int) -> None:
    """Raises ValueError for k that are not increasing, or that no pool of `samples` responses has."""
    if any(k < 1 for k in ks) or list(ks) != sorted(set(ks)):
        raise ValueError(f"k = {list(ks)} must be increasing numbers of at least 1")
    if ks and ks[-1] > samples:
        raise ValueError(
            f"k = {list(ks)} asks for pass@{ks[-1]}, but there are {samples} samples of a problem: raise samples or drop that k"
        )
