"""Policy weights on their way to engines: one flat byte buffer, an index into it, and a fingerprint.

The fingerprint says what an engine must hold. It has one digest per tensor: over all of a vector, and over a few seeded
columns of a matrix. An engine can show columns even of weights that it has packed for its own kernels, because a
one-hot input times a packed matrix is exactly one column of it. So a live engine proves bit for bit what it computes
with, including a tied head.

A digest is a sum over elements, each mixed with its place in the tensor. So where an engine divides a tensor among
ranks, each rank digests the part that it holds, and the parts add up to the digest of the tensor."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from learners.sharding import Deferred, full_tensors

PROBED_COLUMNS = 4
ALIGNMENT = 64
HEAD = "lm_head.weight"
_PLACE = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))  # odd, of rows and of columns
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))  # SplitMix64's


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Where one tensor is in the buffer: `offset` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return int(math.prod(self.shape) * getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSnapshot:
    """All weights of one policy version. All readers on a node share `buffer`, which is uint8 and read-only."""

    version: int
    buffer: np.ndarray
    index: tuple[TensorSpec, ...]
    fingerprint: Mapping[str, int]
    checksums: Mapping[str, int]
    """The checksum of every tensor's bytes in the buffer, by name."""

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, view into the buffer). The views must not be written to."""
        for spec in self.index:
            dtype, count = getattr(torch, spec.dtype), math.prod(spec.shape)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                flat = torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=spec.offset)
            yield spec.name, flat.view(spec.shape)

    def save(self, path: Path) -> None:
        """Write an uncompressed file that `load_snapshot` maps, for engines in another process tree."""
        index = [[spec.name, spec.dtype, list(spec.shape), spec.offset] for spec in self.index]
        fields = {"version": self.version, "index": index, "fingerprint": dict(self.fingerprint), "checksums": dict(self.checksums)}
        header = json.dumps(fields).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(self.buffer.data)


def load_snapshot(path: Path) -> WeightSnapshot:
    """Return the snapshot that `WeightSnapshot.save` wrote. Its buffer is a memory map."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header["index"] = tuple(TensorSpec(name=n, dtype=d, shape=tuple(s), offset=o) for n, d, s, o in header["index"])
    buffer = np.memmap(path, dtype=np.uint8, mode="c", offset=8 + length)
    return WeightSnapshot(buffer=buffer, **header)


def take_snapshot(
    named_tensors: Iterable[tuple[str, Tensor | Deferred]],
    *,
    version: int,
    tied_to: str | None = None,
    into: np.ndarray | None = None,
    dtype: torch.dtype | None = None,
) -> WeightSnapshot:
    """Copy tensors into one buffer. `tied_to` names the tensor that is also the output head, if there is one. A tied
    head is sent once but has a fingerprint of its own, because engines may hold it twice. `into` is the buffer of an
    earlier snapshot of the same tensors, which is overwritten: fresh pages cost 0.5 s for 270 MB. `dtype` is what all
    tensors are cast to; None: each keeps its own. Sharded tensors (`learners.sharding`) are gathered one at a time."""
    tensors = list(named_tensors)
    specs, size = [], 0
    for name, tensor in tensors:
        kind = dtype or tensor.dtype
        specs.append(TensorSpec(name=name, dtype=str(kind).removeprefix("torch."), shape=tuple(tensor.shape), offset=size))
        size += -(-math.prod(tensor.shape) * kind.itemsize // ALIGNMENT) * ALIGNMENT
    buffer = np.zeros(size, dtype=np.uint8) if into is None else into
    if buffer.size != size:
        raise ValueError(f"the buffer to reuse has {buffer.size} bytes, these tensors need {size}")
    digests, of_head = dict[str, int](), dict[str, int]()
    with full_tensors(tensors, dtype) as gathered:
        for (name, tensor), spec in zip(gathered, specs, strict=True):
            flat = tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy()
            buffer[spec.offset : spec.offset + flat.size] = flat
            digests |= fingerprint({name: tensor}, version=version)
            if name == tied_to:
                of_head = fingerprint({HEAD: tensor}, version=version)
    sums = checksums(buffer, specs)
    return WeightSnapshot(version=version, buffer=buffer, index=tuple(specs), fingerprint=digests | of_head, checksums=sums)


def save_model(model: Any, weights: WeightSnapshot, directory: str, *, tokenizer: str) -> None:
    """Write `weights` for `from_pretrained`, with the tokenizer at that path. `model` gives its configuration and the
    tensors that are not parameters. It may be sharded (`learners.fsdp`) and of another dtype."""
    from transformers import AutoTokenizer

    Path(directory).mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    _make_savable(model)
    model.save_pretrained(directory, state_dict={**buffers, **dict(weights.tensors())})
    model.config.dtype = weights.index[0].dtype  # else that of the parameters
    model.config.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)


