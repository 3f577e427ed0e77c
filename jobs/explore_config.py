"""The configuration of `repexp explore`. Importing this module pulls in neither torch nor Ray nor vLLM."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from actors.config import (
    STRICT,
    VERIFIER_MEANS,
    AnswerSamplingConfig,
    EncoderConfig,
    NovelSamplingConfig,
    PromptConfig,
    RolloutConfig,
    VerifierConfig,
)
from bonus.config import SelectionConfig
from buffers.fields import LocalPath
from tasks.config import PATH_KEYS, TaskConfig


class ExploreConfig(BaseModel):
    """Candidate answers, and how they are ordered, verified and reported."""

    model_config = STRICT

    out: LocalPath = "runs/explore"
    """Where candidates and report go. A directory serves one job; the same command continues a stopped job."""
    model: LocalPath = "smollm2-135m"
    """The model that answers: the embedded alias, a local directory, or a hub id."""
    seed: int = Field(0, ge=0)
    """Seeds sampling, the projection and the bootstrap. Candidates depend on nothing but this seed and their
    problem."""
    split: str = "test"
    """The split of the task."""
    problems: int = Field(100, ge=0)
    """The number of problems, from the start of the split; 0 takes the whole split."""
    pool: int = Field(64, ge=2)
    """N, the number of candidates sampled for each problem."""
    select: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """The values of k, the number of candidates verified, in the report. The largest one is how many `verify =
    "selected"` verifies."""
    verify: Literal["all", "selected", "none"] = "all"
    """"all" judges every candidate, for a study. "selected" judges the chosen ones only, for production. "none" writes
    the chosen ones out without a verdict."""
    features: Literal["auto", "engine", "encoder"] = "auto"
    """Where features come from. "engine" takes the hidden states that the model has while it samples, at no cost; they
    lack that of the last token (`actors.pooled_states`). "encoder" makes a second forward pass. "auto" is the engine
    where layer and pooling allow it."""
    pool_timeout_s: float = Field(3600.0, gt=0)
    """A problem whose candidates take longer ends the job with a message that names it."""
    wait_timeout_s: float = Field(900.0, gt=0)
    """No other call waits longer."""
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    sampling: AnswerSamplingConfig = AnswerSamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    encoder: EncoderConfig = EncoderConfig()
    verifier: VerifierConfig = VerifierConfig()
    selection: SelectionConfig = SelectionConfig()
    novel_sampling: NovelSamplingConfig = NovelSamplingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.select or any(k < 1 for k in self.select) or list(self.select) != sorted(set(self.select)):
            raise ValueError(f"select = {list(self.select)} must be increasing numbers of at least 1")
        if self.select[-1] > self.pool:
            raise ValueError(f"select = {list(self.select)} asks for {self.select[-1]} of a pool of {self.pool}")
        if self.features == "engine" and not self.engine_can_pool:
            raise ValueError(
                f'features = "engine" has the last layer\'s mean state only, but encoder.layer = {self.encoder.layer} and '
                f'encoder.pooling = "{self.encoder.pooling}": set features to "encoder"'
            )
        if self.features == "encoder" and self.novel_sampling.enabled:
            raise ValueError('novel_sampling.enabled = true chooses by the engine\'s states: set features to "auto" or "engine"')
        return self

    @property
    def engine_can_pool(self) -> bool:
        """Whether the engine's own states have the layer and the pooling that are asked for."""
        return self.encoder.layer == -1 and self.encoder.pooling == "mean"

    @property
    def from_engine(self) -> bool:
        """Whether features are the engine's own states."""
        return self.features == "engine" or (self.features == "auto" and self.engine_can_pool)

    @property
    def primary_order(self) -> str:
        """The order that decides which candidates are selected."""
        return "quality" if self.selection.quality == "logprob" else "repexp"


CHANGEABLE_BETWEEN_STARTS = (
    *("out", *PATH_KEYS, "task.curriculum", "prompt.too_long", "sampling.max_prompt_tokens"),
    *("pool_timeout_s", "wait_timeout_s", "rollout.workers", "rollout.placement", *VERIFIER_MEANS),
    *("encoder.threads", "encoder.num_gpus", "encoder.placement"),
)
"""Keys that may differ when a stopped job is started again: they do not change what is sampled or chosen."""
