"""A learner's work, divided over processes: the ranks.

    ranks = OneRank()                                          # or learners.fsdp.ShardedRanks
    model = ranks.load(path, dtype="float32", device="cpu")
    own = own_part(cost_by_group, ranks)                       # indices of this rank's groups
    for part in in_lockstep(own_micro_batches, ranks):         # equally many on all ranks
        output = ranks.compute(function, model, ...)           # function(model, ...) with the weights at hand
    of_all_ranks = ranks.gather(own_statistics)

Each rank gets the whole batch and computes its part of the groups. What follows from the batch alone (advantages,
denominators, mini-batches) each rank computes for itself, with equal results. Each loss has the denominators of the
whole batch, so gradients are summed over ranks and not averaged. The gradient is then that of one process, however the
groups are divided. All ranks make the same calls in the same order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import torch
import torch.distributed as dist

from learners.forward import load_causal_lm
from learners.precision import Dtype

P = ParamSpec("P")
T = TypeVar("T")
_LOST = ("gloo", "pair closure", "NCCL")
"""Marks in the messages of broken collectives. The errors of gloo have no type of their own."""


class RankLost(RuntimeError):
    """Another rank is gone, or did not come in time. This rank can do nothing more."""


def is_rank_lost(error: BaseException) -> bool:
    """Return whether `error` is that of a broken collective."""
    return isinstance(error, (RankLost, dist.DistError)) or (isinstance(error, RuntimeError) and any(mark in str(error) for mark in _LOST))


class Ranks(Protocol):
    """This process as one of those that train one policy."""

    rank: int
    """From 0. The first rank answers for all."""
    size: int
    weight_dtype: torch.dtype | None
    """The dtype in which weights are published and saved; None: the dtype of the parameters."""

    def load(self, path: str, *, dtype: Dtype | Literal["float64"], device: str) -> Any:
        """Load a model as `learners.forward.load_causal_lm` does, and return this rank's shards of it."""

    def compute(self, function: Callable[Concatenate[Any, P], T], model: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `function(model, *args, **kwargs)`, called while the weights it uses are at hand. It is a collective,
        and so is the backward pass of its result: all ranks make equally many."""

    def gather(self, value: T) -> list[T]:
        """Return the `value` of every rank, by rank."""


class OneRank:
    """A learner that is one process."""

    rank: int = 0
    size: int = 1
    weight_dtype: torch.dtype | None = None

    def load(self, path: str, *, dtype: Dtype | Literal["float64"], device: str) -> Any:
        return load_causal_lm(path, dtype=dtype, device=device)

    def compute(self, function: Callable[Concatenate[Any, P], T], model: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(model, *args, **kwargs)

    def gather(self, value: T) -> list[T]:
        return [value]


def partition(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """Return the indices of `costs` in `num_parts` sets (perhaps empty) of nearly equal sums. The most expensive comes
    first, and each goes to the smallest sum (Graham 1969: at most 4/3 of the best). Ties go to the lower rank."""
    sets: list[list[int]] = [[] for _ in range(num_parts)]
    load = [(0.0, rank) for rank in range(num_parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        total, rank = heapq.heappop(load)
        sets[rank].append(index)
        heapq.heappush(load, (total + costs[index], rank))
    return [sorted(indices) for indices in sets]


def own_part(costs: Sequence[float], ranks: Ranks) -> list[int]:
    """Return this rank's indices, ascending."""
    return partition(costs, ranks.size)[ranks.rank]


def in_lockstep(passes: Sequence[T], ranks: Ranks) -> Iterator[T | None]:
    """Yield this rank's `passes`, then None until it has yielded as many as the rank with the most."""
    most = max(ranks.gather(len(passes)))
    yield from passes
    yield from [None] * (most - len(passes))
