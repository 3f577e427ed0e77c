"""One model against another on the same problems: paired differences, and how many samples one model needs to reach the
other. Intervals are paired: a resample draws problems for both models (`jobs.analysis.bootstrap`).
Legend: P problems that both models have scored responses to, K = 1 … number of samples, B resamples, T values of k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.bootstrap import NUM_RESAMPLES, Curve, Estimate, curve, mean_curve, mean_estimate, resample_counts
from jobs.analysis.order_statistics import curve_ks, listed_ks
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.analysis.pass_at_k import FloatArray

SAME = 1e-12
"""Two means that differ by less are equal: they are sums of the same terms in another order."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences and ratios of `model` and `against`."""

    model: str
    against: str
    num_problems: int
    ks: tuple[int, ...]
    difference: Curve
    """pass@k of `model` less that of `against`."""
    majority_difference: Curve
    """The same for maj@k."""
    efficiency: Curve | None
    """At each K: K / k, where k is the number of samples with which `model` reaches the pass@K of `against`. 2 means
    half as many samples; 0 means that all its samples do not reach it. None where `against` solves nothing."""
    reverse_efficiency: Curve | None
    """The efficiency with the models exchanged."""
    tokens_difference: Estimate
    base_logprob_difference: Estimate | None
    """Per token; None without a base model. Below 0, the responses of `model` are less likely under the base model."""


def compare(
    model: str,
    outcomes: ProblemOutcomes,
    against: str,
    others: ProblemOutcomes,
    *,
    ks: Sequence[int] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison | None:
    """Compare over the problems that both have scored responses to. Return None where there is none."""
    rows = {problem_id: row for row, problem_id in enumerate(others.problem_ids) if others.num_scored_P[row]}
    pairs = [(row, rows[one]) for row, one in enumerate(outcomes.problem_ids) if outcomes.num_scored_P[row] and one in rows]
    if not pairs:
        return None
    ours_P, theirs_P = np.array(pairs, dtype=np.int64).T
    max_k = min(outcomes.max_k, others.max_k)
    listed = listed_ks(max_k, ks)
    dense = curve_ks(max_k, listed)
    counts_BP = resample_counts(len(ours_P), num_resamples, seed)
    places = np.asarray(dense) - 1
    ours_PK, theirs_PK = outcomes.pass_PK[ours_P], others.pass_PK[theirs_P]
    votes_PK = outcomes.majority_PK[ours_P][:, places] - others.majority_PK[theirs_P][:, places]
    base_P = outcomes.base_logprob_P[ours_P] - others.base_logprob_P[theirs_P]
    return Comparison(
        model=model,
        against=against,
        num_problems=len(ours_P),
        ks=listed,
        difference=mean_curve(dense, ours_PK[:, places] - theirs_PK[:, places], counts_BP),
        majority_difference=mean_curve(dense, votes_PK, counts_BP),
        efficiency=efficiency_curve(ours_PK, theirs_PK, dense, counts_BP),
        reverse_efficiency=efficiency_curve(theirs_PK, ours_PK, dense, counts_BP),
        tokens_difference=mean_estimate(outcomes.tokens_P[ours_P] - others.tokens_P[theirs_P], counts_BP),
        base_logprob_difference=None if np.isnan(base_P).any() else mean_estimate(base_P, counts_BP),
    )


def samples_to_reach(pass_K: FloatArray, target_T: FloatArray) -> FloatArray:
    """Return (T,): the smallest k ≥ 1 at which a pass@k curve (k = 1 … K, never falling) reaches each target, or inf.
    The curve counts as linear between two whole k."""
    first_T = np.searchsorted(pass_K, target_T - SAME)
    inside_T = np.minimum(first_T, len(pass_K) - 1)
    before_T, at_T = pass_K[np.maximum(inside_T - 1, 0)], pass_K[inside_T]
    step_T = np.where(at_T > before_T, at_T - before_T, 1.0)
    samples_T = np.where(inside_T == 0, 1.0, inside_T + np.clip((target_T - before_T) / step_T, 0.0, 1.0))
    return np.where(first_T < len(pass_K), samples_T, np.inf)


def efficiency_curve(ours_PK: FloatArray, theirs_PK: FloatArray, ks: Sequence[int], counts_BP: FloatArray | None) -> Curve | None:
    """Return `efficiency_of` the mean curves over problems and their resamples."""
    num = len(ours_PK)
    weights_RP = np.ones((1, num)) if counts_BP is None else np.concatenate([np.ones((1, num)), counts_BP])
    return efficiency_of(weights_RP @ ours_PK / num, weights_RP @ theirs_PK / num, ks)


def efficiency_of(ours_RK: FloatArray, theirs_RK: FloatArray, ks: Sequence[int]) -> Curve | None:
    """Return K / k at each K of `ks`, where our pass@k reaches their pass@K with k samples; 0 where it never does. The
    first row of both is what was found, the others are resamples, if any. This is the paper's sample efficiency
    (arXiv:2510.11686): "pass@80 matches pass@256" is 3.2. Values of K at which they solve nothing are left out, in a
    resample too; return None where that is all of them."""
    useful = [k for k in ks if theirs_RK[0, k - 1] > 0]
    if not useful:
        return None
    targets_RT = theirs_RK[:, np.asarray(useful) - 1]
    reached = [samples_to_reach(ours_K, target_T) for ours_K, target_T in zip(ours_RK, targets_RT, strict=True)]
    ratio_RT = np.where(targets_RT > 0, np.asarray(useful) / np.stack(reached), np.nan)
    return curve(useful, ratio_RT[0], ratio_RT[1:] if len(ratio_RT) > 1 else None)
