"""The configuration of `repexp compare`. Importing this module pulls in neither torch nor Ray nor vLLM."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from actors.config import STRICT
from buffers.fields import LocalPath
from jobs.configuration.overrides import KeysOf
from jobs.evaluation_config import MAX_RESPONSES, check_ks

BASE = "base"
"""What the model is called that no run has trained."""
RunKeys = Annotated[dict[str, Any], KeysOf("jobs.config:RunConfig")]
"""Keys of `repexp train`, and what each is set to."""
METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")


class ComparedEvaluation(BaseModel):
    """What the base model and every policy are asked. Task and sampling are those of the base configuration and
    `common`, whatever a method changes; so is the engine, but for `rollout`."""

    model_config = STRICT

    split: str = "test"
    """The split of the task."""
    problems: int = Field(100, ge=1)
    """The number of problems, from the start of the split: the same ones for all."""
    samples: int = Field(128, ge=1, le=MAX_RESPONSES)
    """n, the number of responses to each problem."""
    k: tuple[int, ...] = ()
    """The k of the tables. An empty list means 1, 2, 4, … and `samples`."""
    rollout: dict[str, Any] = {}
    """Keys of [rollout] that replace those of the base configuration in evaluations. { engine = "prefix-tree" } is for
    short answers: policies that answer alike then cost a fraction."""
    seed: int = Field(0, ge=0)
    """Seeds sampling and the bootstrap."""
    resamples: int = Field(2000, ge=100)
    """The number of resamples behind intervals over runs and problems."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ks(self.k, self.samples)
        return self


class PaceConfig(BaseModel):
    """How fast the machine is, as `--dry-run` takes it. Steps that the comparison has trained replace `step_s`."""

    model_config = STRICT

    step_s: float = Field(6.0, gt=0)
    """Seconds of a training step."""
    evaluation_tokens_per_s: float = Field(400.0, gt=0)
    """Response tokens that an evaluation samples in a second."""
    start_s: float = Field(40.0, ge=0)
    """Seconds from the start of a run, or of an evaluation, to its first token."""


class CompareConfig(BaseModel):
    """Methods of training, compared: the same base configuration, the same problems, the same number of responses."""

    model_config = STRICT

    out: LocalPath = "runs/compare"
    """Where runs, evaluations and the report go. The same command continues a stopped comparison. Its last part is the
    comparison's name, with which the names of its runs begin."""
    config: LocalPath | None = None
    """The base configuration: a file of `repexp train`. Without one, all keys have their defaults."""
    common: RunKeys = {}
    """Keys of `repexp train` that replace those of the base configuration for every method."""
    methods: dict[str, RunKeys] = {}
    """By the name of a method: the keys of `repexp train` that make it. An empty table is the base configuration
    itself."""
    baseline: str = "grpo"
    """The method that all others are compared with."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """The seeds that every method is trained with. One seed fixes the problems and their order for all methods."""
    steps: tuple[int, ...] = Field((20, 40, 60), min_length=1)
    """The steps whose policies are evaluated; a run has as many steps as the last. The base model
    is evaluated too, as step 0."""
    keep_checkpoints: bool = False
    """Whether a run keeps its checkpoints once its policies are evaluated. Without them it cannot be trained further;
    its exported policy, its metrics and its rollouts stay."""
    evaluation: ComparedEvaluation = ComparedEvaluation()
    pace: PaceConfig = PaceConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.methods:
            if not METHOD_NAME.fullmatch(name) or name == BASE:
                why = "is the model before training" if name == BASE else "needs letters, digits, '_' and '-' only, at most 41"
                raise ValueError(f"methods: the name '{name}' {why}: choose another")
        if self.methods and self.baseline not in self.methods:
            raise ValueError(f"baseline = '{self.baseline}' is not among the methods {', '.join(self.methods)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must differ")
        if list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise ValueError(f"steps = {list(self.steps)} must be increasing numbers of at least 1 (the base model is evaluated anyway)")
        return self
