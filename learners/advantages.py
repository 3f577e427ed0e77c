"""From the rewards and exploration bonuses of a step to advantages. Axes: G groups, K responses. Float64 throughout.

    rewards_GK = unlikeliness_rewards(rewards_GK, logprobs_GK, 0.25)       # where the configuration asks for it
    advantages_GK = group_advantages(rewards_GK, bonuses_GK, config)       # the default estimator, "normalised"

The known estimators are in `learners.estimators`. One of your own is called as (inputs, config). It may call
`group_advantages` and change the result, or add `bonus_part` to advantages that it makes of the rewards alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from learners.config import AdvantageConfig, Normalise

EPSILON = 1e-6
"""Added to the standard deviation, as the authors' trainer does."""

TIE_EPSILON = 1e-9
"""Added to the standard deviation of bonuses that decide a tied group: so small that no real difference is damped."""


@dataclass(frozen=True, kw_only=True)
class AdvantageInputs:
    """What an estimator knows of a step. What it has to ask for is None otherwise: with an attribute `needs`, a set of
    `bonus.base.Need.FEATURES` and `ANSWERS`. Later fields will be optional, so that today's estimators keep working."""

    rewards_GK: Tensor
    """The rewards, after any divergence, unlikeliness and diversity. NaN: the response could not be scored."""
    bonuses_GK: Tensor
    """The exploration bonuses, without their weight beta. 0 where there is none."""
    features_GKD: Tensor | None = None
    """The features that [bonus] describes, float64; 0 for an empty response, which has none."""
    answers_GK: Sequence[Sequence[str | None]] | None = None
    """The final answers. Equal answers are equal strings; None where a response states no answer."""


class Estimator(Protocol):
    """A function of the inputs and the configuration. It is called more than once a step, for a metric."""

    def __call__(self, inputs: AdvantageInputs, config: AdvantageConfig, /) -> Tensor:
        """Return finite advantages (G, K); 0 for a response that could not be scored."""


def group_advantages(rewards_GK: Tensor, bonuses_GK: Tensor, config: AdvantageConfig) -> Tensor:
    """Return advantages (G, K), float64:

        combine = "reward" (arXiv:2510.11686, §4):   A = normalise(alpha·r + beta·b)
        all other values of combine (ours):          A = normalise(alpha·r) + bonus_part

    normalise is one of NORMALISERS. A NaN reward marks a response that could not be scored. It is left out of all
    statistics and gets advantage 0. A group with fewer than two scored responses gets advantage 0 throughout. With
    normalise "batch", which compares a response with the whole batch, this holds for a batch instead. Raises ValueError
    on shapes that differ."""
    if rewards_GK.shape != bonuses_GK.shape or rewards_GK.ndim != 2:
        raise ValueError(f"rewards {tuple(rewards_GK.shape)} and bonuses {tuple(bonuses_GK.shape)} must both be (G, K)")
    scored_GK = ~torch.isnan(rewards_GK)
    reward_GK = config.alpha * torch.nan_to_num(rewards_GK.to(torch.float64))
    normalise = NORMALISERS[config.normalise]
    if config.beta and config.combine == "reward":
        advantages_GK = normalise(reward_GK + config.beta * bonuses_GK.to(torch.float64), scored_GK)
    else:
        advantages_GK = normalise(reward_GK, scored_GK)
        if config.beta:
            advantages_GK = advantages_GK + bonus_part(rewards_GK, bonuses_GK, config)
    num_compared = scored_GK.sum() if normalise is batch else scored_GK.sum(-1, keepdim=True)
    usable_GK = scored_GK & (num_compared >= 2)
    return torch.where(usable_GK, advantages_GK, torch.zeros_like(advantages_GK))


def bonus_part(rewards_GK: Tensor, bonuses_GK: Tensor, config: AdvantageConfig) -> Tensor:
    """Return what the bonuses add to advantages that were made of rewards alone (G, K), float64:

        combine = "advantage":       beta·(b − mean(b))
        combine = "ties":            beta·(b − mean(b)) / (std(b) + 1e-9) in a group whose rewards are all equal, else 0
        combine = "positive_ties":   the same where it is above 0, else 0
        combine = "reward":          0, because the bonuses are in the rewards

    Mean and standard deviation are always those of the group's scored responses. "ties" is ours. It is what the
    published setting comes to for a small beta: there the bonus hardly changes a group with unequal rewards, and has
    unit variance in one with equal rewards (docs/algorithm.md). Here it has a scale, and goes with any estimator. The
    divisor's addend is a thousandth of `std`'s. Bonuses of distinct long responses differ by as little as 1e-7, and
    would be damped by 1e-6.

    A common right answer has a negative part in "ties", on every token of it. "positive_ties" leaves it alone: rare
    right answers gain, and nothing is pushed away from what is right. The parts of a group then sum up to more than 0,
    which is right where all of its answers are, as with the gate "group_has_correct"."""
    scored_GK, bonus_GK = ~torch.isnan(rewards_GK), bonuses_GK.to(torch.float64)
    if config.combine == "advantage":
        return mean(config.beta * bonus_GK, scored_GK)
    if config.combine == "reward":
        return torch.zeros_like(bonus_GK)
    is_tied_G1 = ~mean(torch.nan_to_num(rewards_GK.to(torch.float64)), scored_GK).any(-1, keepdim=True)
    part_GK = config.beta * std(bonus_GK, scored_GK, epsilon=TIE_EPSILON) * is_tied_G1
    return part_GK.clamp(min=0.0) if config.combine == "positive_ties" else part_GK


