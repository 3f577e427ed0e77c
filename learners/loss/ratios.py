"""Ratios of probabilities from differences of log-probs, kept finite."""

from __future__ import annotations

from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are taken for no larger, of either sign: a ratio is then between 2e-9 and 5e8."""


def bounded(log_ratio: Tensor) -> Tensor:
    """`log_ratio` within ± 20; beyond, without gradient.

    exp overflows float32 at 89, and infinity times an advantage of 0 is NaN: one token that the engine found all but
    impossible would cost the step. Published losses do not say so; their trainers do it (verl, with 20)."""
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def ratio(log_ratio: Tensor) -> Tensor:
    """exp of `log_ratio`, bounded."""
    return bounded(log_ratio).exp()
