"""Means over prompts and their intervals, by a percentile bootstrap over prompts. Everything that is compared uses the
same resamples.

    counts_BP = resample_counts(num_prompts, NUM_RESAMPLES, seed)
    mean_curve(ks, values_PK, counts_BP)             # a Curve: mean over prompts at each k, with its interval

Percentile intervals of few prompts are somewhat short: for ratios they hold the truth in about 91 % of cases at 20
prompts, and in 96 % at 200. Legend: P prompts, K values of k, B resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.pass_at_k import FloatArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval over prompts, whose ends are None for fewer than two prompts."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Estimates at increasing k."""

    ks: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None

    def at(self, k: int) -> Estimate | None:
        """Return the estimate at `k`, or None where the curve has no such k."""
        if k not in self.ks:
            return None
        place = self.ks.index(k)
        return Estimate(value=self.value[place], low=self.low[place] if self.low else None, high=self.high[place] if self.high else None)


def resample_counts(num: int, num_resamples: int, seed: int | Sequence[int]) -> FloatArray | None:
    """Return (B, num): how often each resample holds each prompt; None for fewer than two, which have no spread."""
    if num < 2:
        return None
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1.0 / num), size=num_resamples).astype(np.float64)


def mean_estimate(values_P: FloatArray, counts_BP: FloatArray | None) -> Estimate:
    """Return the mean over prompts with its interval."""
    return estimate(float(values_P.mean()), None if counts_BP is None else counts_BP @ values_P / len(values_P))


def mean_curve(ks: Sequence[int], values_PK: FloatArray, counts_BP: FloatArray | None) -> Curve:
    """Return the mean over prompts at each k with its interval."""
    return curve(ks, values_PK.mean(axis=0), None if counts_BP is None else counts_BP @ values_PK / len(values_PK))


def estimate(value: float, samples_B: FloatArray | None) -> Estimate:
    """Return `value` with the interval of its resampled values."""
    low, high = (None, None) if samples_B is None else (float(end) for end in _interval(samples_B))
    return Estimate(value=value, low=low, high=high)


def curve(ks: Sequence[int], value_K: FloatArray, samples_BK: FloatArray | None) -> Curve:
    """Return the values at each k with the intervals of their resampled values."""
    low, high = (None, None) if samples_BK is None else (tuple(end_K.tolist()) for end_K in _interval(samples_BK))
    return Curve(ks=tuple(ks), value=tuple(value_K.tolist()), low=low, high=high)


def _interval(samples: FloatArray) -> FloatArray:
    """Return both ends. A resample that says nothing is NaN, and is left out."""
    return np.nanquantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
