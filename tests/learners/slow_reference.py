"""The losses and advantages again, written the slow way from the equations: one token at a time, in Python's floats.

Only the names in the configurations come from `learners`. A batch is a list of responses, a response a list of tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from learners.config import AdvantageConfig, LossConfig

STEP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Token:
    logprob: float
    proximal: float
    behavior: float
    reference: float
    entropy: float
    advantage: float
    chosen: bool = False


Batch = Sequence[Sequence[Token]]


def loss(batch: Batch, config: LossConfig, *, frozen: Batch | None = None) -> float:
    """Return the loss of a batch of responses. The log-probs of the batch `frozen` are used where the equations stop
    the gradient."""
    frozen = frozen or batch
    policy = [
        [surrogate_of(response, fixed, t, config) for t in range(len(response))] for response, fixed in zip(batch, frozen, strict=True)
    ]
    weighted = [
        [
            0.0 if config.covariance.term == "clip_cov" and fixed[t].chosen else weight_of(fixed, t, config) * value
            for t, value in enumerate(values)
        ]
        for fixed, values in zip(frozen, policy, strict=True)
    ]
    total = -aggregated(weighted, config)
    if config.kl.where == "loss":
        total += config.kl.coefficient * aggregated([[kl_of(token, config) for token in response] for response in batch], config)
    if config.covariance.term == "kl_cov":
        far = [[abs(bounded(token.logprob - token.proximal)) * token.chosen for token in response] for response in batch]
        total += config.covariance.coefficient * aggregated(far, config)
    return total - config.entropy_coefficient * aggregated([[token.entropy for token in response] for response in batch], config)


def surrogate_of(response: Sequence[Token], fixed: Sequence[Token], t: int, config: LossConfig) -> float:
    token = response[t]
    match config.surrogate:
        case "reinforce":
            return token.advantage * token.logprob
        case "cispo":
            ratio = exp(fixed[t].logprob - anchor_of(fixed[t], config))
            return min(ratio, config.cispo_cap) * token.advantage * token.logprob
        case "gspo":
            ratio = exp(sum(other.logprob - anchor_of(other, config) for other in response) / len(response))
            return pessimistic(ratio, 1 - config.gspo_clip_low, 1 + config.gspo_clip_high, token.advantage)
        case "clip":
            ratio = exp(token.logprob - anchor_of(token, config))
            value = pessimistic(ratio, 1 - config.clip_low, 1 + config.clip_high, token.advantage)
            if config.dual_clip and token.advantage < 0:
                value = max(value, config.dual_clip * token.advantage)
            return value


def pessimistic(ratio: float, low: float, high: float, advantage: float) -> float:
    return min(ratio * advantage, min(max(ratio, low), high) * advantage)


def anchor_of(token: Token, config: LossConfig) -> float:
    return token.behavior if config.correction == "none" else token.proximal


def weight_of(response: Sequence[Token], t: int, config: LossConfig) -> float:
    differences = [token.proximal - token.behavior for token in response]
    of_token = exp(differences[t])
    of_response = exp(sum(differences) / (len(differences) if config.sequence_ratio == "geometric" else 1))
    match config.correction:
        case "none":
            return 1.0
        case "truncated_is":
            return min(of_token, config.is_cap)
        case "masked_is":
            return of_token if config.band[0] <= of_token <= config.band[1] else 0.0
        case "sequence_truncated_is":
            return min(of_response, config.is_cap)
        case "sequence_masked_is":
            return of_response if config.band[0] <= of_response <= config.band[1] else 0.0
        case "decoupled":
            return of_token
        case "trust_region_mask":
            furthest = max(d * d / 2 for d in differences)
            average = sum(k3_of(-d) for d in differences) / len(differences)
            return of_token if furthest <= config.trust_region_max and average <= config.trust_region_mean else 0.0


def bounded(log_ratio: float) -> float:
    return min(max(log_ratio, -20.0), 20.0)


def exp(log_ratio: float) -> float:
    return math.exp(bounded(log_ratio))


def k3_of(r: float) -> float:
    return exp(-r) - 1 + bounded(r)


def kl_of(token: Token, config: LossConfig) -> float:
    r = token.logprob - token.reference
    return {"k1": r, "k2": r * r / 2, "k3": k3_of(r)}[config.kl.estimator]


def chosen_by_covariance(advantages: Sequence[float], logprobs: Sequence[float], share: float) -> list[int]:
    """Return the indices of the tokens with the largest covariance."""
    covariances = [(a - average(advantages)) * (q - average(logprobs)) for a, q in zip(advantages, logprobs, strict=True)]
    largest_first = sorted(range(len(covariances)), key=lambda t: -covariances[t])
    return sorted(largest_first[: max(1, int(share * len(covariances)))])


def aggregated(values: Sequence[Sequence[float]], config: LossConfig) -> float:
    responses = [response for response in values if response]
    match config.aggregation:
        case "token_mean":
            return sum(map(sum, responses)) / sum(map(len, responses))
        case "sequence_mean":
            return sum(sum(response) / len(response) for response in responses) / len(responses)
        case "constant":
            return sum(sum(response) / config.constant_tokens for response in responses) / len(responses)


def gradient(batch: Batch, config: LossConfig, field: str) -> list[float]:
    """Return ∂loss/∂field of every token in order, by central differences."""
    return [
        (loss(moved(batch, i, t, field, STEP), config, frozen=batch) - loss(moved(batch, i, t, field, -STEP), config, frozen=batch))
        / (2 * STEP)
        for i, response in enumerate(batch)
        for t in range(len(response))
    ]


def moved(batch: Batch, i: int, t: int, field: str, by: float) -> Batch:
    """Return the batch with `field` of token t of response i changed."""
    token = replace(batch[i][t], **{field: getattr(batch[i][t], field) + by})
    response = [*batch[i][:t], token, *batch[i][t + 1 :]]
    return [*batch[:i], response, *batch[i + 1 :]]


# --- advantages ------------------------------------------------------------------------------------------------------

Rewards = Sequence[Sequence[float | None]]


def advantages(rewards: Rewards, bonuses: Sequence[Sequence[float]], config: AdvantageConfig) -> list[list[float]]:
    """Return one list per group. None could not be scored."""
    r = [[None if x is None else config.alpha * x for x in group] for group in rewards]
    b = [[config.beta * x for x in group] for group in bonuses]
    if config.beta and config.combine == "reward":
        both = [[None if x is None else x + y for x, y in zip(*pair, strict=True)] for pair in zip(r, b, strict=True)]
        return normalised(both, config)
    found = normalised(r, config)
    if not config.beta:
        return found
    added = []
    for group, values, bonus in zip(rewards, found, b, strict=True):
        scored = [y for x, y in zip(group, bonus, strict=True) if x is not None]
        usable = len(scored) >= 2 or config.normalise == "batch"
        added.append(
            [0.0 if x is None or not usable else value + y - average(scored) for x, value, y in zip(group, values, bonus, strict=True)]
        )
    return added


Bonuses = Sequence[Sequence[float]]


def maxrl(rewards: Rewards) -> list[list[float]]:
    return [[0.0 if x is None else (x - average(known(group))) / (average(known(group)) + 1e-6) for x in group] for group in rewards]


def pass_at_k(rewards: Rewards, k: int) -> list[list[float]]:
    """Return for each response the mean standardised reward of all k-subsets of the scored ones that hold it."""

    def of_group(group: Sequence[float | None]) -> list[float]:
        scored = [i for i, x in enumerate(group) if x is not None]
        subsets = list(itertools.combinations(scored, k))
        if not subsets:
            return [0.0] * len(group)
        passes = [max(group[i] for i in subset) for subset in subsets]
        sigma = math.sqrt(average([(p - average(passes)) ** 2 for p in passes]))
        standardised = [(p - average(passes)) / (sigma + 1e-6) for p in passes]
        holding = [[a for a, subset in zip(standardised, subsets, strict=True) if i in subset] for i in range(len(group))]
        return [average(found) if found else 0.0 for found in holding]

    return [of_group(group) for group in rewards]


def uniqueness_weights(rewards: Rewards, clusters: Sequence[Sequence[object]], rarity: float) -> list[list[float]]:
    return [
        [sum(y is not None and other == own for y, other in zip(group, names, strict=True)) ** -rarity if x is not None else 0.0
         for x, own in zip(group, names, strict=True)]
        for group, names in zip(rewards, clusters, strict=True)
    ]  # fmt: skip


def bonus_part(rewards: Rewards, bonuses: Bonuses, config: AdvantageConfig) -> list[list[float]]:
    def of_group(group: Sequence[float | None], bonus: Sequence[float]) -> list[float]:
        scored = [y for x, y in zip(group, bonus, strict=True) if x is not None]
        if len(scored) < 2 or config.combine == "reward":
            return [0.0] * len(group)
        scale = config.beta
        if config.combine in ("ties", "positive_ties"):
            scale = config.beta / (deviation(scored) + 1e-9) if len(set(known(group))) == 1 else 0.0
        least = 0.0 if config.combine == "positive_ties" else -math.inf
        return [0.0 if x is None else max(least, scale * (y - average(scored))) for x, y in zip(group, bonus, strict=True)]

    return [of_group(*pair) for pair in zip(rewards, bonuses, strict=True)]


def distinctness(group: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of (1 − cos) / 2 to the others, about the mean feature of the group. None is all zeros."""
    spoken = [x for x in group if any(x)]

    def centered(x: Sequence[float]) -> list[float]:
        return [value - average([other[d] for other in spoken]) for d, value in enumerate(x)]

    def length(x: Sequence[float]) -> float:
        return math.sqrt(sum(value * value for value in x))

    def distance(x: Sequence[float], y: Sequence[float]) -> float:
        if length([a - b for a, b in zip(x, y, strict=True)]) <= 1e-3 * max(length(x), length(y)):
            return 0.0
        cosine = sum(a * b for a, b in zip(centered(x), centered(y), strict=True)) / length(centered(x)) / length(centered(y))
        return (1 - cosine) / 2

    others = [[y for j, y in enumerate(group) if j != i and any(y)] for i in range(len(group))]
    return [average([distance(x, y) for y in ys]) if any(x) and ys else 0.0 for x, ys in zip(group, others, strict=True)]


