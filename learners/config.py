"""Settings of the learner: advantages, loss, optimiser, batching, checkpoints. Imports neither torch nor Ray."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from bonus.base import Need
from buffers.extensions import Known, is_path, load
from buffers.fields import LocalPath
from learners.facts import CORRECTIONS, ESTIMATORS, STRICT, SURROGATES, facts_of, needs_of, refuse_without_effect
from learners.loss_terms import CovarianceConfig, KlConfig
from learners.placement import Placement
from learners.precision import Dtype
from learners.threads import Threads

SurrogateName = Annotated[str, AfterValidator(Known(*SURROGATES))]
CorrectionName = Annotated[str, AfterValidator(Known(*CORRECTIONS))]
EstimatorName = Annotated[str, AfterValidator(Known(*ESTIMATORS))]
Combine = Literal["reward", "advantage", "ties", "positive_ties"]
Normalise = Literal["std", "mean", "leave_one_out", "batch", "group_mean_batch_std"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]
SequenceRatio = Literal["product", "geometric"]


class AdvantageConfig(BaseModel):
    """From the rewards and bonuses of a group to advantages: how much better each response is than others."""

    model_config = STRICT

    estimator: EstimatorName = "normalised"
    """The method that turns the rewards and bonuses of a step into advantages (`learners.estimators`). "normalised":
    what `normalise` says. "maxrl": (r − mean) / mean of the group, so that rare successes weigh more. "pass_at_k": the
    advantage of the group's pass@k with k = `pass_k`. "uniqueness": "normalised" times a weight that falls with the
    number of similar responses. Or the import path "package.module:name" of your own function or class, called as
    (inputs, config). The keys `unlikeliness`, `diversity_product` and loss.kl.where = "reward" change rewards before
    any estimator sees them."""
    estimator_options: dict[str, Any] = {}
    """Keyword arguments for an estimator that is a class of your own. Known estimators take none."""
    normalise: Normalise = "std"
    """What a reward is compared with. "std" (GRPO): subtract the group's mean, divide by the group's standard
    deviation. "mean" (Dr. GRPO): subtract the group's mean only. "leave_one_out" (RLOO): subtract the mean of the
    group's other responses. "batch" (REINFORCE++): use the mean and standard deviation of the whole batch, so that a
    group whose rewards are all equal trains too. "group_mean_batch_std" (REINFORCE++ with baseline): subtract the
    group's mean, divide by the standard deviation of the batch."""
    combine: Combine = "ties"
    """Where the bonus enters. "ties": beta·(bonus − mean) / std of the group is added where the rewards of a group are
    all equal, and nothing elsewhere. "reward" (the paper): alpha·reward + beta·bonus takes the place of the reward. In
    a group whose rewards are all equal, "std" then scales the bonus alone up to unit variance, however small beta is,
    while beta·bonus differs by far more than 1e-6 there. So "ties" is "reward" for a small beta, with a scale and for
    any estimator; "maxrl" and "pass_at_k" refuse "reward".
    "positive_ties": as "ties", but 0 where that is below 0, so no right answer is made less likely for being common.
    "advantage": beta·(bonus − group mean) is added to what the estimator makes of the rewards. Rewards of many values
    are seldom all equal, so "advantage" is for them."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the task's reward. Unless combine is "reward" it has no effect if `normalise` divides by a standard
    deviation, unless it is 0. Change beta there."""
    beta: float = Field(1.0, ge=0)
    """Weight of the exploration bonus. With combine = "ties" it is the deviation of the advantages in a tied group.
    With "advantage", bonuses of one group differ by about 0.1 at bonus.ridge = "auto", normalised rewards by 1. The
    paper takes 0.01 with combine = "reward". 0 trains without the bonus, bit for bit: with the other defaults, plain
    GRPO."""
    pass_k: int = Field(4, ge=1)
    """"pass_at_k": k, the number of responses of which one must be right. At most responses_per_prompt. 1 is
    normalise = "std" but for the divisor of its standard deviation."""
    cluster_by: Literal["answers", "features"] = "answers"
    """"uniqueness": which responses of a group are alike. "answers": those with equal final answers, so it tells right
    answers apart only where a problem has several. "features": clusters of their features, as [bonus] makes them."""
    max_clusters: int = Field(4, ge=2)
    """"uniqueness" with cluster_by = "features": the most clusters of a group (k-means)."""
    rarity: float = Field(1.0, gt=0)
    """"uniqueness": an advantage is multiplied by size^(−rarity) of its response's cluster."""
    unlikeliness: float = Field(0.0, ge=0, lt=1)
    """The share of its reward that the likeliest response of a group loses. Other responses lose less, by their rank.
    He et al. 2025 take 0.25. It is a baseline to compare the bonus with, so set bonus.enabled to false beside it. 0 is
    off."""
    diversity_product: float = Field(0.0, ge=0, le=1)
    """s: a reward above 0 is multiplied by 1 − s·(1 − d), where d in [0, 1] is how far the response's feature is from
    those of its group (DARLING). 0.9 leaves a tenth to copies, as the authors' code is said to; 1 is the product. It
    needs features, which `bonus.dim` and `bonus.source` describe also where bonus.enabled is false. 0 is off."""

    @cached_property
    def needs(self) -> frozenset[Need]:
        """What must be computed for the advantages besides rewards and bonuses. An estimator of your own is imported to
        say so, once. Raises ExtensionError where that fails."""
        needs = {Need.FEATURES} if self.diversity_product else set()
        if self.estimator == "uniqueness":
            needs.add(Need(self.cluster_by))
        if is_path(self.estimator):
            key = "learner.advantage.estimator"
            method = load(self.estimator, self.estimator_options, key=key, arguments=("inputs", "config"))
            needs |= needs_of(method, f'{key} = "{self.estimator}"')
        return frozenset(needs)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        facts = facts_of(ESTIMATORS, self.estimator)
        if self.alpha == 0 and self.beta == 0 and facts.reads is not None and {"alpha", "beta"} <= facts.reads:
            raise ValueError("advantage.alpha = 0 and advantage.beta = 0 leave nothing to train on: set one of them above 0")
        refuse_without_effect(self, "estimator", ESTIMATORS)
        if self.combine == "reward" and facts.rewards != "any":
            raise ValueError(
                f'combine = "reward" contradicts estimator = "{self.estimator}": its rewards must be {facts.rewards}, and a bonus may be '
                'anything: set combine to "advantage" or "ties"'
            )
        for key in ("unlikeliness", "diversity_product"):
            if facts.rewards == "0 or 1" and (value := getattr(self, key)):
                raise ValueError(f'{key} = {value} contradicts estimator = "{self.estimator}": its rewards must be 0 or 1: set {key} to 0')
        if self.max_clusters != 4 and self.cluster_by != "features":
            raise ValueError(
                f'max_clusters = {self.max_clusters} contradicts cluster_by = "{self.cluster_by}": it has an effect with '
                'cluster_by = "features" alone'
            )
        return self


