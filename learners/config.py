"""Settings of the learner: advantages, loss, optimiser, batching, checkpoints. Imports neither torch nor Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from learners.precision import Dtype

STRICT = ConfigDict(extra="forbid", frozen=True)


class AdvantageConfig(BaseModel):
    """From rewards and bonuses of a group to advantages."""

    model_config = STRICT

    normalise: Literal["std", "mean"] = "std"
    """"std" (GRPO): centre by the group mean and divide by the group's standard deviation; "mean" (Dr. GRPO): centre only."""
    combine: Literal["reward", "advantage"] = "advantage"
    """Where the bonus enters. "reward" (the paper): r = alpha·reward + beta·bonus is normalised together, so in a group whose
    rewards are all equal the bonus alone is blown up to unit variance, whatever beta is. "advantage": the rewards are
    normalised, then beta·(bonus − group mean) is added, so beta stays a scale."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the task reward."""
    beta: float = Field(0.5, ge=0)
    """Weight of the exploration bonus (the paper: 0.01 with combine = "reward"). Bonuses of one group differ by about 0.1,
    normalised rewards by 1. 0 is plain GRPO, bit for bit."""


class LossConfig(BaseModel):
    """The policy loss."""

    model_config = STRICT

    clip_low: float = Field(0.2, ge=0, lt=1)
    """The policy ratio is clipped from below at 1 − clip_low."""
    clip_high: float = Field(0.28, ge=0)
    """The policy ratio is clipped from above at 1 + clip_high (asymmetric by default: DAPO's clip-higher)."""
    correction: Literal["truncated_is", "none"] = "truncated_is"
    """Off-policy correction of tokens sampled under an older policy. "truncated_is" weights each token by
    min(pi_learner / pi_behaviour, is_cap). "none" is refused when max_policy_lag > 0."""
    is_cap: float = Field(2.0, gt=0)
    """Cap of the importance weight."""


class OptimiserConfig(BaseModel):
    """AdamW on float32 master weights."""

    model_config = STRICT

    lr: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(2, ge=0)
    """Optimiser steps over which the learning rate rises linearly to its peak. Constant afterwards."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's global norm is clipped to this."""


class LearnerConfig(OptimiserConfig):
    """The learner actor: the optimiser's keys, and everything around it."""

    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    dtype: Dtype = "auto"
    """Precision of forward and backward. Master weights, gradients summed over micro-batches and AdamW moments are float32."""
    tokens_per_micro_batch: int = Field(2048, gt=0)
    """Upper bound of padded tokens in one forward pass (a group's prompt counts once). A single longer group still goes
    alone. Bounds memory only: the gradient does not depend on it."""
    mini_batches: int = Field(1, ge=1)
    """Optimiser steps per batch. Above 1 the proximal log-probs are computed before the first and the ratio is clipped to them."""
    threads: int = Field(1, ge=1)
    """CPU threads of this process. More threads than cores over all processes cost a factor of two to ten."""


class CheckpointConfig(BaseModel):
    """When the state of the whole run is saved, and how much of it is kept."""

    model_config = STRICT

    every: int = Field(20, ge=1)
    """Steps between checkpoints. One is always written at the end and on a graceful stop."""
    keep: int = Field(2, ge=1)
    """Complete checkpoints kept; older ones are removed after a newer one is complete."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints of steps that are a multiple of this are kept for good, besides the newest. 0: none. Those written at an end or a stop
    are of whatever step that was, so choose a multiple of `every`."""
    learner_every: int = Field(0, ge=0)
    """Steps between saves of the learner's state alone, between checkpoints, so that a learner that is lost trains fewer steps again.
    0: only whole checkpoints. One such state is kept."""
    storage: str | None = None
    """Where checkpoints go: a path, or a URI that `pyarrow.fs` knows (file, s3, gs, hdfs, fsspec+PROTOCOL), of this run alone. None: into
    the run directory."""
