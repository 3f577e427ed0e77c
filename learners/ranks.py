"""A learner's work, divided over processes: the ranks.

    ranks = OneRank()                                          # or learners.fsdp.ShardedRanks
    model = ranks.load(path, dtype="float32", device="cpu")
    mine = own_part(cost_by_group, ranks)                         # indices of this rank's groups
    for part in in_lockstep(my_micro_batches, ranks):              # as many on every rank
        output = ranks.compute(function, model, ...)           # function(model, ...), the weights at hand
    everyones = ranks.gather(my_statistics)

Every rank is given the whole batch and computes its share of the groups. What is made of the batch alone (advantages,
denominators, mini-batches) each computes for itself, alike; gradients are summed over ranks, not averaged, because each
loss has the denominators of the whole batch. So the gradient is the one of one process, whoever computes what. All
ranks take the same calls in the same order."""

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
"""What the messages of broken collectives have in common; gloo's have no type of their own."""


class RankLost(RuntimeError):
    """Another rank went away, or did not come within the time: this one can do no more."""


def is_rank_lost(error: BaseException) -> bool:
    """Whether a collective broke off."""
    return isinstance(error, (RankLost, dist.DistError)) or (isinstance(error, RuntimeError) and any(mark in str(error) for mark in _LOST))


class Ranks(Protocol):
    """This process among those that train one policy."""

    rank: int
    """From 0; the first one speaks for all."""
    size: int
    weight_dtype: torch.dtype | None
    """What weights are published and saved in; None: the dtype of the parameters."""

    def load(self, path: str, *, dtype: Dtype | Literal["float64"], device: str) -> Any:
        """`learners.forward.load_causal_lm`, of which this rank keeps its part."""
        ...

    def compute(self, function: Callable[Concatenate[Any, P], T], model: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(model, *args, **kwargs)` while the weights it uses are at hand. A collective, and so is the
        backward pass of what comes of it: each rank makes as many."""
        ...

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, by rank."""
        ...


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


def partition(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Indices of `costs` in `num_shares` sets of nearly equal sums: the dearest first, each to whoever has least
    (Graham 1969: at most 4/3 of the best). Ties go to the lower index. A set may be empty."""
    sets: list[list[int]] = [[] for _ in range(num_shares)]
    load = [(0.0, rank) for rank in range(num_shares)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        total, rank = heapq.heappop(load)
        sets[rank].append(index)
        heapq.heappush(load, (total + costs[index], rank))
    return [sorted(indices) for indices in sets]


def own_part(costs: Sequence[float], ranks: Ranks) -> list[int]:
    """This rank's indices, ascending."""
    return partition(costs, ranks.size)[ranks.rank]


def in_lockstep(passes: Sequence[T], ranks: Ranks) -> Iterator[T | None]:
    """This rank's `passes`, then None until there have been as many as on the rank that has most."""
    most = max(ranks.gather(len(passes)))
    yield from passes
    yield from [None] * (most - len(passes))
