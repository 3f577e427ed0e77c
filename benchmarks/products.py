"""The matrix throughput of this machine: of large square products, and of the very products of a computation.

square_gflops(torch.bfloat16, "cpu")                # what torch.mm reaches here, with torch's threads
with Products() as products:
    learner.step(batch)
products.seconds(), products.operations             # each alone, on operands of the same shape and layout"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIDE = {"cpu": 2048, "cuda": 8192}
REPEATS = 5
NAMES = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
"""Sizes, strides, dtype and device of an operand."""


def square_gflops(dtype: torch.dtype, device: str) -> float:
    """Return the throughput of torch.mm with square operands that fit into no cache."""
    side = SIDE[device]
    left, right, product = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    return 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product), device) / 1e9


class Products(TorchDispatchMode):
    """Counts the matrix products that are computed within it, by the layouts of both operands."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().split(".")[0] in NAMES:
            left, right = [arg for arg in args if isinstance(arg, Tensor)][-2:]
            self._counts[_layout(left), _layout(right)] += 1
        return function(*args, **(kwargs or {}))

    @property
    def operations(self) -> float:
        return sum(count * 2.0 * math.prod(left[0]) * right[0][-1] for (left, right), count in self._counts.items())

    def seconds(self) -> float:
        """Return how long all of them take, one after the other, with nothing between them."""
        return sum(count * _alone(left, right) for (left, right), count in self._counts.items())


def _alone(left: Layout, right: Layout) -> float:
    one, other = _operand(left), _operand(right)
    product = torch.matmul(one, other)
    return _seconds(lambda: torch.matmul(one, other, out=product), left[3].type)


def _layout(operand: Tensor) -> Layout:
    return tuple(operand.shape), operand.stride(), operand.dtype, operand.device


def _operand(layout: Layout) -> Tensor:
    sizes, strides, dtype, device = layout
    extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return torch.ones(extent, dtype=dtype, device=device).as_strided(sizes, strides)


def _seconds(compute: Callable[[], Any], device: str) -> float:
    """Return the median time of a call, without the first one."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        compute()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[1:])
