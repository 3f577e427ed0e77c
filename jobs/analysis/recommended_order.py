"""Which order to verify candidates in, as far as the verdicts on them tell.

    recommended = recommend(outcomes)      # None where no prompt, or only one, has a correct candidate

The order with the fewest verifications to the first correct answer is named, random choice among them, and with it
those that cannot be told from it. Both are measured on the same prompts, so the best of several orders looks a little
better than it is."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.analysis.bootstrap import NUM_RESAMPLES, Estimate, mean_estimate, resample_counts
from jobs.analysis.candidate_table import RANDOM
from jobs.analysis.order_statistics import Outcomes, random_first_correct


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """The order to use."""

    order: str
    first_correct: Estimate
    """Mean verifications to the first correct answer, over solvable prompts."""
    not_worse: tuple[str, ...]
    """The orders whose paired difference to it has an interval that reaches 0, the best first."""

    @property
    def better_than_random(self) -> bool:
        """Whether random choice is told from it."""
        return RANDOM not in (self.order, *self.not_worse)


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
    return Recommended(
        order=best,
        first_correct=mean_estimate(first_correct[best], counts_BS),
        not_worse=not_worse,
    )