def _make_savable(model: Any) -> None:
    """Let `do_sample` agree with the temperature beside it. Models were published where it does not, and transformers
    refuses to write what it reads."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def checksums(buffer: np.ndarray, index: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the checksum of every tensor's bytes, computed by as many threads as torch has in this process."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda spec: _checksum(buffer[spec.offset : spec.offset + spec.nbytes]), index)
        return {spec.name: checksum for spec, checksum in zip(index, found, strict=True)}


def _checksum(data: np.ndarray) -> int:
    """Return the sum of the data's 64-bit words modulo 2^64, which costs a fifth of a CRC-32. It finds any single word
    that differs. It does not see words in another order; the fingerprint's columns do."""
    whole = data.size // 8 * 8
    rest = int.from_bytes(data[whole:].tobytes(), "little")
    return (int(data[:whole].view(np.uint64).sum()) + rest) % 2**64


def probed_columns(name: str, width: int, version: int) -> Tensor:
    """Return the columns of matrix `name` in the fingerprint of `version`: a new seeded choice for each."""
    seed = zlib.crc32(f"{name}/{version}".encode())
    return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(width, size=min(PROBED_COLUMNS, width), replace=False)))


class Part(NamedTuple):
    """A part of a tensor that one rank of an engine holds: its first row and column in the tensor, and its digest."""

    row: int
    column: int
    digest: int


def digest(values: Tensor, *, row: int = 0, columns: Tensor | None = None) -> int:
    """Return the sum over all elements of mix(bits of the element + its place), modulo 2^64. In the whole tensor the
    first row of `values` is `row`, and its columns are `columns` (None: all, in order)."""
    if not values.numel():
        return 0
    size = values.dtype.itemsize
    bits = values.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().view(f"u{size}")
    mixed_RC = bits.reshape(values.shape[0] if values.dim() else 1, -1).astype(np.uint64)
    rows_R = np.arange(row, row + len(mixed_RC), dtype=np.uint64)
    columns_C = np.arange(mixed_RC.shape[1], dtype=np.uint64) if columns is None else columns.cpu().numpy().astype(np.uint64)
    mixed_RC += (rows_R * _PLACE[0])[:, None] + (columns_C * _PLACE[1])[None, :]
    for shift, factor in _MIX:
        mixed_RC ^= mixed_RC >> shift
        mixed_RC *= factor
    mixed_RC ^= mixed_RC >> np.uint64(31)
    return int(mixed_RC.sum())


def fingerprint(tensors: Mapping[str, Tensor], *, version: int) -> dict[str, int]:
    """Return the digest of every tensor: of its probed columns if it is a matrix, else of all of it."""
    digests = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            columns = probed_columns(name, tensor.shape[1], version)
            digests[name] = digest(tensor[:, columns.to(tensor.device)], columns=columns)
        else:
            digests[name] = digest(tensor)
    return digests


def first_mismatch(expected: Mapping[str, int], found: Mapping[str, int]) -> str | None:
    """Return the name of a tensor whose digest differs or is missing; None if all agree."""
    return next((name for name, digest in expected.items() if found.get(name) != digest), None)


def first_mismatch_of_ranks(expected: Mapping[str, int], ranks: Sequence[Mapping[str, Sequence[Part]]]) -> tuple[str, int | None] | None:
    """Return the name of a tensor that the ranks do not hold, and the rank at fault, or None for a rank where it is
    divided among them; None if they hold all. Each rank gives the parts that it holds of every tensor. Tensors that
    each rank holds whole are compared first, because they tell which rank has not taken the weights."""
    divided = []
    for name, wanted in expected.items():
        if (without := next((rank for rank, held in enumerate(ranks) if not held.get(name)), None)) is not None:
            return name, without
        if len({tuple(part[:2] for part in held[name]) for held in ranks}) > 1:
            divided.append(name)
            continue
        for rank, held in enumerate(ranks):
            if sum(part.digest for part in held[name]) % 2**64 != wanted:
                return name, rank
    for name in divided:
        parts = {part for held in ranks for part in held[name]}  # several ranks may hold one part, and then the same
        if sum(part.digest for part in parts) % 2**64 != expected[name]:
            return name, None
    return None
