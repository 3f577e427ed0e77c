"""Which tokens lower the entropy most, and are restrained: KL-Cov and Clip-Cov. Axis: N tokens of one optimiser step.

    chosen_N = chosen_tokens(advantage_N, logprob_N, config, seed=(version, mini_batch))

A policy-gradient step changes the entropy by about minus the covariance of log-prob and advantage (Cui et al.,
arXiv:2505.22617). A few tokens with both far above, or both far below, their means account for most of it. The paper
chooses them in each step:

    cov_t = (A_t − mean(A)) · (log π(t) − mean(log π))

"kl_cov" takes the largest and adds coefficient · |log π(t) − log π₀(t)| to their loss. "clip_cov" draws some within a
band and drops them from the surrogate. Both are as in the authors' code. We differ in four points.

- Means, ranks and draws are over all trained tokens of an optimiser step, on all ranks. The authors' code chooses
  within a micro-batch, so its choice depends on memory.
- log π is that of the policy that sampled, as recorded. It is known before the first backward pass, and the tokens are
  its samples, as the covariance assumes. The authors take the policy that is trained.
- So "clip_cov" does not know which tokens the surrogate clips, and may draw one. The authors leave those out.
- The surrogate stays as configured. The authors' "kl_cov" has one without clipping."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learners.loss.per_token import bounded
from learners.loss_terms import CovarianceConfig


def covariances(advantage_N: Tensor, logprob_N: Tensor) -> Tensor:
    """Return cov_t (N,), whose mean is the covariance of both."""
    return (advantage_N - advantage_N.mean()) * (logprob_N - logprob_N.mean())


def chosen_tokens(covariance_N: Tensor, config: CovarianceConfig, *, seed: tuple[int, ...]) -> Tensor:
    """Return which tokens are restrained (N,), bool: max(1, ⌊share · N⌋) of them. Fewer are if the band of "clip_cov"
    has fewer, and none if the term is off. Of equal covariances the first ones come first. Equal seeds give equal
    draws."""
    chosen_N = torch.zeros(len(covariance_N), dtype=torch.bool)
    if config.term == "off" or not len(covariance_N):
        return chosen_N
    num_chosen = max(1, int(config.share_in_force * len(covariance_N)))
    if config.term == "kl_cov":
        chosen_N[covariance_N.argsort(descending=True, stable=True)[:num_chosen]] = True
        return chosen_N
    low, high = config.band
    candidates = ((covariance_N > low) & (covariance_N < high)).nonzero().flatten().numpy()
    chosen_N[torch.from_numpy(np.random.default_rng(seed).permutation(candidates)[:num_chosen])] = True
    return chosen_N


def restrained_value(value_N: Tensor, chosen_N: Tensor) -> Tensor:
    """Return the surrogate's values, 0 and without gradient for chosen tokens: "clip_cov"."""
    return torch.where(chosen_N, 0.0, value_N)


def penalty(logprob_N: Tensor, proximal_logprob_N: Tensor, chosen_N: Tensor) -> Tensor:
    """Return |log π(t) − log π₀(t)| for chosen tokens, 0 for others: "kl_cov". The log-ratio is bounded
    (`learners.loss.per_token`)."""
    return torch.where(chosen_N, bounded(logprob_N - proximal_logprob_N).abs(), 0.0)
