"""The known advantage estimators: from what is known of a step to advantages. Axes: G groups, K responses. Float64.

All define where a bonus enters in the same way: A = E(r) + `bonus_part`, with E what the estimator makes of rewards r.
The bonus of `combine` = "reward" is in the reward instead, which "maxrl" and "pass_at_k" refuse: E means something for
pass rates only, and rewards plus bonuses are none. A response without a score (NaN), and a group with fewer than two
scores, gets 0. A group whose rewards are all equal gets 0 from every E but normalise = "batch"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from learners.advantages import EPSILON, AdvantageInputs, Estimator, bonus_part, group_advantages, mean
from learners.config import AdvantageConfig
from learners.diversity import clusters_of_answers, clusters_of_features

T = TypeVar("T")


def normalised(inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    """Return `group_advantages` of the inputs."""
    return group_advantages(inputs.rewards_GK, inputs.bonuses_GK, config)


def maxrl(inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    """Return E(r) = (r − mean(r)) / (mean(r) + 1e-6) over the group, plus the bonus part: MaxRL (Tajwar et al.,
    arXiv:2602.02710).

    With rewards of 0 and 1 and a pass rate p, its expectation approaches the gradient of log p as K grows, where GRPO
    without division has that of p: the right answers of a problem weigh 1/p. The authors' code has the same equation
    and the same 1e-6. We take any rewards of at least 0, which then count in proportion, and refuse one below, because
    a mean near 0 or below would turn the signs. Raises ValueError for such a reward."""
    rewards_GK, scored_GK = _rewards_of(inputs)
    _refuse_rewards(rewards_GK < 0, rewards_GK, config, "must not be negative, because it divides by their mean")
    mean_G1 = rewards_GK.sum(-1, keepdim=True) / scored_GK.sum(-1, keepdim=True).clamp(min=1)
    return _with_bonus(mean(rewards_GK, scored_GK) / (mean_G1 + EPSILON), inputs, config)


def pass_at_k(inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    """Return the advantages of pass@k, plus the bonus part. A group of N scored responses, N⁻ of them wrong, has

        R = 1 − C(N⁻, k) / C(N, k)          σ = √(R·(1 − R))
        E = (1 − R) / σ                                             for a right response
        E = (1 − R − C(N⁻ − 1, k − 1) / C(N − 1, k − 1)) / σ        for a wrong one

    Pass@k Training (Chen et al., arXiv:2508.10751), as in their published code, which adds 1e-6 to σ, as we do. E is
    the mean standardised advantage of all k-subsets that hold the response. It sums to 0 over a group, and is 0
    throughout where k draws without a right answer are impossible (N⁻ < k) or no answer is right. With k = 1 it is
    normalise = "std" but for the standard deviation, which divides by N and not N − 1. Rewards must be 0 or 1. A group
    with fewer than k scored responses has no pass@k and gets 0. Raises ValueError for another reward."""
    rewards_GK, scored_GK = _rewards_of(inputs)
    _refuse_rewards((rewards_GK != 0) & (rewards_GK != 1), rewards_GK, config, "must be 0 or 1, because it counts right answers")
    counts = zip(scored_GK.sum(-1).tolist(), rewards_GK.sum(-1).tolist(), strict=True)
    pairs = [_of_right_and_wrong(scored, scored - round(right), config.pass_k) for scored, right in counts]
    right_G1, wrong_G1 = torch.tensor(pairs, dtype=torch.float64).view(-1, 2).split(1, dim=1)
    return _with_bonus(torch.where(rewards_GK == 1, right_G1, wrong_G1), inputs, config)


def uniqueness(inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    """Return size^(−rarity) · `group_advantages`, plus the bonus part. size counts the scored responses of the
    response's cluster, itself included: Uniqueness-Aware RL (Hu et al., arXiv:2601.08763).

    The paper weighs group-normalised advantages by f^(−α), f the size of the cluster, for right and wrong responses
    alike; a language model clusters by strategy. We know its equations from summaries only, and its α from none. In
    place of the judge we take equal final answers, or k-means of features (`learners.diversity`). Responses that state
    no answer are one cluster. Where a problem has one right answer, "answers" makes all right responses one cluster: it
    then damps easy problems and tells only wrong answers apart. The weights are not normalised, so the advantages of a
    group no longer sum to 0. Raises ValueError without answers or features."""
    scored_GK = ~torch.isnan(inputs.rewards_GK)
    if config.cluster_by == "answers":
        clusters_GK = clusters_of_answers(_required(inputs.answers_GK, "answers_GK", config))
    else:
        clusters_GK = clusters_of_features(_required(inputs.features_GKD, "features_GKD", config), config.max_clusters)
    is_alike_GKK = clusters_GK[:, :, None] == clusters_GK[:, None, :]
    size_GK = (is_alike_GKK & scored_GK[:, None, :]).sum(-1).clamp(min=1)
    bonuses_GK = inputs.bonuses_GK if config.combine == "reward" else torch.zeros_like(inputs.bonuses_GK)
    weighted_GK = size_GK.double() ** -config.rarity * group_advantages(inputs.rewards_GK, bonuses_GK, config)
    return weighted_GK if config.beta == 0 else weighted_GK + bonus_part(inputs.rewards_GK, inputs.bonuses_GK, config)


ESTIMATORS: Mapping[str, Estimator] = {"normalised": normalised, "maxrl": maxrl, "pass_at_k": pass_at_k, "uniqueness": uniqueness}
"""The known estimators by name. `learners.facts` says what each reads."""


def _rewards_of(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Return the rewards, 0 where there is none, and where there is one."""
    return torch.nan_to_num(inputs.rewards_GK.to(torch.float64)), ~torch.isnan(inputs.rewards_GK)


def _with_bonus(advantages_GK: Tensor, inputs: AdvantageInputs, config: AdvantageConfig) -> Tensor:
    if config.beta:
        advantages_GK = advantages_GK + bonus_part(inputs.rewards_GK, inputs.bonuses_GK, config)
    scored_GK = ~torch.isnan(inputs.rewards_GK)
    return torch.where(scored_GK & (scored_GK.sum(-1, keepdim=True) >= 2), advantages_GK, 0.0)


def _of_right_and_wrong(num: int, num_wrong: int, k: int) -> tuple[float, float]:
    """Return the pass@k advantages of a right and of a wrong response. Binomials are whole numbers, so what should be 0
    is exactly 0."""
    if num < k or num_wrong in (0, num):
        return 0.0, 0.0
    fails = math.comb(num_wrong, k) / math.comb(num, k)
    fails_with_it = math.comb(num_wrong - 1, k - 1) / math.comb(num - 1, k - 1)
    deviation = math.sqrt(fails * (1 - fails)) + EPSILON
    return fails / deviation, (fails - fails_with_it) / deviation


def _refuse_rewards(is_bad_GK: Tensor, rewards_GK: Tensor, config: AdvantageConfig, why: str) -> None:
    if is_bad_GK.any():
        group, response = is_bad_GK.nonzero()[0].tolist()
        reward = float(rewards_GK[group, response])
        raise ValueError(
            f'learner.advantage.estimator = "{config.estimator}": rewards {why}, and response {response} of group {group} has {reward:g}'
        )


def _required(value: T | None, name: str, config: AdvantageConfig) -> T:
    if value is None:
        raise ValueError(f'learner.advantage.cluster_by = "{config.cluster_by}" needs AdvantageInputs.{name}')
    return value
