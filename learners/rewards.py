"""What is done to the rewards of a group before they become advantages. Axes: G groups, K responses. Float64
throughout."""

from __future__ import annotations

import torch
from torch import Tensor


def unlikeliness_rewards(rewards_GK: Tensor, logprobs_GK: Tensor, strength: float) -> Tensor:
    """Rewards (G, K), float64, of which likely responses keep less than unlikely ones:

        r_i ← r_i · (1 − strength · rank_i / K)  where r_i > 0,    rank_i the number of the group's responses less likely than i

    `logprobs_GK` holds log mu(y | x), the sum over a response's tokens as recorded by the sampler. So among responses
    of reward 1 the rarest counts most. Rewards of 0 and below stay: to take a share of a penalty from the likeliest
    would favour it.

    Unlikeliness reward: He, Fried, Welleck 2025, arXiv:2506.02355, with strength 0.25, in the form of their published
    code (rank 0 is the unlikeliest). Where we differ: that ranks by the mean log-prob of a token, we by the response's
    probability, as the paper's text has it; equally likely responses (copies of one) share the mean of their ranks, so
    that the order of rows does not matter.

    A NaN reward stays NaN. Raises ValueError on shapes that differ.
    """
    if rewards_GK.shape != logprobs_GK.shape:
        raise ValueError(f"rewards {tuple(rewards_GK.shape)} and log-probs {tuple(logprobs_GK.shape)} must both be (G, K)")
    logprobs_GK = logprobs_GK.to(torch.float64)
    this_GK1, other_G1K = logprobs_GK[:, :, None], logprobs_GK[:, None, :]
    less_likely_GK = (other_G1K < this_GK1).sum(-1)
    as_likely_GK = (other_G1K == this_GK1).sum(-1) - 1
    rank_GK = less_likely_GK + as_likely_GK / 2
    rewards_GK = rewards_GK.to(torch.float64)
    return torch.where(rewards_GK > 0, rewards_GK * (1 - strength * rank_GK / rewards_GK.shape[1]), rewards_GK)


def kl_penalised_rewards(rewards_GK: Tensor, kl_GK: Tensor, coefficient: float) -> Tensor:
    """r_i − coefficient · kl_i (G, K), float64, with kl_i the estimate of `learners.loss.kl` summed over the tokens of
    response i.

    InstructGPT (arXiv:2203.02155), RLOO (arXiv:2402.14740). Those take log pi − log pi_ref of every token; so does
    estimator "k1". pi is the policy that sampled, as recorded, which is the one whose divergence the samples measure.
    REINFORCE++ (arXiv:2501.03262) takes from a token's advantage the divergences from that token on; here a response
    has one advantage."""
    return rewards_GK.to(torch.float64) - coefficient * kl_GK.to(torch.float64)
