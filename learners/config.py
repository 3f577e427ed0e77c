"""Settings of the learner: advantages, loss, optimiser, batching, checkpoints. Imports neither torch nor Ray."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learners.precision import Dtype

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

Normalise = Literal["std", "mean", "leave_one_out", "batch", "group_mean_batch_std"]
Surrogate = Literal["clip", "gspo", "cispo", "reinforce"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]
Correction = Literal["truncated_is", "masked_is", "sequence_truncated_is", "sequence_masked_is", "decoupled", "trust_region_mask", "none"]
SequenceRatio = Literal["product", "geometric"]
KlEstimator = Literal["k1", "k2", "k3"]

_MASK_BANDS: dict[tuple[str, str | None], tuple[float, float]] = {
    ("masked_is", None): (0.5, 5.0),
    ("sequence_masked_is", "product"): (0.0, 2.0),
    ("sequence_masked_is", "geometric"): (0.98, 1.02),
}
_ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("clip_low", "clip_high", "dual_clip"), ("surrogate", ("clip",))),
    **dict.fromkeys(("gspo_clip_low", "gspo_clip_high"), ("surrogate", ("gspo",))),
    "cispo_cap": ("surrogate", ("cispo",)),
    "is_cap": ("correction", ("truncated_is", "sequence_truncated_is")),
    "mask_band": ("correction", ("masked_is", "sequence_masked_is")),
    "sequence_ratio": ("correction", ("sequence_truncated_is", "sequence_masked_is")),
    **dict.fromkeys(("trust_region_max", "trust_region_mean"), ("correction", ("trust_region_mask",))),
}
"""Which key of the loss has an effect with which values of which other key."""


class AdvantageConfig(BaseModel):
    """From rewards and bonuses of a group to advantages."""

    model_config = STRICT

    normalise: Normalise = "std"
    """What a reward is compared with (`learners.advantages`). "std" (GRPO): centered by the group's mean, divided by the
    group's standard deviation; "mean" (Dr. GRPO): centered only; "leave_one_out" (RLOO): less the mean of the group's
    other responses; "batch" (REINFORCE++): mean and standard deviation of the whole batch, so that groups without
    contrast have advantages too; "group_mean_batch_std" (REINFORCE++ with baseline): centered by the group, divided by
    the standard deviation of the batch."""
    combine: Literal["reward", "advantage"] = "advantage"
    """Where the bonus enters. "reward" (the paper): r = alpha·reward + beta·bonus is normalised together, so in a group
    whose rewards are all equal the bonus alone is blown up to unit variance, whatever beta is. "advantage": the rewards
    are normalised, then beta·(bonus − group mean) is added, so beta stays a scale."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the task reward. With combine = "advantage" and a `normalise` that divides by a standard deviation it
    cancels, unless it is 0: weigh the bonus by beta there."""
    beta: float = Field(0.5, ge=0)
    """Weight of the exploration bonus (the paper: 0.01 with combine = "reward"). Bonuses of one group differ by about
    0.1, normalised rewards by 1. 0 is plain GRPO, bit for bit."""
    unlikeliness: float = Field(0.0, ge=0, lt=1)
    """Share of its reward that the likeliest response of a group loses, the others less by their rank
    (`learners.rewards`; He et al. 2025 take 0.25). Meant as a baseline beside the bonus: set bonus.enabled to false
    with it. 0 is off."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("advantage.alpha = 0 and advantage.beta = 0 leave nothing to train on: set one of them above 0")
        return self


