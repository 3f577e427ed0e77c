"""From one value per token to one number per batch. Axis: N response tokens of one micro-batch.

Every denominator counts the whole batch of one optimiser step, so the results of micro-batches add up to that of the
batch, however it is split. Tokens and responses without a gradient count too: those of groups without signal, and
those that a correction masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from learners.config import Aggregation
from learners.loss.per_token import length_by_response


@dataclass(frozen=True, kw_only=True)
class Denominators:
    """The response tokens of the batch of one optimiser step, over all micro-batches and ranks, and the responses that
    have any. `constant_tokens`, which only `constant` needs, is the length that every response is divided by."""

    num_tokens: int
    num_responses: int
    constant_tokens: int = 0


def token_mean(values_N: Tensor, response_N: Tensor, over: Denominators) -> Tensor:
    """Return 1/M · Σ_t x_t over all M tokens of the batch: DAPO (arXiv:2503.14476). Long responses weigh more."""
    return values_N.sum() / over.num_tokens


def sequence_mean(values_N: Tensor, response_N: Tensor, over: Denominators) -> Tensor:
    """Return 1/R · Σ_i 1/T_i · Σ_t x_t over R responses of T_i tokens: GRPO (arXiv:2402.03300), GSPO
    (arXiv:2507.18071). A token of a long wrong answer is punished less than one of a short wrong answer (the length
    bias that Dr. GRPO names). GRPO averages over a group and then over groups, which is the same because all groups
    have one size. A response without tokens has no mean and does not count."""
    return (values_N / length_by_response(response_N)).sum() / over.num_responses


def constant(values_N: Tensor, response_N: Tensor, over: Denominators) -> Tensor:
    """Return 1/(R·L) · Σ_t x_t with one L = constant_tokens for all: Dr. GRPO (arXiv:2503.20783). There L is the
    largest length that a response may have. Raises ValueError if it is 0."""
    if not over.constant_tokens:
        raise ValueError('aggregation = "constant" needs constant_tokens')
    return values_N.sum() / (over.num_responses * over.constant_tokens)


Aggregate = Callable[[Tensor, Tensor, Denominators], Tensor]
AGGREGATIONS: Mapping[Aggregation, Aggregate] = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
"""From (values_N, response_N, denominators) to a scalar, by name."""
