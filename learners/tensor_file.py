"""Safetensors files written and read one tensor at a time, for states that do not fit into memory a second time.

    write_tensors(path, {name: (tensor.dtype, tensor.shape) for ...}, ((name, tensor) for ...))
    with TensorFile(path) as tensors:
        weight = tensors["master/model.norm.weight"]

The library writes only tensors that are all in memory at once. The format is eight bytes with the length of the header,
the header in JSON, then the bytes of all tensors without gaps (https://huggingface.co/docs/safetensors, "Format")."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
HEADER_ALIGNMENT = 8

TensorLayout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each tensor by name, in the order of the file."""


def layout_of(tensors: Mapping[str, Tensor]) -> TensorLayout:
    """Return the layout of `tensors`, full or sharded, widest dtypes first: each begins at an aligned address."""
    return {name: (t.dtype, tuple(t.shape)) for name, t in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)}


def write_tensors(path: Path, layout: TensorLayout, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write `tensors`. Raises ValueError unless they come as `layout` has them, and OSError if the disk is full."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % HEADER_ALIGNMENT)
    expected = iter(layout.items())
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors:
            found = (name, (tensor.dtype, tuple(tensor.shape)))
            if found != (due := next(expected, None)):
                raise ValueError(f"{path}: {found} came where the layout has {due}")
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
        if (due := next(expected, None)) is not None:
            raise ValueError(f"{path}: the layout has {due}, which did not come")


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file as a mapping. A tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")
        self._names = list(self._file.keys())  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
