"""From rewards and exploration bonuses of a group to advantages. Axes: G groups, K responses. Float64 throughout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.config import AdvantageConfig, Normalise

EPSILON = 1e-6
"""Added to the standard deviation, as the authors' trainer does."""


def group_advantages(rewards_GK: Tensor, bonuses_GK: Tensor, config: AdvantageConfig) -> Tensor:
    """Advantages (G, K), float64.

    combine = "reward" (arXiv:2510.11686, §4):   A = normalise(alpha·r + beta·b)
    combine = "advantage" (ours):                A = normalise(alpha·r) + beta·(b − mean(b))

    normalise is one of NORMALISERS; the mean of the bonuses is that of the group, whatever it is.

    A NaN reward marks a response that could not be scored: it is left out of all statistics and gets advantage 0. A
    group with fewer than two scored responses gets advantage 0 throughout, or with normalise "batch", which needs no
    other response of the group, a batch.

    Raises ValueError on shapes that differ.
    """
    if rewards_GK.shape != bonuses_GK.shape or rewards_GK.ndim != 2:
        raise ValueError(f"rewards {tuple(rewards_GK.shape)} and bonuses {tuple(bonuses_GK.shape)} must both be (G, K)")
    scored_GK = ~torch.isnan(rewards_GK)
    reward_GK = config.alpha * torch.nan_to_num(rewards_GK.to(torch.float64))
    bonus_GK = config.beta * bonuses_GK.to(torch.float64)
    normaliser = NORMALISERS[config.normalise]
    if config.beta == 0:
        advantages_GK = normaliser.function(reward_GK, scored_GK)
    elif config.combine == "reward":
        advantages_GK = normaliser.function(reward_GK + bonus_GK, scored_GK)
    else:
        advantages_GK = normaliser.function(reward_GK, scored_GK) + mean(bonus_GK, scored_GK)
    num_compared = scored_GK.sum() if normaliser.over_batch else scored_GK.sum(-1, keepdim=True)
    usable_GK = scored_GK & (num_compared >= 2)
    return torch.where(usable_GK, advantages_GK, torch.zeros_like(advantages_GK))


def mean(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """x − mean(x) over the group: Dr. GRPO (arXiv:2503.20783). A group counts by how far its rewards differ."""
    lowest_G1 = values_GK.where(scored_GK, torch.inf).amin(-1, keepdim=True)
    shifted_GK = (values_GK - lowest_G1).where(scored_GK, 0.0)  # equal values give exactly 0, also where 3 · 0.7 / 3 is not 0.7
    mean_G1 = shifted_GK.sum(-1, keepdim=True) / _count(scored_GK)
    return (shifted_GK - mean_G1) * scored_GK


def std(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """(x − mean(x)) / (std(x, ddof=1) + 1e-6) over the group: GRPO (arXiv:2402.03300). Groups with any contrast count
    alike."""
    centered_GK = mean(values_GK, scored_GK)
    variance_G1 = centered_GK.square().sum(-1, keepdim=True) / (_count(scored_GK) - 1).clamp(min=1)
    return centered_GK / (variance_G1.sqrt() + EPSILON)


def leave_one_out(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """x_i − mean of the group's other x_j: RLOO (arXiv:2402.14740), unbiased. It is n/(n − 1) times `mean`, with n
    scored responses."""
    count_G1 = _count(scored_GK)
    return mean(values_GK, scored_GK) * count_G1 / (count_G1 - 1).clamp(min=1)


def batch(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """(x − mean(x)) / (std(x, ddof=1) + 1e-6) over all scored responses of the step: REINFORCE++ (arXiv:2501.03262).

    That normalises over tokens, so that long responses weigh more in the mean; here a response counts once.
    """
    centered_1N = mean(values_GK.reshape(1, -1), scored_GK.reshape(1, -1))  # as if the batch were one group
    return _divide_by_batch_std(centered_1N.view_as(values_GK), scored_GK)


def group_mean_batch_std(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """(x − mean over the group) / (std of these over the batch + 1e-6): REINFORCE++ with baseline (arXiv:2501.03262).

    The division is one number for the whole step, so that it has none of the bias by difficulty of a division by group.
    """
    return _divide_by_batch_std(mean(values_GK, scored_GK), scored_GK)


def _divide_by_batch_std(centered_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """`centered_GK` has mean 0 over all scored responses."""
    variance = centered_GK.square().sum() / (_count_all(scored_GK) - 1).clamp(min=1)
    return centered_GK / (variance.sqrt() + EPSILON)


def _count(scored_GK: Tensor) -> Tensor:
    return scored_GK.sum(-1, keepdim=True).clamp(min=1)


def _count_all(scored_GK: Tensor) -> Tensor:
    return scored_GK.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """`function` takes values and which of them count, both (G, K), and gives what `group_advantages` calls
    normalise(x)."""

    function: Callable[[Tensor, Tensor], Tensor]
    over_batch: bool = False
    """Whether a response is compared with the whole batch, not with its group."""


NORMALISERS: Mapping[Normalise, Normaliser] = {
    "std": Normaliser(function=std),
    "mean": Normaliser(function=mean),
    "leave_one_out": Normaliser(function=leave_one_out),
    "batch": Normaliser(function=batch, over_batch=True),
    "group_mean_batch_std": Normaliser(function=group_mean_batch_std),
}
"""By name."""