def mean(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """Return x − mean(x) over the group: Dr. GRPO (arXiv:2503.20783). A group counts by how far its rewards differ."""
    lowest_G1 = values_GK.where(scored_GK, torch.inf).amin(-1, keepdim=True)
    shifted_GK = (values_GK - lowest_G1).where(scored_GK, 0.0)  # equal values give exactly 0, also where 3 · 0.7 / 3 is not 0.7
    mean_G1 = shifted_GK.sum(-1, keepdim=True) / _count(scored_GK)
    return (shifted_GK - mean_G1) * scored_GK


def std(values_GK: Tensor, scored_GK: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """Return (x − mean(x)) / (std(x, ddof=1) + epsilon) over the group: GRPO (arXiv:2402.03300). All groups with any
    contrast count alike."""
    centered_GK = mean(values_GK, scored_GK)
    variance_G1 = centered_GK.square().sum(-1, keepdim=True) / (_count(scored_GK) - 1).clamp(min=1)
    return centered_GK / (variance_G1.sqrt() + epsilon)


def leave_one_out(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """Return x_i − mean of the group's other x_j: RLOO (arXiv:2402.14740), unbiased: n/(n − 1) times `mean`."""
    count_G1 = _count(scored_GK)
    return mean(values_GK, scored_GK) * count_G1 / (count_G1 - 1).clamp(min=1)


def batch(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """Return (x − mean(x)) / (std(x, ddof=1) + 1e-6) over all scored responses: REINFORCE++ (arXiv:2501.03262). The
    paper normalises over tokens, so that long responses weigh more in the mean. Here a response counts once."""
    centered_1N = mean(values_GK.reshape(1, -1), scored_GK.reshape(1, -1))  # as if the batch were one group
    return _divide_by_batch_std(centered_1N.view_as(values_GK), scored_GK)


def group_mean_batch_std(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """Return (x − mean over the group) / (std of these over the batch + 1e-6): REINFORCE++ with baseline
    (arXiv:2501.03262). The divisor is one number for the whole step, so it favours neither easy nor hard problems."""
    return _divide_by_batch_std(mean(values_GK, scored_GK), scored_GK)


def _divide_by_batch_std(centered_GK: Tensor, scored_GK: Tensor) -> Tensor:
    """Divide `centered_GK`, whose mean over all scored responses is 0, by its standard deviation over them."""
    variance = centered_GK.square().sum() / (scored_GK.sum() - 1).clamp(min=1)
    return centered_GK / (variance.sqrt() + EPSILON)


def _count(scored_GK: Tensor) -> Tensor:
    return scored_GK.sum(-1, keepdim=True).clamp(min=1)


NORMALISERS: Mapping[Normalise, Callable[[Tensor, Tensor], Tensor]] = {
    "std": std,
    "mean": mean,
    "leave_one_out": leave_one_out,
    "batch": batch,
    "group_mean_batch_std": group_mean_batch_std,
}
"""What `AdvantageConfig.normalise` names: normalise(x) of values and which of them count, both (G, K)."""


def unlikeliness_rewards(rewards_GK: Tensor, logprobs_GK: Tensor, strength: float) -> Tensor:
    """Return rewards (G, K), float64, of which likely responses keep less than unlikely ones:

        r_i ← r_i · (1 − strength · rank_i / K)  where r_i > 0
        rank_i: the number of the group's responses that are less likely than i

    `logprobs_GK` holds log mu(y | x), the sum over a response's tokens as the sampler recorded it. Among responses of
    reward 1, the rarest counts most. Rewards of 0 and below stay: a smaller penalty for the likeliest response would
    favour it. A NaN reward stays NaN. Raises ValueError on shapes that differ. Unlikeliness reward: He, Fried, Welleck
    2025, arXiv:2506.02355, with strength 0.25, in the form of their published code (rank 0 is the unlikeliest). We
    differ in two points. Their code ranks by the mean log-prob of a token; we rank by the response's probability, as
    the paper's text says. Equally likely responses (copies of one) share the mean of their ranks, so that the order of
    rows does not matter."""
    if rewards_GK.shape != logprobs_GK.shape:
        raise ValueError(f"rewards {tuple(rewards_GK.shape)} and log-probs {tuple(logprobs_GK.shape)} must both be (G, K)")
    logprobs_GK = logprobs_GK.to(torch.float64)
    this_GK1, other_G1K = logprobs_GK[:, :, None], logprobs_GK[:, None, :]
    rank_GK = (other_G1K < this_GK1).sum(-1) + ((other_G1K == this_GK1).sum(-1) - 1) / 2
    rewards_GK = rewards_GK.to(torch.float64)
    return torch.where(rewards_GK > 0, rewards_GK * (1 - strength * rank_GK / rewards_GK.shape[1]), rewards_GK)


def kl_penalised_rewards(rewards_GK: Tensor, kl_GK: Tensor, coefficient: float) -> Tensor:
    """Return r_i − coefficient · kl_i (G, K), float64. kl_i sums an estimate of `learners.loss.kl` over response i.
    InstructGPT (arXiv:2203.02155) and RLOO (arXiv:2402.14740) use log pi − log pi_ref of every token, which is
    estimator "k1". pi is the policy that sampled, as recorded, because the samples measure its divergence. REINFORCE++
    (arXiv:2501.03262) subtracts from a token's advantage only those from it on; here a response has one advantage."""
    return rewards_GK.to(torch.float64) - coefficient * kl_GK.to(torch.float64)