class KlConfig(BaseModel):
    """Divergence from the reference, which is the initial policy. Off, no reference model is loaded."""

    model_config = STRICT

    where: Literal["off", "loss", "reward"] = "off"
    """"loss" (GRPO): coefficient · KL of every token is added to the loss. "reward" (InstructGPT, RLOO): coefficient ·
    KL, summed over a response's tokens, is taken from its reward before advantages. Either costs a frozen copy of the
    model and one more forward pass; with LoRA no copy: the reference is the model without its adapters."""
    estimator: KlEstimator = "k3"
    """With r = log pi − log pi_ref of the sampled token: "k1" r; "k2" r²/2; "k3" exp(−r) − 1 + r (`learners.loss.kl`).
    "k1" belongs into the reward; in the loss its gradient has expectation 0, and it is refused."""
    coefficient: float = Field(0.0, ge=0)
    """Weight of the divergence: 0.001 to 0.1."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if (self.where == "off") != (self.coefficient == 0):
            raise ValueError(
                f'kl.where = "{self.where}" contradicts kl.coefficient = {self.coefficient}: set both, or where = "off" and coefficient = 0'
            )
        if self.where == "off" and self.estimator != "k3":
            raise ValueError(f'kl.estimator = "{self.estimator}" has no effect with kl.where = "off": set where too, or leave it out')
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                'kl.estimator = "k1" with kl.where = "loss" has a gradient of expectation 0 and does nothing but add noise: '
                'set the estimator to "k2", which has the gradient that is meant, or to "k3", or where to "reward"'
            )
        return self


class LossConfig(BaseModel):
    """The policy loss: surrogate, off-policy correction, aggregation, and what is added. `docs/losses.md` has the
    table."""

    model_config = STRICT

    surrogate: Surrogate = "clip"
    """What is maximised for a token (`learners.loss.surrogates`). "clip": PPO's and GRPO's clipped ratio; "gspo": one
    ratio a response, clipped to a range of its own; "cispo": the ratio as a capped weight without gradient, so that no
    token loses its gradient; "reinforce": no ratio, so one optimiser step a batch only."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    """"clip": the policy ratio is clipped from below at 1 − clip_low."""
    clip_high: float = Field(0.28, ge=0)
    """"clip": the policy ratio is clipped from above at 1 + clip_high (asymmetric by default: DAPO's clip-higher)."""
    dual_clip: float = Field(0.0, ge=0)
    """"clip": bounds what a token with negative advantage can cost at dual_clip · |A|, above 1 (dual-clip PPO: 3). 0 is
    off."""
    gspo_clip_low: float = Field(3e-4, ge=0, lt=1)
    """"gspo": the response's ratio is clipped from below at 1 − gspo_clip_low. A geometric mean over tokens, it stays
    far closer to 1 than a token's ratio; with another numeric format than the engine's it already differs by more, so
    raise both."""
    gspo_clip_high: float = Field(4e-4, ge=0)
    """"gspo": and from above at 1 + gspo_clip_high."""
    cispo_cap: float = Field(5.0, ge=1)
    """"cispo": cap of the ratio as a weight, which on policy is 1. There is no lower bound, as in the paper."""
    aggregation: Aggregation = "token_mean"
    """How tokens become one number (`learners.loss.aggregation`). "token_mean" (DAPO): mean over all tokens of the
    batch; "sequence_mean" (GRPO, GSPO): mean over a response's tokens, then over responses, so that a token of a long
    one counts less; "constant" (Dr. GRPO): sum over tokens / (responses · constant_tokens)."""
    constant_tokens: int = Field(0, ge=0)
    """"constant": the length every response is divided by, as a rule sampling.max_response_tokens. 0 with any other
    aggregation."""
    correction: Correction = "truncated_is"
    """Off-policy correction of tokens sampled under an older policy (`learners.loss.corrections`), d = log pi_proximal
    − log pi_behavior, the proximal policy being the one the batch was begun with. "truncated_is": min(exp d, is_cap);
    "masked_is" (IcePop): exp d within mask_band, else 0; "sequence_truncated_is", "sequence_masked_is": the same of the
    response's ratio; "decoupled" (decoupled PPO): exp d; "trust_region_mask": exp d, but 0 for a response that strays
    too far anywhere; "none": the ratio is taken against the behavior policy, and nothing is weighted. "none" is
    refused when max_policy_lag > 0, unless accept_uncorrected is set."""
    is_cap: float = Field(2.0, ge=1)
    """"truncated_is", "sequence_truncated_is": cap of the importance weight, which is 1 where there is no mismatch."""
    mask_band: tuple[float, float] | Literal["auto"] = "auto"
    """"masked_is", "sequence_masked_is": weights outside [low, high] become 0. "auto": [0.5, 5] for tokens (IcePop),
    [0, 2] for a product and [0.98, 1.02] for a geometric mean over a response."""
    sequence_ratio: SequenceRatio = "product"
    """"sequence_truncated_is", "sequence_masked_is": a response's ratio is the "product" of its tokens' (unbiased, of a
    variance that grows with the length) or their "geometric" mean (of the same scale whatever the length, biased)."""
    trust_region_max: float = Field(0.1, gt=0)
    """"trust_region_mask": a response is kept if d²/2 is at most this for each of its tokens,"""
    trust_region_mean: float = Field(2e-3, gt=0)
    """and exp(d) − 1 − d at most this on average over them. Between two bfloat16 implementations the average alone is
    about 2e-3."""
    accept_uncorrected: bool = False
    """Allows correction = "none" with max_policy_lag > 0: for comparisons, where training off-policy uncorrected is the
    point."""
    kl: KlConfig = KlConfig()
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the mean entropy of the next-token distribution, which is added to what is maximised. 0 is off."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"dual_clip = {self.dual_clip} would cut ratios below 1: set it above 1, or to 0 for none")
        if (self.aggregation == "constant") != (self.constant_tokens > 0):
            raise ValueError(
                f'aggregation = "{self.aggregation}" contradicts constant_tokens = {self.constant_tokens}: '
                'aggregation = "constant" needs it, as a rule sampling.max_response_tokens, and no other takes it'
            )
        if self.mask_band != "auto" and not 0 <= self.mask_band[0] < 1 < self.mask_band[1]:
            raise ValueError(f"mask_band = {list(self.mask_band)} must have 0 <= low < 1 < high: a weight of 1 is no mismatch")
        if self.accept_uncorrected and self.correction != "none":
            raise ValueError(f'accept_uncorrected = true contradicts correction = "{self.correction}": set it to false')
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        for key, (other, values) in _ONLY_WITH.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default and getattr(self, other) not in values:
                shown = list(value) if isinstance(value, tuple) else f'"{value}"' if isinstance(value, str) else value
                needed = " or ".join(f'"{name}"' for name in values)
                raise ValueError(
                    f'{key} = {shown} contradicts {other} = "{getattr(self, other)}": it has an effect with {other} = {needed} alone'
                )
        return self

    @property
    def band(self) -> tuple[float, float]:
        """The mask band in force. Raises KeyError for a correction that has none."""
        ratio = self.sequence_ratio if self.correction == "sequence_masked_is" else None
        return self.mask_band if self.mask_band != "auto" else _MASK_BANDS[self.correction, ratio]

    @property
    def is_by_response(self) -> bool:
        """Whether the loss depends on which tokens are of one response."""
        return (
            self.surrogate == "gspo"
            or self.aggregation != "token_mean"
            or self.correction in ("sequence_truncated_is", "sequence_masked_is", "trust_region_mask")
        )

    @property
    def trains_without_advantage(self) -> bool:
        """Whether a token has a gradient although its advantage is 0."""
        return self.kl.where == "loss" or self.entropy_coefficient > 0


