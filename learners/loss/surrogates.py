"""Surrogate objectives: what is maximised for one token. Axis: N response tokens of one micro-batch.

    r_t = pi(t) / pi_anchor(t)        A_t the advantage of the token's response, sg(·) without gradient

The anchor is the proximal policy, the one the batch was begun with; with correction "none" it is the policy that
sampled the token. On the first optimiser step of a batch r_t is 1 against the proximal policy, and all surrogates have
one gradient, A·∇log pi: which is chosen matters with mini_batches > 1, or without correction. (GSPO's spreads a
response's weights evenly over its tokens.) Ratios are bounded far out, which is ours (`learners.loss.ratios`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.config import LossConfig, Surrogate
from learners.loss.ratios import ratio
from learners.loss.responses import mean_by_response


@dataclass(frozen=True, kw_only=True)
class RatioInputs:
    """What a surrogate is a function of. All (N,); `logprob_N` carries the gradient."""

    logprob_N: Tensor
    anchor_logprob_N: Tensor
    advantage_N: Tensor
    response_N: Tensor


@dataclass(frozen=True, kw_only=True)
class SurrogateOutput:
    """`value_N` is to be maximised; `clipped_N` says whose ratio was limited."""

    value_N: Tensor
    clipped_N: Tensor


def clip(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """min(r_t·A_t, clip(r_t, 1 − clip_low, 1 + clip_high)·A_t), and with dual_clip = c, where A_t < 0, no less than
    c·A_t.

    PPO (arXiv:1707.06347), GRPO (arXiv:2402.03300); clip_high > clip_low is DAPO's clip-higher (arXiv:2503.14476); the
    bound c is dual-clip PPO (Ye et al., arXiv:1912.09729), which takes c = 3."""
    ratio_N = ratio(inputs.logprob_N - inputs.anchor_logprob_N)
    clipped_ratio_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    return _pessimistic(ratio_N, clipped_ratio_N, inputs.advantage_N, config.dual_clip)


def gspo(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """min(s·A, clip(s, 1 − gspo_clip_low, 1 + gspo_clip_high)·A) with one ratio for all T tokens of a response:

        s = exp(1/T · Σ_t (log pi(t) − log pi_anchor(t)))

    GSPO (Zheng et al., arXiv:2507.18071), with its ranges 3e-4 and 4e-4 by default. The paper averages over responses:
    aggregation = "sequence_mean". With "token_mean" a response counts by its length, which is ours."""
    ratio_N = ratio(mean_by_response(inputs.logprob_N - inputs.anchor_logprob_N, inputs.response_N))
    clipped_ratio_N = ratio_N.clamp(1 - config.gspo_clip_low, 1 + config.gspo_clip_high)
    return _pessimistic(ratio_N, clipped_ratio_N, inputs.advantage_N)


def cispo(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """sg(min(r_t, cispo_cap))·A_t·log pi(t).

    CISPO (MiniMax-M1, arXiv:2506.13585): the weight is limited, never the gradient, so that rare tokens which a large
    update has already moved go on being trained. The paper writes clip(r, 1 − low, 1 + high) and sets low so that there
    is no lower bound; cispo_cap is its 1 + high. The token-mean aggregation is the paper's."""
    ratio_N = ratio(inputs.logprob_N - inputs.anchor_logprob_N).detach()
    return SurrogateOutput(
        value_N=ratio_N.clamp(max=config.cispo_cap) * inputs.advantage_N * inputs.logprob_N, clipped_N=ratio_N > config.cispo_cap
    )


def reinforce(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """A_t·log pi(t): the score-function estimator (Williams 1992), as in RLOO (arXiv:2402.14740). Nothing limits the
    step."""
    return SurrogateOutput(value_N=inputs.advantage_N * inputs.logprob_N, clipped_N=torch.zeros_like(inputs.advantage_N, dtype=torch.bool))


def _pessimistic(ratio_N: Tensor, clipped_ratio_N: Tensor, advantage_N: Tensor, dual_clip: float = 0.0) -> SurrogateOutput:
    """The smaller of both terms; with `dual_clip` never below dual_clip·A where A is negative."""
    free_N, clipped_N = ratio_N * advantage_N, clipped_ratio_N * advantage_N
    value_N = torch.minimum(free_N, clipped_N)
    limited_N = clipped_N < free_N
    if dual_clip:
        floor_N = torch.where(advantage_N < 0, dual_clip * advantage_N, -torch.inf)
        limited_N = limited_N | (value_N < floor_N)
        value_N = torch.maximum(value_N, floor_N)
    return SurrogateOutput(value_N=value_N, clipped_N=limited_N)


SURROGATES: Mapping[Surrogate, Callable[[RatioInputs, LossConfig], SurrogateOutput]] = {
    "clip": clip,
    "gspo": gspo,
    "cispo": cispo,
    "reinforce": reinforce,
}
"""By name."""