def normalised(values: Rewards, config: AdvantageConfig) -> list[list[float]]:
    everything = [x for group in values for x in group if x is not None]
    centered = [x - average(known(group)) for group in values for x in group if x is not None]

    def one(x: float, group: Sequence[float]) -> float:
        match config.normalise:
            case "batch":
                return (x - average(everything)) / (deviation(everything) + 1e-6) if len(everything) > 1 else 0.0
            case _ if len(group) < 2:
                return 0.0
            case "mean":
                return x - average(group)
            case "std":
                return (x - average(group)) / (deviation(group) + 1e-6)
            case "leave_one_out":
                return x - (sum(group) - x) / (len(group) - 1)
            case "group_mean_batch_std":
                return (x - average(group)) / (deviation(centered) + 1e-6)

    return [[0.0 if x is None else one(x, known(group)) for x in group] for group in values]


def known(group: Sequence[float | None]) -> list[float]:
    return [x for x in group if x is not None]


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    return math.sqrt(sum((x - average(values)) ** 2 for x in values) / (len(values) - 1))


def unlikeliness(rewards: Rewards, logprobs: Sequence[Sequence[float]], strength: float) -> list[list[float | None]]:
    def kept(logprob: float, group: Sequence[float]) -> float:
        rank = sum(other < logprob for other in group) + (sum(other == logprob for other in group) - 1) / 2
        return 1 - strength * rank / len(group)

    return [
        [x if x is None or x <= 0 else x * kept(own, group) for x, own in zip(group_rewards, group, strict=True)]
        for group_rewards, group in zip(rewards, logprobs, strict=True)
    ]


Penalty = Callable[[float], float]


def kl_penalised(rewards: Rewards, log_ratios: Sequence[Sequence[Sequence[float]]], coefficient: float, penalty: Penalty) -> Rewards:
    """`log_ratios` are by group, response and token."""
    return [
        [None if x is None else x - coefficient * sum(map(penalty, tokens)) for x, tokens in zip(group, responses, strict=True)]
        for group, responses in zip(rewards, log_ratios, strict=True)
    ]
