"""Which order to verify candidates in, as far as the verdicts on them tell.

    recommended = recommend(outcomes)      # None where no prompt, or only one, has a correct candidate

The order with the fewest verifications to the first correct answer is named, random choice among them, and with it
those that cannot be told from it. Both are measured on the same prompts, so the best of several orders looks better
than it is. So "better than random choice" takes two things: a paired interval that leaves out 0, and `chance_of_as_few`
times the number of orders of at most 2.5 %. By the interval alone, the best of eleven random orders was called better
in a third to two thirds of tables of 5 to 40 solvable prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.analysis.bootstrap import NUM_RESAMPLES, Estimate, mean_estimate, resample_counts
from jobs.analysis.candidate_table import RANDOM
from jobs.analysis.order_statistics import IntArray, Outcomes, random_first_correct
from jobs.analysis.pass_at_k import FloatArray, miss_at_k_curves

MAX_FALSE = 0.025
NUM_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """The order to use."""

    order: str
    first_correct: Estimate
    """Mean verifications to the first correct answer, over solvable prompts."""
    not_worse: tuple[str, ...]
    """The orders whose paired difference to it has an interval that reaches 0, the best first."""
    chance: float
    """How likely the best of as many random orders is to do as well, at most: `chance_of_as_few` times their number."""

    @property
    def better_than_random(self) -> bool:
        """Whether it is shown to need fewer verifications than random choice."""
        return RANDOM not in (self.order, *self.not_worse) and self.chance <= MAX_FALSE


def recommend(outcomes: Outcomes, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Recommended | None:
    """Return the order to use, or None for fewer than two solvable prompts, and where not all verdicts are known."""
    solvable_P = outcomes.solvable_P
    counts_BS = resample_counts(int(solvable_P.sum()), num_resamples, seed)
    if outcomes.num_correct_P is None or counts_BS is None:
        return None
    first_correct = {order: first_P[solvable_P] for order, first_P in outcomes.first_correct.items()}
    first_correct[RANDOM] = random_first_correct(outcomes.num_candidates_P[solvable_P], outcomes.num_correct_P[solvable_P])
    ranked = sorted(first_correct, key=lambda order: float(first_correct[order].mean()))
    best = ranked[0]
    less = {order: mean_estimate(first_correct[order] - first_correct[best], counts_BS) for order in ranked[1:]}
    not_worse = tuple(order for order, difference in less.items() if difference.low is not None and difference.low <= 0)
    chance = chance_of_as_few(first_correct[best], outcomes.num_candidates_P[solvable_P], outcomes.num_correct_P[solvable_P], seed=seed)
    return Recommended(
        order=best,
        first_correct=mean_estimate(first_correct[best], counts_BS),
        not_worse=not_worse,
        chance=min(1.0, chance * len(outcomes.first_correct)),
    )


def chance_of_as_few(first_S: FloatArray, num_candidates_S: IntArray, num_correct_S: IntArray, *, seed: int) -> float:
    """Return the chance that a random order of the same candidates needs as few verifications, on average over the S
    solvable prompts. This is a randomisation test, exact for any number of prompts: the share of drawn orders, this one
    included, whose mean is at most that of `first_S`."""
    random, sum_D = np.random.default_rng(seed), np.zeros(NUM_DRAWS)
    for num_candidates, num_correct in zip(num_candidates_S.tolist(), num_correct_S.tolist(), strict=True):
        miss_M = miss_at_k_curves([num_candidates], [num_correct], num_candidates)[0]  # the chance of none among the first m
        sum_D += 1 + num_candidates - np.searchsorted(miss_M[::-1], random.random(NUM_DRAWS), side="right")
    return float((1 + (sum_D <= first_S.sum() + 1e-9).sum()) / (1 + NUM_DRAWS))
