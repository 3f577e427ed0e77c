"""The policy loss: a pure function of per-token tensors. Axis: N response tokens of one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.config import LossConfig


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Everything the loss of one micro-batch needs. All (N,)."""

    logprob_N: Tensor
    """Under the current parameters, with gradient."""
    proximal_logprob_N: Tensor
    """Under the parameters the batch was begun with; equal in value to `logprob_N` at the first optimiser step."""
    behavior_logprob_N: Tensor
    """Under the policy (or policies) that sampled the tokens, as recorded by the engine."""
    advantage_N: Tensor
    num_tokens: int
    """The global denominator: response tokens of the whole batch, over all micro-batches, groups without signal included."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """`loss` sums to the batch's loss over micro-batches; the other tensors are (N,), without gradient."""

    loss: Tensor
    clipped_N: Tensor
    is_weight_N: Tensor


def policy_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """Clipped policy gradient with a token-mean over the whole batch.

        rho_t = pi(t) / pi_prox(t)
        w_t   = min(pi_prox(t) / pi_behaviour(t), is_cap)          correction = "truncated_is"; 1 for "none"
        loss  = −1/M Σ_t w_t · min(rho_t A_t, clip(rho_t, 1 − clip_low, 1 + clip_high) A_t)

    M is the number of response tokens of the whole batch (DAPO's token mean, arXiv:2503.14476), so the gradient does not
    depend on how the batch is split. With "none" rho_t is taken against the behaviour policy itself (PPO, GRPO).
    Truncated importance sampling: Munos et al. 2016; its use against engine mismatch: Yao et al. 2025. w_t has no gradient.
    """
    anchor_N = inputs.behavior_logprob_N if config.correction == "none" else inputs.proximal_logprob_N
    ratio_N = torch.exp(inputs.logprob_N - anchor_N)
    clipped_ratio_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate_N = torch.minimum(ratio_N * inputs.advantage_N, clipped_ratio_N * inputs.advantage_N)
    if config.correction == "none":
        is_weight_N = torch.ones_like(anchor_N)
    else:
        is_weight_N = torch.exp(inputs.proximal_logprob_N - inputs.behavior_logprob_N).clamp(max=config.is_cap).detach()
    with torch.no_grad():
        clipped_N = clipped_ratio_N * inputs.advantage_N < ratio_N * inputs.advantage_N
    return LossOutput(loss=-(is_weight_N * surrogate_N).sum() / inputs.num_tokens, clipped_N=clipped_N, is_weight_N=is_weight_N)
