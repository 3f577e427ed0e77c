"""Sums over the tokens of each response, given back to each token. Axis: N response tokens of one micro-batch.

`response_N` says which response a token is of (any number >= 0). A row holds whole responses, and so does a
micro-batch: what is computed here does not depend on how a batch is split."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_by_response(values_N: Tensor, response_N: Tensor) -> Tensor:
    """(N,): the sum of `values_N` over all tokens of the token's response. Differentiable."""
    totals_R = values_N.new_zeros(_num_slots(response_N)).index_add(0, response_N, values_N)
    return totals_R[response_N]


def length_by_response(response_N: Tensor) -> Tensor:
    """(N,) int64: the number of tokens of the token's response."""
    return torch.bincount(response_N, minlength=_num_slots(response_N))[response_N]


def mean_by_response(values_N: Tensor, response_N: Tensor) -> Tensor:
    """(N,): the mean of `values_N` over the tokens of the token's response. Differentiable."""
    return sum_by_response(values_N, response_N) / length_by_response(response_N)


def max_by_response(values_N: Tensor, response_N: Tensor) -> Tensor:
    """(N,): the largest of `values_N` among the tokens of the token's response."""
    largest_R = values_N.new_zeros(_num_slots(response_N)).scatter_reduce(0, response_N, values_N, "amax", include_self=False)
    return largest_R[response_N]


def _num_slots(response_N: Tensor) -> int:
    return int(response_N.max()) + 1 if len(response_N) else 0
