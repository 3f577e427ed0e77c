"""Policy weights in flight: one flat byte buffer, an index into it, and a fingerprint of what an engine must hold.

The fingerprint has one digest per tensor, over all of a vector and over a few seeded columns of a matrix. Columns are
what an engine can show of weights it has packed away for its own kernels: a one-hot input times a packed matrix is,
exactly, one column of it. So a live engine proves bit for bit what it computes with, the tied head included."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.sharding import Deferred, full_tensors

PROBED_COLUMNS = 4
ALIGNMENT = 64
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Where one tensor lies in the buffer: `offset` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        kind: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * kind.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSnapshot:
    """All weights of one policy version. `buffer` is uint8 and shared, read-only, by every reader on a node."""

    version: int
    buffer: np.ndarray
    index: tuple[TensorSpec, ...]
    fingerprint: Mapping[str, str]
    checksums: Mapping[str, int]
    """Of every tensor's bytes in the buffer, by name."""

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, view into the buffer). The views must not be written to."""
        for spec in self.index:
            yield spec.name, self._view(spec)

    def _view(self, spec: TensorSpec) -> Tensor:
        dtype = getattr(torch, spec.dtype)
        count = math.prod(spec.shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=spec.offset).view(spec.shape)

    def save(self, path: Path) -> None:
        """Write as an uncompressed file that `load_snapshot` maps (for engines in another process tree)."""
        header = json.dumps(
            {
                "version": self.version,
                "index": [[s.name, s.dtype, list(s.shape), s.offset] for s in self.index],
                "fingerprint": dict(self.fingerprint),
                "checksums": dict(self.checksums),
            }
        ).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(self.buffer.data)


def load_snapshot(path: Path) -> WeightSnapshot:
    """The snapshot that `WeightSnapshot.save` wrote; its buffer is a memory map."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    index = tuple(TensorSpec(name=n, dtype=d, shape=tuple(s), offset=o) for n, d, s, o in header["index"])
    buffer = np.memmap(path, dtype=np.uint8, mode="c", offset=8 + length)
    return WeightSnapshot(
        version=header["version"], buffer=buffer, index=index, fingerprint=header["fingerprint"], checksums=header["checksums"]
    )


def take_snapshot(
    named_tensors: Iterable[tuple[str, Tensor | Deferred]],
    *,
    version: int,
    tied_to: str | None = None,
    into: np.ndarray | None = None,
    dtype: torch.dtype | None = None,
) -> WeightSnapshot:
    """Copy tensors into one buffer. `tied_to` names the tensor that also serves as output head, if any.

    A tied head is not sent twice but it is fingerprinted under its own name, since engines may hold it twice. `into` is
    the buffer of an earlier snapshot of the same tensors, which it overwrites: fresh pages cost 0.5 s for 270 MB.
    `dtype`: what all are cast to; None: each keeps its own. Tensors in parts (`learners.sharding`) are gathered one at
    a time."""
    tensors = list(named_tensors)
    specs, size = [], 0
    for name, tensor in tensors:
        kind = dtype or tensor.dtype
        specs.append(TensorSpec(name=name, dtype=str(kind).removeprefix("torch."), shape=tuple(tensor.shape), offset=size))
        size += -(-math.prod(tensor.shape) * kind.itemsize // ALIGNMENT) * ALIGNMENT
    buffer = np.zeros(size, dtype=np.uint8) if into is None else into
    if buffer.size != size:
        raise ValueError(f"the buffer to reuse has {buffer.size} bytes, these tensors need {size}")
    digests, of_head = dict[str, str](), dict[str, str]()
    with full_tensors(tensors, dtype) as gathered:
        for (name, tensor), spec in zip(gathered, specs, strict=True):
            flat = tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy()
            buffer[spec.offset : spec.offset + flat.size] = flat
            digests |= fingerprint({name: tensor}, version=version)
            if name == tied_to:
                of_head = fingerprint({HEAD: tensor}, version=version)
    return WeightSnapshot(
        version=version, buffer=buffer, index=tuple(specs), fingerprint=digests | of_head, checksums=checksums(buffer, specs)
    )


def save_model(model: Any, weights: WeightSnapshot, directory: str, *, tokenizer: str) -> None:
    """Write `weights` with the configuration of `model` and the tokenizer at that path, to be loaded by
    `from_pretrained`.

    `model` itself may be in parts (`learners.fsdp`), and then of another dtype: of its own it only gives what is no
    parameter."""
    from transformers import AutoTokenizer

    Path(directory).mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    model.save_pretrained(directory, state_dict={**buffers, **dict(weights.tensors())})
    model.config.dtype = weights.index[0].dtype  # else that of the parameters
    model.config.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)


def checksums(buffer: np.ndarray, index: Sequence[TensorSpec]) -> dict[str, int]:
    """Checksum of every tensor's bytes, on as many threads as torch has in this process."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda spec: _checksum(buffer[spec.offset : spec.offset + spec.nbytes]), index)
        return {spec.name: checksum for spec, checksum in zip(index, found, strict=True)}


def _checksum(data: np.ndarray) -> int:
    """The sum of its 64-bit words modulo 2^64: any word that differs alone is found, and it costs a fifth of a CRC-32.
    What it cannot see, words in another order, the fingerprint's columns do."""
    whole = data.size // 8 * 8
    rest = int.from_bytes(data[whole:].tobytes(), "little")
    return (int(data[:whole].view(np.uint64).sum()) + rest) % 2**64


def probed_columns(name: str, width: int, version: int) -> Tensor:
    """Which columns of matrix `name` the fingerprint of `version` looks at: a fresh, seeded choice each version."""
    seed = zlib.crc32(f"{name}/{version}".encode())
    return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(width, size=min(PROBED_COLUMNS, width), replace=False)))


def fingerprint(tensors: Mapping[str, Tensor], *, version: int) -> dict[str, str]:
    """Digest of every tensor, read directly."""
    return fingerprint_by(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        lambda name, columns: tensors[name] if columns is None else tensors[name][:, columns.to(tensors[name].device)],
        version=version,
    )


def fingerprint_by(shapes: Mapping[str, tuple[int, ...]], read: Callable[[str, Tensor | None], Tensor], *, version: int) -> dict[str, str]:
    """Digest of every tensor through `read(name, columns)`, which returns the columns of a matrix, or a whole other
    tensor."""
    digests = {}
    for name, shape in shapes.items():
        columns = probed_columns(name, shape[1], version) if len(shape) == 2 else None
        digests[name] = _digest(read(name, columns))
    return digests


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(data.data, digest_size=8).hexdigest()


def first_mismatch(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """The name of a tensor whose digest differs or is missing, None when all agree."""
    return next((name for name, digest in expected.items() if found.get(name) != digest), None)
