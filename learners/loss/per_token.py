"""Helpers of the losses: ratios that stay finite, and sums over the tokens of each response.

Axis: N response tokens of one micro-batch. `response_N` says which response a token belongs to (any number >= 0). A
micro-batch holds whole responses, so nothing here depends on how a batch is split."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are bounded by this on both sides, so that a ratio lies between 2e-9 and 5e8."""


def bounded(log_ratio: Tensor) -> Tensor:
    """Return `log_ratio` limited to ± 20. Beyond the limit it has no gradient. exp overflows float32 at 89, and
    infinity times an advantage of 0 is NaN. Without a bound, one token that the engine found nearly impossible would
    cost the whole step. Papers do not mention it; trainers have it (verl, 20)."""
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def ratio(log_ratio: Tensor) -> Tensor:
    """Return exp of the bounded `log_ratio`."""
    return bounded(log_ratio).exp()


def sum_by_response(values_N: Tensor, response_N: Tensor) -> Tensor:
    """Return, for each token, the sum of `values_N` over all tokens of its response. Differentiable."""
    totals_R = values_N.new_zeros(_num_slots(response_N)).index_add(0, response_N, values_N)
    return totals_R[response_N]


def length_by_response(response_N: Tensor) -> Tensor:
    """Return, for each token, the number of tokens of its response (int64)."""
    return torch.bincount(response_N, minlength=_num_slots(response_N))[response_N]


def mean_by_response(values_N: Tensor, response_N: Tensor) -> Tensor:
    """Return, for each token, the mean of `values_N` over the tokens of its response. Differentiable."""
    return sum_by_response(values_N, response_N) / length_by_response(response_N)


def max_by_response(values_N: Tensor, response_N: Tensor) -> Tensor:
    """Return, for each token, the largest of `values_N` among the tokens of its response."""
    largest_R = values_N.new_zeros(_num_slots(response_N)).scatter_reduce(0, response_N, values_N, "amax", include_self=False)
    return largest_R[response_N]


def _num_slots(response_N: Tensor) -> int:
    return int(response_N.max()) + 1 if len(response_N) else 0
