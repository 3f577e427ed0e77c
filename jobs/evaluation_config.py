"""The configuration of `repexp evaluate`, and of the same evaluation in training. Importing this module pulls
in neither torch nor Ray nor vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field, model_validator

from actors.config import STRICT, VERIFIER_MEANS, AnswerSamplingConfig, PromptConfig, RolloutConfig, ScorerConfig, VerifierConfig
from buffers.fields import LocalPath
from tasks.config import PATH_KEYS, TaskConfig

MAX_RESPONSES = 1000
"""C(1000, 500) is 3e299: the number of draws from more responses does not fit a float64."""


class EvaluationConfig(BaseModel):
    """Evaluation in training: a section of a run's configuration."""

    model_config = STRICT

    every: int = Field(0, ge=0)
    """The policy is evaluated after every `every` steps; 0 means never. Training continues meanwhile, and the
    evaluation keeps the version it began with. One that is due while another runs is left out with a warning."""
    split: str = "test"
    """The split of the task."""
    problems: int = Field(64, ge=1)
    """The number of problems, from the start of the split: the same ones every time."""
    samples: int = Field(8, ge=1, le=MAX_RESPONSES)
    """n, the number of responses to each problem."""
    k: tuple[int, ...] = ()
    """The k of pass@k and maj@k. An empty list means 1, 2, 4, … and `samples`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ks(self.k, self.samples)
        return self


class EvaluateConfig(BaseModel):
    """The responses of one or more models to one set of problems, their statistics, and how the models compare."""

    model_config = STRICT

    out: LocalPath = "runs/evaluate"
    """Where responses and report go. A directory serves one job; the same command continues a stopped job."""
    models: tuple[LocalPath, ...] = Field(("smollm2-135m",), min_length=1)
    """The models, which take turns: a run (its directory or name; RUN@STEP for a checkpoint), a model directory, the
    embedded alias, or a hub id."""
    base_model: LocalPath | None = None
    """A model (as above) under which the likelihood of all responses is reported: a lower one means less mere
    sharpening."""
    seed: int = Field(0, ge=0)
    """Seeds sampling and the bootstrap. Responses depend on nothing but this seed, the model and the problem."""
    split: str = "test"
    """The split of the task."""
    problems: int = Field(100, ge=0)
    """The number of problems, from the start of the split; 0 takes the whole split."""
    samples: int = Field(256, ge=1, le=MAX_RESPONSES)
    """n, the number of responses to each problem."""
    k: tuple[int, ...] = ()
    """The k of the tables. An empty list means 1, 2, 4, … and `samples`."""
    resamples: int = Field(2000, ge=100)
    """The number of resamples of the problems for the bootstrap's intervals."""
    pool_timeout_s: float = Field(3600.0, gt=0)
    """A problem whose responses take longer ends the job with a message that names it."""
    wait_timeout_s: float = Field(900.0, gt=0)
    """No other call waits longer."""
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    sampling: AnswerSamplingConfig = AnswerSamplingConfig()
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


TAKEN_FROM_A_RUN = ("task", "prompt", "sampling", "rollout", "verifier")
"""Sections that come from a run among the models, unless the configuration sets them."""

CHANGEABLE_BETWEEN_STARTS = (
    *("out", "k", "resamples", *PATH_KEYS, "task.curriculum", "prompt.too_long", "sampling.max_prompt_tokens"),
    *("pool_timeout_s", "wait_timeout_s", "rollout.workers", "rollout.placement", *VERIFIER_MEANS),
    *("scorer.threads", "scorer.num_gpus", "scorer.placement", "scorer.tokens_per_batch"),
)
"""Keys that may differ when a stopped job is started again: they do not change what is sampled, judged or scored."""


def check_ks(ks: Sequence[int], samples: int) -> None:
    """Raise ValueError for k that are not increasing, or that exceed `samples`."""
    given = list(ks)
    if any(k < 1 for k in ks) or given != sorted(set(ks)):
        raise ValueError(f"k = {given} must be increasing numbers of at least 1")
    if ks and ks[-1] > samples:
        raise ValueError(f"k = {given} asks for pass@{ks[-1]}, but there are {samples} samples of a problem: raise samples or drop that k")
