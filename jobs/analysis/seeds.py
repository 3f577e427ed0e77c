"""Means over seeds and problems, and their intervals. A method is a way of training, so it varies with the seed of its
run and with the problems that are asked: a resample draws both.

    counts_BR = crossed_counts(num_seeds, num_problems, NUM_RESAMPLES, seed)
    mean_curve(ks, values_RK, counts_BR)             # `jobs.analysis.bootstrap`: rows are seeds x problems

Every run is asked the same problems, so seeds and problems are crossed: a resample draws S seeds and P problems
independently, and a row counts as often as both of its own were drawn (the pigeonhole bootstrap, Owen 2007,
arXiv:0712.1111). A difference is paired in both: seed s of one method against seed s of the other.

**Few seeds** give intervals that are too short where runs differ much between seeds: see `docs/compare.md`.
Legend: S seeds, P problems, R = S · P rows (those of the first seed first), K values of k, B resamples, M methods."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jobs.analysis.bootstrap import resample_counts
from jobs.analysis.pass_at_k import FloatArray

SEED_STREAM = 1
"""Tells the draws of seeds from those of problems."""


def crossed_counts(num_seeds: int, num_problems: int, num_resamples: int, seed: int) -> FloatArray | None:
    """Return (B, R): how often each resample holds each row. One seed, or one problem, is not resampled; return None
    where there is one of both."""
    problems_BP = resample_counts(num_problems, num_resamples, seed)
    seeds_BS = resample_counts(num_seeds, num_resamples, [seed, SEED_STREAM])
    if problems_BP is None and seeds_BS is None:
        return None
    ones = np.ones((num_resamples, 1))
    counts_BSP = (ones if seeds_BS is None else seeds_BS)[:, :, None] * (ones if problems_BP is None else problems_BP)[:, None, :]
    return counts_BSP.reshape(num_resamples, num_seeds * num_problems)


def area_weights(max_k: int) -> FloatArray:
    """Return (max_k,): with these weights the sum over pass@1 … pass@max_k is the area under the curve over log k,
    divided by log max_k. This is a mean of pass@k in which every doubling of k counts the same. Between two whole k the
    curve counts as linear in log k. For max_k = 1 it is pass@1."""
    if max_k == 1:
        return np.ones(1)
    log_K = np.log(np.arange(1, max_k + 1))
    widths = np.diff(log_K) / log_K[-1]
    weights_K = np.zeros(max_k)
    weights_K[:-1] += widths / 2
    weights_K[1:] += widths / 2
    return weights_K


def two_sided_p(samples_B: FloatArray | None) -> float:
    """Return the p-value of a difference with these resampled values: twice the share of them on the rarer side of 0,
    one of them added. It is below 5 % where the 95 % percentile interval leaves out 0. It is 1 without resamples."""
    if samples_B is None:
        return 1.0
    rarer = min(int((samples_B <= 0).sum()), int((samples_B >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(samples_B) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values adjusted for their number (Holm 1979): the i-th smallest of M becomes the largest of
    (M − j + 1) · p_(j) over j ≤ i, and 1 at most. If all true differences are 0, the chance that any adjusted p-value
    is below 5 % is at most 5 %."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