class OptimiserConfig(BaseModel):
    """AdamW on float32 master weights."""

    model_config = STRICT

    lr: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(2, ge=0)
    """Optimiser steps over which the learning rate rises linearly to its peak. Constant afterwards."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's global norm is clipped to this."""


class LoraConfig(BaseModel):
    """Low-rank adapters on a frozen model, in place of training all of its weights (`docs/lora.md`). Needs the package
    peft."""

    model_config = STRICT

    enabled: bool = False
    """true: only adapters are trained, so the optimiser and checkpoints hold little else. They want a learning rate
    about ten times that of full weights."""
    rank: int = Field(16, ge=1)
    """R of B·A, the change of a weight matrix: B has R columns and A has R rows."""
    alpha: float = Field(32.0, gt=0)
    """B·A is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which matrices: the last names of their layers, such as ["q_proj", "v_proj"], or "all-linear" for all but the
    output head, which with the embeddings is never adapted."""
    dropout: float = 0.0
    """Must be 0. A policy that drops features while it is trained is not the one that sampled."""
    seed: int = 0
    """Of A before training. B begins as 0, so whatever A is, the first policy is the model."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.dropout != 0:
            raise ValueError(
                f"lora.dropout = {self.dropout:g}: with features dropped the learner's policy is not the one that sampled: leave it at 0"
            )
        if not self.targets:
            raise ValueError('lora.targets = [] adapts nothing: name layers, or set it to "all-linear", or lora.enabled to false')
        return self


class LearnerConfig(OptimiserConfig):
    """The learner actor: the optimiser's keys, and everything around it."""

    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    lora: LoraConfig = LoraConfig()
    dtype: Dtype = "auto"
    """Precision of forward and backward. Master weights, gradients summed over micro-batches and AdamW moments are
    float32."""
    tokens_per_micro_batch: int = Field(2048, gt=0)
    """Upper bound of tokens in one forward pass (what responses have in common counts once). A single longer response
    still goes alone. Bounds memory only: the gradient does not depend on it."""
    logits_mib: float = Field(512.0, gt=0)
    """Logits that exist at a time, in MiB of float32: those of other positions are made after, and for the gradient
    once more. Bounds memory only; where a micro-batch's fit, nothing is computed twice (docs/learner.md)."""
    activation_checkpointing: bool = False
    """true: of each layer's activations only its input is kept, and the backward pass computes the rest again: less
    memory a token, for about a quarter more time. The gradient is the same."""
    compile: bool = False
    """true: layers are compiled by torch.compile, in the first step, which takes a minute longer. Needs a C++ compiler,
    or Triton on a GPU. Equal to what is not compiled but for rounding."""
    mini_batches: int = Field(1, ge=1)
    """Optimiser steps per batch. Above 1 the proximal log-probs are computed before the first and the ratio is clipped
    to them."""
    threads: int = Field(1, ge=1)
    """CPU threads of a rank. More threads than cores over all processes cost a factor of two to ten."""
    ranks: int = Field(1, ge=1)
    """Processes that are the learner together. Each holds its part of weights, gradients and moments (FSDP2) and
    computes its share of a batch's groups; the gradient is that of one process. May change when a run is resumed
    (docs/parallel.md)."""
    num_gpus: float = Field(0.0, ge=0, le=1)
    """GPUs a rank reserves; above 0 it runs on one. With several ranks 0 or 1: NCCL wants a GPU for each."""
    join_timeout_s: float = Field(120.0, gt=0)
    """Ranks that have not all met by then, counted from when their processes are there, are started again."""
    collective_timeout_s: float = Field(300.0, gt=0)
    """A rank that waits so long for another within a step takes it for lost. Longer than any tensor takes to be written
    to a checkpoint."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.ranks > 1 and self.num_gpus not in (0, 1):
            raise ValueError(
                f"num_gpus = {self.num_gpus:g} contradicts ranks = {self.ranks}: each of several ranks needs a whole GPU, or none"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> Self:
        if self.lora.enabled and self.ranks > 1:
            raise ValueError(
                f"lora.enabled = true contradicts ranks = {self.ranks}: a merged weight takes three whole tensors, of which each rank "
                "would have parts: set ranks to 1, or lora.enabled to false"
            )
        return self

    @model_validator(mode="after")
    def _noise_stays_small(self) -> Self:
        if self.loss.kl.where == "reward" and self.advantage.normalise == "std":
            raise ValueError(
                'loss.kl.where = "reward" contradicts advantage.normalise = "std": where all rewards of a group are equal the divergences '
                "alone differ, by the engine's rounding if by nothing else, and are divided by their own deviation: set normalise to "
                '"leave_one_out", "mean", "batch" or "group_mean_batch_std", or where to "loss"'
            )
        return self

    @model_validator(mode="after")
    def _steps_are_corrected(self) -> Self:
        if self.loss.surrogate == "reinforce" and self.mini_batches > 1:
            raise ValueError(
                f'loss.surrogate = "reinforce" has no ratio, so with mini_batches = {self.mini_batches} all optimiser steps of a batch but '
                'the first would be off-policy uncorrected: set mini_batches to 1, or the surrogate to "clip" or "cispo"'
            )
        return self


class CheckpointConfig(BaseModel):
    """When the state of the whole run is saved, and how much of it is kept."""

    model_config = STRICT

    every: int = Field(20, ge=1)
    """Steps between checkpoints. One is always written at the end and on a graceful stop."""
    keep: int = Field(2, ge=1)
    """Complete checkpoints kept; older ones are removed after a newer one is complete."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints of steps that are a multiple of this are kept for good, besides the newest. 0: none. Those written at
    an end or a stop are of whatever step that was, so choose a multiple of `every`."""
    learner_every: int = Field(0, ge=0)
    """Steps between saves of the learner's state alone, between checkpoints, so that a learner that is lost trains
    fewer steps again. 0: only whole checkpoints. One such state is kept."""
    storage: str | None = None
    """Where checkpoints go: a path, or a URI that `pyarrow.fs` knows (file, s3, gs, hdfs, fsspec+PROTOCOL), of this run
    alone. None: into the run directory."""
