"""Off-policy corrections: the weight of each token that another policy sampled. Axis: N tokens.

Tokens were sampled by mu, the behavior policy. The batch begins with pi_prox, the proximal policy. All corrections are
functions of

    d_t = log pi_prox(t) − log mu(t)

which includes both staleness and numeric mismatch. The weight multiplies the token's surrogate and has no gradient. A
token of weight 0 still counts in the loss's denominator. If it did not, a step would be larger the more of its data is
bad, and its gradient would depend on how the batch is split. Ratios are bounded (`learners.loss.per_token`), which is
our addition.

Your own correction is a function like those here, or a class whose instances are called alike. A set `reads` of names
says which keys of the loss it reads; a key of [learner.loss] that is set and not read is then refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from learners.config import LossConfig
from learners.loss.kl import k2, k3
from learners.loss.per_token import max_by_response, mean_by_response, ratio, sum_by_response


class Correction(Protocol):
    """A function of d (N,), the response of each token (N,) and the configuration."""

    def __call__(self, difference_N: Tensor, response_N: Tensor, config: LossConfig, /) -> Tensor:
        """Return the weights (N,), without gradient."""


def none(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = 1. The surrogate's ratio is taken against mu: PPO (arXiv:1707.06347), GRPO (arXiv:2402.03300)."""
    return torch.ones_like(difference_N)


def truncated_is(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = min(exp d_t, is_cap). Truncated importance sampling (Espeholt et al., IMPALA, arXiv:1802.01561). Yao
    et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025, use it against mismatch."""
    return ratio(difference_N).clamp(max=config.is_cap)


def masked_is(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = exp d_t where low <= exp d_t <= high, else 0. IcePop (Ring-1T, arXiv:2510.18855, with 0.5 and 5)."""
    return _masked(difference_N, config)


def sequence_truncated_is(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = min(ρ, is_cap), one weight for all tokens of a response of T tokens:

        ρ = exp Σ_t d_t               sequence_ratio = "product"
        ρ = exp (1/T · Σ_t d_t)       sequence_ratio = "geometric"

    Seq-TIS (Liu et al., "When Speed Kills Stability", 2025) takes the product. The geometric mean is GSPO's ratio
    (arXiv:2507.18071); its use here is ours."""
    return ratio(_of_response(difference_N, response_N, config)).clamp(max=config.is_cap)


def sequence_masked_is(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = ρ where low <= ρ <= high, else 0, with ρ as in `sequence_truncated_is`. The product gives
    Seq-MIS (Liu et al. 2025), which has only an upper bound, as our default band does. The geometric mean gives the
    band of their Geo-RS, which weighs what it keeps by 1; we weigh by ρ, which lies within the band."""
    return _masked(_of_response(difference_N, response_N, config), config)


def decoupled(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = exp d_t, not truncated. Decoupled PPO (Hilton et al., arXiv:2110.00641; AReaL, arXiv:2505.24298):
    the ratio is clipped around a proximal policy that is newer than mu, and mu enters through the weight only. The
    proximal policy is the one that the batch begins with. AReaL also caps the weight, which is "truncated_is"."""
    return ratio(difference_N)


def trust_region_mask(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return w_t = exp d_t for the tokens of a response that lies within the trust region, else 0:

        max_t d_t²/2 <= trust_region_max   and   mean_t (exp d_t − 1 − d_t) <= trust_region_mean

    Trust Region Masking (Li et al., arXiv:2512.23075): the combined criterion, with the estimators that the paper
    recommends if the engine's whole distributions are not available. These are k2 for the maximum, because it sees
    ratios far below 1 as well as far above, and k3 for the mean."""
    largest_N = max_by_response(k2(difference_N), response_N)
    mean_N = mean_by_response(k3(-difference_N), response_N)
    inside_N = (largest_N <= config.trust_region_max) & (mean_N <= config.trust_region_mean)
    return torch.where(inside_N, ratio(difference_N), 0.0)


def _of_response(difference_N: Tensor, response_N: Tensor, config: LossConfig) -> Tensor:
    """Return log ρ."""
    return (sum_by_response if config.sequence_ratio == "product" else mean_by_response)(difference_N, response_N)


def _masked(log_weight_N: Tensor, config: LossConfig) -> Tensor:
    (low, high), weight_N = config.band, ratio(log_weight_N)
    return torch.where((weight_N >= low) & (weight_N <= high), weight_N, 0.0)


CORRECTIONS: Mapping[str, Correction] = {
    "none": none,
    "truncated_is": truncated_is,
    "masked_is": masked_is,
    "sequence_truncated_is": sequence_truncated_is,
    "sequence_masked_is": sequence_masked_is,
    "decoupled": decoupled,
    "trust_region_mask": trust_region_mask,
}
"""The known corrections by name. `learners.facts` says what each reads."""
