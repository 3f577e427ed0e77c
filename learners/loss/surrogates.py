"""Surrogate objectives: what is maximized for one token. Axis: N response tokens of one micro-batch.

    r_t = pi(t) / pi_anchor(t)        A_t the advantage of the token's response, sg(·) without gradient

The anchor is the proximal policy, with which the batch begins. With correction "none" it is the policy that sampled
the token. On the first optimiser step of a batch, r_t against the proximal policy is 1 and all surrogates have the
same gradient, A·∇log pi. So the choice matters with mini_batches > 1, or without correction. (GSPO spreads a
response's weight evenly over its tokens.) Ratios are bounded (`learners.loss.per_token`), which is our addition.

Your own surrogate is a function like those here, or a class whose instances are called alike. A set `reads` of names
says which keys of the loss it reads; a key of [learner.loss] that is set and not read is then refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from learners.config import LossConfig
from learners.loss.per_token import mean_by_response, ratio


@dataclass(frozen=True, kw_only=True)
class RatioInputs:
    """What a surrogate is a function of. All are (N,); `logprob_N` has the gradient."""

    logprob_N: Tensor
    anchor_logprob_N: Tensor
    advantage_N: Tensor
    response_N: Tensor


@dataclass(frozen=True, kw_only=True)
class SurrogateOutput:
    """`value_N` (N,) is maximized; `clipped_N` (N,), bool, says which tokens had their ratio limited."""

    value_N: Tensor
    clipped_N: Tensor


class Surrogate(Protocol):
    """A function of the log-probs of a micro-batch and the configuration."""

    def __call__(self, inputs: RatioInputs, config: LossConfig, /) -> SurrogateOutput:
        """Return the objective of each token."""


def clip(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """Return min(r_t·A_t, clip(r_t, 1 − clip_low, 1 + clip_high)·A_t). With dual_clip = c the value is at least c·A_t
    where A_t < 0. Sources: PPO (arXiv:1707.06347) and GRPO (arXiv:2402.03300); clip_high > clip_low is DAPO's
    clip-higher (arXiv:2503.14476); the bound c is dual-clip PPO (Ye et al., arXiv:1912.09729), which takes c = 3."""
    ratio_N = ratio(inputs.logprob_N - inputs.anchor_logprob_N)
    clipped_ratio_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    return _pessimistic(ratio_N, clipped_ratio_N, inputs.advantage_N, config.dual_clip)


def gspo(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """Return min(s·A, clip(s, 1 − gspo_clip_low, 1 + gspo_clip_high)·A), with one ratio for all T tokens of a response:

        s = exp(1/T · Σ_t (log pi(t) − log pi_anchor(t)))

    GSPO (Zheng et al., arXiv:2507.18071), with the paper's ranges 3e-4 and 4e-4 by default. The paper averages over
    responses: aggregation = "sequence_mean". With "token_mean" a response counts by its length."""
    ratio_N = ratio(mean_by_response(inputs.logprob_N - inputs.anchor_logprob_N, inputs.response_N))
    clipped_ratio_N = ratio_N.clamp(1 - config.gspo_clip_low, 1 + config.gspo_clip_high)
    return _pessimistic(ratio_N, clipped_ratio_N, inputs.advantage_N)


def cispo(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """Return sg(min(r_t, cispo_cap))·A_t·log pi(t). CISPO (MiniMax-M1, arXiv:2506.13585) limits the weight and never
    the gradient, so that a rare token still trains after a large update has moved it. The paper writes clip(r, 1 − low,
    1 + high) with a low that never binds; cispo_cap is its 1 + high. The paper aggregates by token mean."""
    ratio_N = ratio(inputs.logprob_N - inputs.anchor_logprob_N).detach()
    value_N = ratio_N.clamp(max=config.cispo_cap) * inputs.advantage_N * inputs.logprob_N
    return SurrogateOutput(value_N=value_N, clipped_N=ratio_N > config.cispo_cap)


def reinforce(inputs: RatioInputs, config: LossConfig) -> SurrogateOutput:
    """Return A_t·log pi(t): the score-function estimator (Williams 1992), as in RLOO (arXiv:2402.14740)."""
    return SurrogateOutput(value_N=inputs.advantage_N * inputs.logprob_N, clipped_N=torch.zeros_like(inputs.advantage_N, dtype=torch.bool))


def _pessimistic(ratio_N: Tensor, clipped_ratio_N: Tensor, advantage_N: Tensor, dual_clip: float = 0.0) -> SurrogateOutput:
    """Return the smaller of both terms; with `dual_clip` at least dual_clip·A where A is negative."""
    free_N, clipped_N = ratio_N * advantage_N, clipped_ratio_N * advantage_N
    value_N, limited_N = torch.minimum(free_N, clipped_N), clipped_N < free_N
    if dual_clip:
        floor_N = torch.where(advantage_N < 0, dual_clip * advantage_N, -torch.inf)
        limited_N = limited_N | (value_N < floor_N)
        value_N = torch.maximum(value_N, floor_N)
    return SurrogateOutput(value_N=value_N, clipped_N=limited_N)


SURROGATES: Mapping[str, Surrogate] = {"clip": clip, "gspo": gspo, "cispo": cispo, "reinforce": reinforce}
"""The known surrogates by name. `learners.facts` says what each reads."""
