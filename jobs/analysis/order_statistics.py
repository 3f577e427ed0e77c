"""What an order of candidates is worth: pass@k, verifications to the first correct answer, efficiency against random
choice.

    outcomes = judge(problems)                       # per prompt: n, c, and where each order meets a correct candidate
    statistics = explore_statistics(outcomes)        # means over prompts, with intervals
    warning = novelty_worse_than_random(outcomes)    # a sentence, or None

Random choice needs no sampling: its pass@k and its verifications are exact expectations from n and c. Which prompts
were asked is what varies, so every interval is a percentile bootstrap over prompts. Every order and random choice share
the same resamples, so that differences and ratios are paired. k is a budget: a prompt with fewer candidates is verified
whole. Legend: P prompts, S of them solvable (with a correct candidate), N candidates of a prompt, K values of k, M = 1
… most candidates of a prompt, B resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.analysis.bootstrap import CONFIDENCE, NUM_RESAMPLES, Curve, Estimate, curve, estimate, mean_curve, mean_estimate, resample_counts
from jobs.analysis.pass_at_k import FloatArray, miss_at_k_curves

MAX_FALSE_WARNINGS = 0.025
EVERY_K_UP_TO, KS_PER_DOUBLING = 64, 32

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedCandidates:
    """One prompt's candidates: whether each was verified and found correct, and its rank in every order."""

    verified_N: NDArray[np.bool_]
    correct_N: NDArray[np.bool_]
    ranks: Mapping[str, IntArray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What the verdicts say of every prompt. Without all of them `num_correct_P` is None: random choice is unknown."""

    num_candidates_P: IntArray
    num_correct_P: IntArray | None
    first_correct: Mapping[str, FloatArray]
    """By order, (P,): verifications until the first correct answer, from 1; inf where there is none."""
    known_depth: Mapping[str, int]
    """By order, the largest k whose pass@k is known for every prompt."""

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.num_candidates_P)

    @property
    def max_k(self) -> int:
        """The most candidates of a prompt."""
        return int(self.num_candidates_P.max())

    @property
    def solvable_P(self) -> NDArray[np.bool_]:
        """Whether a prompt has a correct candidate, as far as is known."""
        if self.num_correct_P is not None:
            return self.num_correct_P > 0
        found = [np.isfinite(first_P) for first_P in self.first_correct.values()]
        return np.logical_or.reduce(found) if found else np.zeros(self.num_prompts, dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class OrderStatistics:
    """What one order achieves. None: too few verdicts are known or, from `first_correct` on, no prompt is solvable."""

    pass_at_k: Curve | None
    difference: Curve | None
    """pass@k of this order less that of random choice, paired."""
    first_correct: Estimate | None
    """Mean verifications to the first correct answer, over solvable prompts."""
    efficiency: Estimate | None
    """`efficiency_of_means`."""
    efficiency_at_k: Curve | None
    """`efficiency_at_k`."""


@dataclass(frozen=True, kw_only=True)
class ExploreStatistics:
    """Everything about the candidates that needs verdicts."""

    num_prompts: int
    num_solvable: int
    ks: tuple[int, ...]
    """The values of k that tables show; curves have more."""
    random_pass_at_k: Curve | None
    random_first_correct: Estimate | None
    orders: Mapping[str, OrderStatistics]
    confidence: float
    num_resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)


def judge(problems: Sequence[JudgedCandidates]) -> Outcomes:
    """Return the outcomes of `problems`. Raises ValueError where there are none, or where their orders differ."""
    if not problems or any(set(candidates.ranks) != set(problems[0].ranks) for candidates in problems):
        raise ValueError("statistics need at least one problem, and the same orders in all of them")
    complete = all(candidates.verified_N.all() for candidates in problems)
    names = tuple(problems[0].ranks)
    return Outcomes(
        num_candidates_P=np.array([len(candidates.correct_N) for candidates in problems]),
        num_correct_P=np.array([candidates.correct_N.sum() for candidates in problems]) if complete else None,
        first_correct={name: np.array([_first_correct(candidates, name) for candidates in problems]) for name in names},
        known_depth={name: min(_known_depth(candidates, name) for candidates in problems) for name in names},
    )


def _first_correct(candidates: JudgedCandidates, order: str) -> float:
    """Return the place of the first correct candidate, from 1; inf where an unverified one stands before it."""
    correct_ranks = candidates.ranks[order][candidates.correct_N]
    first = correct_ranks.min() + 1.0 if len(correct_ranks) else np.inf
    unknown_ranks = candidates.ranks[order][~candidates.verified_N]
    return float(first) if not len(unknown_ranks) or first <= unknown_ranks.min() else np.inf


def _known_depth(candidates: JudgedCandidates, order: str) -> int:
    """Return the largest k whose pass@k is known: every k once a correct one is found, or when all are verified."""
    unknown_ranks = candidates.ranks[order][~candidates.verified_N]
    known = not len(unknown_ranks) or np.isfinite(_first_correct(candidates, order))
    return int(np.iinfo(np.int64).max) if known else int(unknown_ranks.min())


def listed_ks(max_k: int, ks: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return those of `ks` that are at most `max_k`, or else 1, 2, 4, … and `max_k` itself."""
    possible = {k for k in ks or () if 1 <= k <= max_k}
    return tuple(sorted(possible or {1 << power for power in range(max_k.bit_length())} | {max_k}))


def curve_ks(max_k: int, ks: Sequence[int] = ()) -> tuple[int, ...]:
    """Return `ks` and enough others for a smooth curve: every k up to 64, then 32 for each doubling."""
    doublings = max(0.0, np.log2(max_k / EVERY_K_UP_TO))
    spaced = EVERY_K_UP_TO * 2.0 ** np.linspace(0.0, doublings, int(np.ceil(doublings * KS_PER_DOUBLING)) + 1)
    dense = {*range(1, min(max_k, EVERY_K_UP_TO) + 1), *np.rint(spaced).astype(int).tolist(), *ks, max_k}
    return tuple(sorted(k for k in dense if 1 <= k <= max_k))


def pass_at_k_of_order(first_correct_P: FloatArray, ks: Sequence[int]) -> FloatArray:
    """Return (P, K): 1 where an order's first k hold a correct candidate."""
    return (first_correct_P[:, None] <= np.asarray(ks)).astype(np.float64)


def random_first_correct(num_candidates_P: IntArray, num_correct_P: IntArray) -> FloatArray:
    """Return (P,): the expected draws without replacement until the first correct one, (n + 1) / (c + 1) for c > 0, or
    inf. The c correct ones cut the n − c others into c + 1 gaps of equal expected size: (n − c) / (c + 1) + 1. This is
    the mean of the negative hypergeometric distribution."""
    return np.where(num_correct_P > 0, (num_candidates_P + 1.0) / (num_correct_P + 1.0), np.inf)


def verifications_to_reach(miss_0M: FloatArray, target: FloatArray) -> FloatArray:
    """Return the verifications, linear between whole numbers, after which a miss rate has fallen to `target`, or inf.
    `miss_0M` is the miss rate after 0, 1, 2 … verifications: 1 at first, then strictly falling until 0 or its end."""
    num = 1 + (int(np.argmax(miss_0M <= 0)) if (miss_0M <= 0).any() else len(miss_0M) - 1)
    return np.interp(target, miss_0M[:num][::-1], np.arange(num, dtype=np.float64)[::-1], left=np.inf)


def efficiency_of_means(random_S: FloatArray, order_S: FloatArray, counts_BS: FloatArray | None) -> Estimate:
    """Return the mean verifications to the first correct answer of random choice, divided by those of the order. Both
    means are over solvable prompts; 2 means half as many verifications."""
    samples_B = None if counts_BS is None else (counts_BS @ random_S) / (counts_BS @ order_S)
    return estimate(float(random_S.mean() / order_S.mean()), samples_B)


def mean_miss_curves(random_miss_SM: FloatArray, counts_BS: FloatArray | None) -> FloatArray:
    """Return (1 + B, 1 + M): the mean miss rate of random choice after 0, 1, 2 … verifications, over the solvable
    prompts and then over each resample."""
    weights_RS = _with_point_estimate(counts_BS, len(random_miss_SM))
    start_R1 = np.ones((len(weights_RS), 1))
    return np.concatenate([start_R1, weights_RS @ random_miss_SM / len(random_miss_SM)], axis=1)


def efficiency_at_k(random_miss_R0M: FloatArray, first_correct_S: FloatArray, ks: Sequence[int], counts_BS: FloatArray | None) -> Curve:
    """Return k_random(p) / k at each k, where p is the order's pass@k and random choice reaches p after k_random(p).
    Both are means over prompts; that of random choice (`mean_miss_curves`) is exact, and interpolated between whole k.
    Unsolvable prompts scale p and the random curve alike and are left out. The curve ends where the order has solved
    all solvable prompts: further verifications find nothing, and dividing by them would say nothing about the order.
    Where the order has found nothing yet, the ratio is 0."""
    useful_K = np.array([k for k in ks if k < first_correct_S.max()] + [k for k in ks if k >= first_correct_S.max()][:1])
    order_miss_SK = 1.0 - pass_at_k_of_order(first_correct_S, useful_K.tolist())
    order_miss_RK = _with_point_estimate(counts_BS, len(first_correct_S)) @ order_miss_SK / len(first_correct_S)
    pairs = zip(random_miss_R0M, order_miss_RK, strict=True)
    ratio_RK = np.stack([verifications_to_reach(miss_0M, miss_K) for miss_0M, miss_K in pairs]) / useful_K
    return curve(useful_K.tolist(), ratio_RK[0], None if counts_BS is None else ratio_RK[1:])


def _with_point_estimate(counts_BS: FloatArray | None, num: int) -> FloatArray:
    """Return the weights of the prompts: each of them once, then the resamples."""
    once_1S = np.ones((1, num))
    return once_1S if counts_BS is None else np.concatenate([once_1S, counts_BS])


def explore_statistics(
    outcomes: Outcomes, *, ks: Sequence[int] | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> ExploreStatistics:
    """Return every statistic of every order. The tables show the `listed_ks` of `ks`."""
    listed = listed_ks(outcomes.max_k, ks)
    dense = curve_ks(outcomes.max_k, listed)
    counts_BP = resample_counts(outcomes.num_prompts, num_resamples, seed)
    random_PK = _random_pass_at_k(outcomes, dense)
    solvable = _Solvable.of(outcomes, num_resamples, seed)
    return ExploreStatistics(
        num_prompts=outcomes.num_prompts,
        num_solvable=int(outcomes.solvable_P.sum()),
        ks=listed,
        random_pass_at_k=None if random_PK is None else mean_curve(dense, random_PK, counts_BP),
        random_first_correct=None if solvable is None else mean_estimate(solvable.random_first_S, solvable.counts_BS),
        orders={name: _order_statistics(outcomes, name, dense, random_PK, counts_BP, solvable) for name in outcomes.first_correct},
        confidence=CONFIDENCE,
        num_resamples=num_resamples,
        seed=seed,
    )


def novelty_worse_than_random(
    outcomes: Outcomes, *, order: str = "repexp", ks: Sequence[int] | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> str | None:
    """Return one sentence where `order` finds correct answers significantly less often than random choice at some k of
    `ks`, else None. Two things must hold at that k. The interval of the paired difference ends below 0, and
    `chance_of_as_bad`, which allows for all k that are tried, is at most 2.5 %. The intervals alone would give a false
    warning for one table in ten at 60 prompts, and for one in four at 10: resamples of few prompts cannot show a
    success that happened not to occur. With both it is one in fifty. Return None for fewer than two prompts, without
    the order, and where random choice is unknown."""
    listed = listed_ks(outcomes.max_k, ks)
    random_PK = _random_pass_at_k(outcomes, listed)
    counts_BP = resample_counts(outcomes.num_prompts, num_resamples, seed)
    if random_PK is None or counts_BP is None or order not in outcomes.first_correct:
        return None
    order_PK = pass_at_k_of_order(outcomes.first_correct[order], listed)
    chance_K = chance_of_as_bad(order_PK, random_PK, num_resamples=num_resamples, seed=seed)
    difference = mean_curve(listed, order_PK - random_PK, counts_BP)
    assert difference.low is not None and difference.high is not None
    below = [place for place in range(len(listed)) if difference.high[place] < 0 and chance_K[place] <= MAX_FALSE_WARNINGS]
    if not below:
        return None
    worst = min(below, key=lambda place: difference.value[place])
    ours, theirs = order_PK[:, worst].mean(), random_PK[:, worst].mean()
    interval = f"{difference.low[worst]:+.2f} to {difference.high[worst]:+.2f}"
    return (
        f"The novelty order ({order}) finds correct answers less often than random choice: pass@{listed[worst]} is {ours:.2f} against "
        f"{theirs:.2f} (difference {ours - theirs:+.2f}, 95 % interval {interval}). Random orders of the same pools do as badly at any of "
        f"the {len(listed)} values of k looked at in {100 * chance_K[worst]:.2g} % of cases."
    )


def chance_of_as_bad(order_PK: FloatArray, random_PK: FloatArray, *, num_resamples: int, seed: int) -> FloatArray:
    """Return (K,): the chance that a random order of the same candidates does as badly, at any of the K values of k, as
    the order does at this one. This is a randomisation test, exact for any number of prompts. How badly an order does
    is measured by z_k = Σ_p (order − random) / sqrt(Σ_p random (1 − random)), with the variance of random orders. The
    chance is the share of B drawn orders, this one included, whose smallest z is at most z_k. It is 1 where random
    choice is certain."""
    uniform_BP = np.random.default_rng(seed).random((num_resamples, len(random_PK)))
    smallest_B = np.full(num_resamples, np.inf)
    z_K = np.full(random_PK.shape[1], np.inf)
    for k in range(random_PK.shape[1]):
        expected, deviation = random_PK[:, k].sum(), np.sqrt((random_PK[:, k] * (1 - random_PK[:, k])).sum())
        if deviation > 1e-9:
            z_K[k] = (order_PK[:, k].sum() - expected) / deviation
            smallest_B = np.minimum(smallest_B, ((uniform_BP < random_PK[:, k]).sum(axis=1) - expected) / deviation)
    as_bad_K = (smallest_B[:, None] <= z_K + 1e-9).sum(axis=0)
    return (1 + as_bad_K) / (1 + num_resamples)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Solvable:
    chosen_P: NDArray[np.bool_]
    random_first_S: FloatArray
    random_miss_R0M: FloatArray
    counts_BS: FloatArray | None

    @classmethod
    def of(cls, outcomes: Outcomes, num_resamples: int, seed: int) -> _Solvable | None:
        """Return None where no prompt is solvable, or where random choice is unknown."""
        chosen_P = outcomes.solvable_P
        if outcomes.num_correct_P is None or not chosen_P.any():
            return None
        n_S, c_S = outcomes.num_candidates_P[chosen_P], outcomes.num_correct_P[chosen_P]
        counts_BS = resample_counts(len(n_S), num_resamples, seed)
        return cls(
            chosen_P=chosen_P,
            random_first_S=random_first_correct(n_S, c_S),
            random_miss_R0M=mean_miss_curves(miss_at_k_curves(n_S, c_S, outcomes.max_k), counts_BS),
            counts_BS=counts_BS,
        )


def _random_pass_at_k(outcomes: Outcomes, ks: Sequence[int]) -> FloatArray | None:
    if outcomes.num_correct_P is None:
        return None
    miss_PM = miss_at_k_curves(outcomes.num_candidates_P, outcomes.num_correct_P, outcomes.max_k)
    return 1.0 - miss_PM[:, np.asarray(ks) - 1]


def _order_statistics(
    outcomes: Outcomes,
    order: str,
    ks: Sequence[int],
    random_PK: FloatArray | None,
    counts_BP: FloatArray | None,
    solvable: _Solvable | None,
) -> OrderStatistics:
    first_P = outcomes.first_correct[order]
    known = [k for k in ks if k <= outcomes.known_depth[order]]
    order_PK = pass_at_k_of_order(first_P, known)
    pass_at_k = mean_curve(known, order_PK, counts_BP) if known else None
    difference = None if random_PK is None else mean_curve(known, order_PK - random_PK, counts_BP)
    if solvable is None:
        return OrderStatistics(pass_at_k=pass_at_k, difference=difference, first_correct=None, efficiency=None, efficiency_at_k=None)
    first_S = first_P[solvable.chosen_P]
    return OrderStatistics(
        pass_at_k=pass_at_k,
        difference=difference,
        first_correct=mean_estimate(first_S, solvable.counts_BS),
        efficiency=efficiency_of_means(solvable.random_first_S, first_S, solvable.counts_BS),
        efficiency_at_k=efficiency_at_k(solvable.random_miss_R0M, first_S, ks, solvable.counts_BS),
    )
