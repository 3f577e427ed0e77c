"""Tensors that are not in one place: each rank holds a shard, or the tensor is formed when it is asked for.

    with full_tensors(state.items()) as tensors:      # on all ranks alike
        write_tensors(path, layout_of(state), tensors)  # on the first rank

Gathering is a collective: it returns only once all ranks take part. In a learner of one process that trains all
weights, every tensor is full already and nothing here does anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Deferred:
    """A tensor that `make` forms. Of many such tensors, only the one that is asked for exists."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def full_tensor(tensor: Tensor | Deferred, dtype: torch.dtype | None = None) -> Tensor:
    """Return the full tensor, detached. With `dtype`, each rank casts its shard before it is sent."""
    if isinstance(tensor, Deferred):
        tensor = tensor.make()
    tensor = tensor.detach() if dtype is None else tensor.detach().to(dtype)
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@contextmanager
def full_tensors(
    named: Iterable[tuple[str, Tensor | Deferred]], dtype: torch.dtype | None = None
) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Return an iterator over (name, full tensor). One tensor is full at a time. Tensors that were not asked for are
    gathered when the block is left, also by an exception, because the other ranks wait for this one in each."""
    tensors = ((name, full_tensor(tensor, dtype)) for name, tensor in named)
    try:
        yield tensors
    finally:
        for _ in tensors:
            pass


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of the full `tensor`, divided as `like` is; a number is not. Nothing is sent."""
    if not _is_sharded(like) or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def _is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a DTensor. Importing the class takes two seconds, which engines need not spend."""
    return hasattr(tensor, "full_tensor")
