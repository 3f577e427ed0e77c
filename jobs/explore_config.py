"""The configuration of `python -m jobs.explore`. Importing this module pulls in neither torch, Ray nor vLLM."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from actors.config import STRICT, EncoderConfig, NovelSamplingConfig, RolloutConfig, SamplingConfig, VerifierConfig
from bonus.config import SelectionConfig
from tasks.config import PATH_KEYS, TaskConfig


class ExploreConfig(BaseModel):
    """Pools of candidate answers, and how they are ordered, verified and reported."""

    model_config = STRICT

    out: str = "runs/explore"
    """Where pools and report go. One job, one directory; the same command goes on where it was stopped."""
    model: str = "smollm2-135m"
    """The model that answers: the embedded alias, a local directory, or a hub id."""
    seed: int = 0
    """Seeds sampling, the projection, and the bootstrap. A pool depends on this seed and its problem alone."""
    split: str = "test"
    """Split of the task."""
    problems: int = Field(100, ge=0)
    """How many problems, from the start of the split; 0: all of it."""
    pool: int = Field(64, ge=2)
    """N: candidates sampled for each problem."""
    select: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """k: how many of them are verified. The report has every one of these; the largest is what `verify = "selected"`
    verifies."""
    verify: Literal["all", "selected", "none"] = "all"
    """"all": a study, every candidate is judged. "selected": production, only the chosen ones are. "none": they are
    written out."""
    features: Literal["auto", "engine", "encoder"] = "auto"
    """Where features come from. "engine": the hidden states the model has while it samples, at no cost; they lack the
    last token's (`actors.pooled_states`). "encoder": a second forward pass. "auto": the engine where layer and pooling
    allow it."""
    pool_timeout_s: float = Field(3600.0, gt=0)
    """A pool that is not sampled by then ends the job with a message that names it."""
    wait_timeout_s: float = Field(900.0, gt=0)
    """No other call waits longer."""
    task: TaskConfig = TaskConfig()
    sampling: SamplingConfig = SamplingConfig(max_prompt_tokens=512, max_response_tokens=256)
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
    *("out", *PATH_KEYS, "task.curriculum"),
    *("pool_timeout_s", "wait_timeout_s", "rollout.workers", "encoder.threads", "encoder.num_gpus", "verifier"),
)
"""Keys that may differ when a stopped job is started again: they do not touch what is sampled or chosen."""
