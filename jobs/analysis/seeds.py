"""How runs of one method differ, and the parts of intervals over seeds. A method is a way of training, so it varies
with the seed of its run and with the problems that are asked. Problems are resampled (`jobs.analysis.bootstrap`). Runs
are too few for that: of three seeds a bootstrap finds two thirds of the variance, and knows nothing of its own error.
So the spread between runs is estimated from all methods together, and a resample adds a draw of it.

    spread = run_spread({"grpo": means_SC, "repexp": means_SC})     # a row for each run, a column for each statistic
    spread.draws("grpo", num_resamples=2000, seed=0)                # (B, C): errors of grpo's mean over its runs

The covariance of a method's runs is a mean of that over all methods, which counts like `PRIOR` runs, and of its own:
the moderated variance of Smyth 2004 (limma), with fixed prior degrees. Draws are normal with this covariance over S.
They are stretched by √(ν / χ²_ν), because the covariance itself is an estimate of ν degrees of freedom; so means have
the intervals of Student's t. `docs/compare.md` says how often the intervals hold the truth.
Legend: S seeds, C columns, N runs of all methods, B resamples."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jobs.analysis.pass_at_k import FloatArray

PRIOR = 8
"""The degrees of freedom for which the spread of all methods counts beside a method's own. With 8, intervals hold the
truth in 95 % of cases where all methods spread alike, and in 90 % for one that spreads twice as much as the others."""
SCALE_STREAM, RUN_STREAM = 1, 2
"""Tell the draws from each other, and from those of problems."""


@dataclass(frozen=True, eq=False)
class RunSpread:
    """The spread between runs of one method. A method that it does not know has none, such as the base model."""

    deviations: Mapping[str, FloatArray]
    """By method (S, C): each run less the mean of the method's runs."""

    @property
    def degrees(self) -> int:
        """The degrees of freedom: runs less methods. 0 where no method has two runs, so that nothing is known."""
        return sum(len(deviation_SC) - 1 for deviation_SC in self.deviations.values())

    @property
    def standard_deviation_C(self) -> FloatArray | None:
        """The standard deviation between runs of one method, of all methods together."""
        if not self.degrees:
            return None
        return np.sqrt(np.square(np.concatenate(list(self.deviations.values()))).sum(axis=0) / self.degrees)

    def draws(self, method: str, *, num_resamples: int, seed: int) -> FloatArray | None:
        """Return (B, C): errors of the mean over the runs of `method`. The same method and seed have the same
        draws. None where `method` is unknown, or the spread is."""
        own_SC = self.deviations.get(method)
        if own_SC is None or not self.degrees:
            return None
        prior, own = min(PRIOR, self.degrees), len(own_SC) - 1
        deviation_NC = np.concatenate(list(self.deviations.values()))
        is_own_N = np.concatenate([np.full(len(one), name == method) for name, one in self.deviations.items()])
        weight_N = np.sqrt((prior / self.degrees + is_own_N) / (prior + own))  # squares sum up to the covariance
        normal_BN = np.random.default_rng([seed, RUN_STREAM, zlib.crc32(method.encode())]).standard_normal((num_resamples, len(weight_N)))
        degrees = min(self.degrees, prior + own)
        stretch_B = np.sqrt(degrees / np.random.default_rng([seed, SCALE_STREAM]).chisquare(degrees, num_resamples))
        drawn_BC: FloatArray = stretch_B[:, None] * (normal_BN * weight_N @ deviation_NC) / np.sqrt(len(own_SC))
        return drawn_BC


def run_spread(means: Mapping[str, FloatArray]) -> RunSpread:
    """Return the spread of runs whose statistics are `means`, by method (S, C)."""
    return RunSpread({method: means_SC - means_SC.mean(axis=0) for method, means_SC in means.items()})


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
    one of them added. It is below 5 % about where the 95 % interval leaves out 0, and 1 without resamples."""
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