class LossConfig(BaseModel):
    """The policy loss: a surrogate, an off-policy correction, an aggregation, and additions (`docs/losses.md`)."""

    model_config = STRICT

    surrogate: SurrogateName = "clip"
    """What is maximized for one token (`learners.loss.surrogates`), with the ratio pi / pi_old of the policy that is
    trained and the one the batch began with. "clip" (PPO, GRPO): the ratio is clipped. "gspo": one ratio for a whole
    response, clipped to a range of its own. "cispo": the ratio is a capped weight without gradient, so every token
    keeps a gradient. "reinforce": no ratio, so mini_batches must be 1. Or the import path "package.module:name" of
    your own function or class, called as (inputs, config). On policy all known surrogates have the same gradient."""
    surrogate_options: dict[str, Any] = {}
    """Keyword arguments for a surrogate that is a class of your own. Known surrogates take none."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    """"clip": the ratio is clipped from below at 1 − clip_low."""
    clip_high: float = Field(0.28, ge=0)
    """"clip": the ratio is clipped from above at 1 + clip_high. It is larger than clip_low by default (DAPO's
    clip-higher), so that unlikely tokens can become likelier faster."""
    dual_clip: float = Field(0.0, ge=0)
    """"clip": for a token with a negative advantage A, the objective is bounded below by dual_clip · A, so that a very
    large ratio cannot dominate the batch. Dual-clip PPO takes 3. It must be above 1; 0 is off."""
    gspo_clip_low: float = Field(3e-4, ge=0, lt=1)
    """"gspo": the response's ratio is clipped from below at 1 − gspo_clip_low. This ratio is a geometric mean over
    tokens, so it stays far closer to 1 than the ratio of a token. Where engine and learner use different numeric
    formats, rounding alone can exceed the default: raise both limits there."""
    gspo_clip_high: float = Field(4e-4, ge=0)
    """"gspo": the response's ratio is clipped from above at 1 + gspo_clip_high."""
    cispo_cap: float = Field(5.0, ge=1)
    """"cispo": the largest weight of a token. The weight is the ratio, which is 1 on policy. There is no lower
    bound, as in the paper."""
    aggregation: Aggregation = "token_mean"
    """How the values of tokens become one loss (`learners.loss.aggregation`). "token_mean" (DAPO): the mean over all
    tokens of the batch, so a long response weighs more. "sequence_mean" (GRPO, GSPO): the mean over the tokens of a
    response, then over responses, so a token of a long response weighs less. "constant" (Dr. GRPO): the sum over tokens
    divided by (responses · constant_tokens), the same weight for every token."""
    constant_tokens: int = Field(0, ge=0)
    """aggregation = "constant": the length that every response is divided by, usually sampling.max_response_tokens.
    Must be 0 with any other aggregation."""
    correction: CorrectionName = "truncated_is"
    """The weight of a token that another policy sampled (`learners.loss.corrections`): an older version, or the same
    version in the engine's arithmetic. With d = log pi_old − log mu, pi_old the policy the batch began with and mu
    the one that sampled: "truncated_is" is min(exp d, is_cap). "masked_is" (IcePop) is exp d if it is within
    mask_band, else 0. "sequence_truncated_is" and "sequence_masked_is" do the same with one ratio for a whole
    response. "decoupled" (decoupled PPO) is exp d. "trust_region_mask" is exp d, but 0 for every token of a response
    that strays too far. "none" is 1, and the surrogate's ratio is taken against mu. "none" is refused with
    max_policy_lag > 0, unless accept_uncorrected is set. Or the import path "package.module:name" of your own
    function or class, called as (difference_N, response_N, config)."""
    correction_options: dict[str, Any] = {}
    """Keyword arguments for a correction that is a class of your own. Known corrections take none."""
    is_cap: float = Field(2.0, ge=1)
    """"truncated_is", "sequence_truncated_is": the largest weight. A weight is 1 where both policies agree."""
    mask_band: tuple[float, float] | Literal["auto"] = "auto"
    """"masked_is", "sequence_masked_is": weights outside [low, high] become 0. "auto" is [0.5, 5] for tokens (IcePop);
    for responses [0, 2] with sequence_ratio = "product" and [0.98, 1.02] with "geometric"."""
    sequence_ratio: SequenceRatio = "product"
    """"sequence_truncated_is", "sequence_masked_is": the ratio of a response. "product" of the ratios of its tokens:
    unbiased, but its variance grows with the length. "geometric" mean of them: on the same scale for every length, but
    biased."""
    trust_region_max: float = Field(0.1, gt=0)
    """"trust_region_mask": a response is kept only if d²/2 is at most this for each of its tokens."""
    trust_region_mean: float = Field(2e-3, gt=0)
    """"trust_region_mask": and only if the mean of exp(d) − 1 − d over its tokens is at most this. Two bfloat16
    implementations of one model already differ by about 2e-3."""
    accept_uncorrected: bool = False
    """true: allows correction = "none" with max_policy_lag > 0. Set it for comparisons in which training off-policy
    without a correction is the point."""
    kl: KlConfig = KlConfig()
    """A penalty on the divergence from the initial policy. Off by default."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the mean entropy of the next-token distribution, which is added to the objective to keep answers
    diverse. Typical values are 1e-4 to 1e-3. 0 is off."""
    covariance: CovarianceConfig = CovarianceConfig()
    """A restraint on the tokens whose log-prob and advantage vary together, against collapse. Off by default."""

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
        if self.accept_uncorrected and self.is_corrected:
            raise ValueError(f'accept_uncorrected = true contradicts correction = "{self.correction}": set it to false')
        refuse_without_effect(self, "surrogate", SURROGATES)
        refuse_without_effect(self, "correction", CORRECTIONS)
        return self

    @property
    def band(self) -> tuple[float, float]:
        """The mask band in force. Raises KeyError for a correction that has none."""
        return self.mask_band if self.mask_band != "auto" else facts_of(CORRECTIONS, self.correction).bands[self.sequence_ratio]

    @property
    def is_corrected(self) -> bool:
        """Whether tokens of another policy are weighed. If not, the surrogate's anchor is the policy that sampled."""
        return facts_of(CORRECTIONS, self.correction).corrects

    @property
    def is_by_response(self) -> bool:
        """Whether the loss depends on which tokens belong to one response."""
        methods = (facts_of(SURROGATES, self.surrogate), facts_of(CORRECTIONS, self.correction))
        return self.aggregation != "token_mean" or any(facts.by_response for facts in methods)

    @property
    def trains_without_advantage(self) -> bool:
        """Whether a token has a gradient although its advantage is 0."""
        return self.kl.where == "loss" or self.entropy_coefficient > 0 or self.covariance.term == "kl_cov"


