"""Tensors that are not there whole: every rank holds a part, or they are formed when they are asked for. Where a
learner is one process that trains all of its weights, a tensor is whole and all of this does nothing.

    with full_tensors(state.items()) as tensors:      # on every rank alike
        write_tensors(path, layout_of(state), tensors)  # on the first one

Gathering is a collective: it only ends once every rank is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Deferred:
    """A tensor that `make` forms: of many only the one that is asked for is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def full_tensor(tensor: Tensor | Deferred, dtype: torch.dtype | None = None) -> Tensor:
    """All of `tensor`, detached; in `dtype`, to which each rank casts its part before it is sent."""
    if isinstance(tensor, Deferred):
        tensor = tensor.make()
    tensor = tensor.detach() if dtype is None else tensor.detach().to(dtype)
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@contextmanager
def full_tensors(
    named: Iterable[tuple[str, Tensor | Deferred]], dtype: torch.dtype | None = None
) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """An iterator over (name, whole tensor): one is whole at a time.

    What was not asked for is gathered when the block is left, also by an exception: the other ranks wait for this one
    in each."""
    tensors = ((name, full_tensor(tensor, dtype)) for name, tensor in named)
    try:
        yield tensors
    finally:
        for _ in tensors:
            pass


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `tensor`, which every rank has whole, divided as `like` is; a number is not divided. Without
    communication."""
    if not _is_sharded(like) or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def _is_sharded(tensor: Tensor) -> bool:
    """By what a DTensor has: to import its module takes two seconds, which engines have no use for."""
    return hasattr(tensor, "full_tensor")
