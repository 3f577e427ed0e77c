"""From rewards and exploration bonuses of a group to advantages. Axes: G groups, K responses. Float64 throughout."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.config import AdvantageConfig

EPSILON = 1e-6
"""Added to the standard deviation, as the authors' trainer does."""


def group_advantages(rewards_GK: Tensor, bonuses_GK: Tensor, config: AdvantageConfig) -> Tensor:
    """Advantages (G, K), float64.

    combine = "reward" (arXiv:2510.11686, §4):   A = normalise(alpha·r + beta·b)
    combine = "advantage" (ours):                A = normalise(alpha·r) + beta·(b − mean(b))

    with normalise(x) = (x − mean(x)) / (std(x, ddof=1) + 1e-6) over the group ("std", GRPO) or x − mean(x) ("mean").

    A NaN reward marks a response that could not be scored: it is left out of its group's statistics and gets advantage 0.
    A group with fewer than two scored responses gets advantage 0 throughout.

    Raises ValueError on shapes that differ.
    """
    if rewards_GK.shape != bonuses_GK.shape or rewards_GK.ndim != 2:
        raise ValueError(f"rewards {tuple(rewards_GK.shape)} and bonuses {tuple(bonuses_GK.shape)} must both be (G, K)")
    scored_GK = ~torch.isnan(rewards_GK)
    reward_GK = config.alpha * torch.nan_to_num(rewards_GK.to(torch.float64))
    bonus_GK = config.beta * bonuses_GK.to(torch.float64)
    if config.beta == 0:
        advantages_GK = _normalise(reward_GK, scored_GK, config.normalise)
    elif config.combine == "reward":
        advantages_GK = _normalise(reward_GK + bonus_GK, scored_GK, config.normalise)
    else:
        advantages_GK = _normalise(reward_GK, scored_GK, config.normalise) + _normalise(bonus_GK, scored_GK, "mean")
    usable_GK = scored_GK & (scored_GK.sum(-1, keepdim=True) >= 2)
    return torch.where(usable_GK, advantages_GK, torch.zeros_like(advantages_GK))


def _normalise(values_GK: Tensor, scored_GK: Tensor, how: str) -> Tensor:
    count_G1 = scored_GK.sum(-1, keepdim=True).clamp(min=1)
    mean_G1 = (values_GK * scored_GK).sum(-1, keepdim=True) / count_G1
    centred_GK = (values_GK - mean_G1) * scored_GK
    if how == "mean":
        return centred_GK
    variance_G1 = centred_GK.square().sum(-1, keepdim=True) / (count_G1 - 1).clamp(min=1)
    return centred_GK / (variance_G1.sqrt() + EPSILON)