class OptimiserConfig(BaseModel):
    """AdamW on float32 master weights."""

    model_config = STRICT

    lr: float = Field(2e-5, gt=0)
    """The learning rate after warm-up."""
    warmup_steps: int = Field(2, ge=0)
    """The number of optimiser steps over which the learning rate rises linearly to `lr`."""
    decay_steps: int = Field(0, ge=0)
    """The number of steps at the end of a run over which the learning rate falls linearly towards 0 (docs/learner.md).
    With 0 it is constant. A run that is continued with more steps has the whole rate again until its new end."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of AdamW's running means of the gradient and of its square."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay. It applies to matrices only, not to biases and norms."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient whose global norm is larger is scaled down to this norm."""


class LoraConfig(BaseModel):
    """Low-rank adapters on a frozen model, in place of full training (`docs/lora.md`). Needs the package peft."""

    model_config = STRICT

    enabled: bool = False
    """true: only adapters are trained, so optimiser state and checkpoints are small. Adapters need a learning rate
    about ten times that of full weights."""
    rank: int = Field(16, ge=1)
    """The rank R of B·A, the change of a weight matrix: B has R columns and A has R rows."""
    alpha: float = Field(32.0, gt=0)
    """B·A is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which matrices get an adapter: the last names of their layers, such as ["q_proj", "v_proj"], or "all-linear" for
    all linear layers. Embeddings and the output head are never adapted."""
    dropout: float = 0.0
    """Must be 0. A policy that drops features while it is trained is not the one that sampled."""
    seed: int = 0
    """Seed of A's random initial values. B starts as 0, so the first policy is the unchanged model for every seed."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.dropout != 0:
            why = "with features dropped the learner's policy is not the one that sampled: leave it at 0"
            raise ValueError(f"lora.dropout = {self.dropout:g}: {why}")
        if not self.targets:
            raise ValueError('lora.targets = [] adapts nothing: name layers, or set it to "all-linear", or lora.enabled to false')
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if changed and not self.enabled:
            raise ValueError(f"lora.{changed[0]} has no effect while lora.enabled = false: set that to true, or leave it out")
        return self


class LearnerConfig(OptimiserConfig):
    """The learner: the optimiser's keys, and everything around it."""

    advantage: AdvantageConfig = AdvantageConfig()
    """How rewards and bonuses become advantages."""
    loss: LossConfig = LossConfig()
    """The loss that the learner minimizes."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters in place of full training. Off by default."""
    dtype: Dtype = "auto"
    """Precision of the forward and backward pass. "auto": bfloat16 on a GPU and on a CPU that is faster with it, else
    float32. Master weights, summed gradients and AdamW moments are always float32. The engine's rollout.dtype must be
    the same."""
    tokens_per_micro_batch: int = Field(2048, gt=0)
    """The most tokens in one forward pass, where a prefix that responses share counts once. A single response that is
    longer still runs, alone. It bounds memory only: the gradient does not depend on it."""
    logits_mib: float = Field(512.0, gt=0)
    """The most memory for logits at a time, in MiB of float32. Logits beyond it are computed in chunks, and once
    more in the backward pass. It bounds memory only (docs/learner.md)."""
    activation_checkpointing: bool = False
    """true: only the input of each layer is kept for the backward pass, which computes the rest again. This needs less
    memory a token and about a quarter more time. The gradient is the same."""
    compile: bool = False
    """true: layers are compiled with torch.compile, which makes the first step a minute longer. Needs a C++
    compiler, or Triton on a GPU. Results differ by rounding only."""
    mini_batches: int = Field(1, ge=1)
    """Optimiser steps per batch. Above 1, the log-probs of the old policy are computed before the first step, and the
    surrogate limits how far the later steps move from it."""
    threads: Threads = "auto"
    """CPU threads of each rank. auto: as for `rollout.threads`. More threads than cores over all processes were never
    faster, and at worst made steps two to ten times longer (docs/measurements.md)."""
    ranks: int = Field(1, ge=1)
    """Processes that make up the learner. Each holds its shard of weights, gradients and moments (FSDP2) and computes
    its part of a batch's groups. The gradient is that of one process. It may change when a run is resumed
    (docs/parallel.md)."""
    num_gpus: float = Field(0.0, ge=0, le=1)
    """GPUs that each rank reserves. Above 0 it runs on a GPU. With several ranks it must be 0 or 1, because NCCL needs
    one GPU for each rank."""
    placement: Placement = Placement()
    """On which nodes of a cluster its processes may run."""
    join_timeout_s: float = Field(120.0, gt=0)
    """How long ranks wait for each other to start, in seconds from when their processes exist. If one is missing then,
    all are started again."""
    collective_timeout_s: float = Field(300.0, gt=0)
    """How long a rank waits for another within a step before it counts it as lost, in seconds. It must be longer than
    writing the largest tensor to a checkpoint takes."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ranks > 1 and self.num_gpus not in (0, 1):
            given = f"num_gpus = {self.num_gpus:g} contradicts ranks = {self.ranks}"
            raise ValueError(f"{given}: each of several ranks needs a whole GPU, or none")
        if self.lora.enabled and self.ranks > 1:
            raise ValueError(
                f"lora.enabled = true contradicts ranks = {self.ranks}: a merged weight takes three whole tensors, of which each rank "
                "would have parts: set ranks to 1, or lora.enabled to false"
            )
        facts = facts_of(ESTIMATORS, self.advantage.estimator)
        if self.loss.kl.where == "reward" and facts.rewards != "any":
            raise ValueError(
                f'loss.kl.where = "reward" contradicts advantage.estimator = "{self.advantage.estimator}": its rewards must be '
                f'{facts.rewards}: set where to "loss"'
            )
        if self.loss.kl.where == "reward" and "normalise" in (facts.reads or ()) and self.advantage.normalise == "std":
            raise ValueError(
                'loss.kl.where = "reward" contradicts advantage.normalise = "std": where all rewards of a group are equal the divergences '
                "alone differ, by the engine's rounding if by nothing else, and are divided by their own deviation: set normalise to "
                '"leave_one_out", "mean", "batch" or "group_mean_batch_std", or where to "loss"'
            )
        if self.loss.covariance.term == "kl_cov" and self.mini_batches == 1:
            raise ValueError(
                'loss.covariance.term = "kl_cov" contradicts mini_batches = 1: the only optimiser step of a batch begins at the policy '
                'that the penalty holds to, where it has no gradient: set mini_batches above 1, or the term to "clip_cov"'
            )
        if self.mini_batches > 1 and not facts_of(SURROGATES, self.loss.surrogate).has_ratio:
            raise ValueError(
                f'loss.surrogate = "{self.loss.surrogate}" has no ratio, so with mini_batches = {self.mini_batches} all optimiser steps of '
                'a batch but the first would be off-policy uncorrected: set mini_batches to 1, or the surrogate to "clip" or "cispo"'
            )
        return self


class CheckpointConfig(BaseModel):
    """When the state of the whole run is saved, and how much of it is kept."""

    model_config = STRICT

    every: int = Field(20, ge=1)
    """Steps between checkpoints. A checkpoint is always written at the end of a run and on a graceful stop."""
    keep: int = Field(2, ge=1)
    """The number of newest complete checkpoints that are kept. Older ones are removed once a newer one is complete."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints of steps that are a multiple of this are kept forever, besides the newest. 0: none. Checkpoints exist
    at multiples of `every` and where a run ended, so choose a multiple of `every`."""
    learner_every: int = Field(0, ge=0)
    """Steps between saves of the learner's state alone, between checkpoints, so that a learner that is lost has fewer
    steps to train again. Only the newest such state is kept. 0: none, only whole checkpoints."""
    storage: LocalPath | None = None
    """Where checkpoints go: a path, or a URI that `pyarrow.fs` knows (file, s3, gs, hdfs, fsspec+PROTOCOL). No two runs
    may share one. By default they go into the run directory."""
