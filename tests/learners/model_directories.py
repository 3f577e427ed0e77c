"""Model directories for tests: changed copies of the tiny model, and safetensors files written by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Word of the format for the dtype, and shape, by name."""


def write_safetensors(path: Path, tensors: Tensors, *, cut: int = 0) -> Path:
    """Write tensors of zeros; without the last `cut` bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = len(encoded).to_bytes(8, "little") + encoded + bytes(end)
    path.write_bytes(data[: len(data) - cut])
    return path


def changed_copy(model: str, directory: Path, *, config: Mapping[str, Any] | None = None) -> Path:
    """Copy a model directory and change keys of its config."""
    copy = Path(shutil.copytree(model, directory))
    if config:
        file = copy / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return copy


def change_tensors(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the tensors of a model directory by what `change` makes of them."""
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
