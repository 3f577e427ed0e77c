"""Whether weights may be loaded: everything that can be checked before an engine is changed.

    check_snapshot(snapshot, shapes=causal_lm_shapes(path), dtype="bfloat16")     # raises WeightsRefused

An engine cannot undo a load: one that fails half-way leaves weights of no version. So the faults that can occur on the
way from the learner are found here: a tensor that is missing or of another model, bytes that are cut off, overwritten
or flipped. The weights are then refused, and the engine continues under the weights it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from learners.weights import ALIGNMENT, HEAD, TensorSpec, WeightSnapshot, checksums, fingerprint, first_mismatch


class WeightsRefused(RuntimeError):
    """These weights were not loaded, and nothing was changed. The engine continues under the weights it has."""


def check_snapshot(snapshot: WeightSnapshot, *, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Raise WeightsRefused unless `snapshot` is for a model of these parameters, byte for byte as it was taken.
    `shapes` are by name, without a tied head; `dtype` is the engine's. Takes about 0.1 s for 270 MB."""
    check_tensors(snapshot.index, shapes=shapes, dtype=dtype, version=snapshot.version)
    _check_places(snapshot)
    names = {spec.name for spec in snapshot.index}
    if (without := min(names - snapshot.checksums.keys() or names - snapshot.fingerprint.keys(), default=None)) is not None:
        raise _refused(snapshot.version, without, "has no checksum or no digest")
    found = checksums(snapshot.buffer, snapshot.index)
    if (altered := next((name for name in found if found[name] != snapshot.checksums[name]), None)) is not None:
        sums = f"checksum {found[altered]:016x}, not {snapshot.checksums[altered]:016x}"
        raise _refused(snapshot.version, altered, f"is not as it was published ({sums})")
    expected = {name: digest for name, digest in snapshot.fingerprint.items() if name in names}
    if (altered := first_mismatch(expected, fingerprint(dict(snapshot.tensors()), version=snapshot.version))) is not None:
        raise _refused(snapshot.version, altered, "is not the learner's (digest)")


def check_tensors(index: Iterable[TensorSpec], *, shapes: Mapping[str, tuple[int, ...]], dtype: str, version: int) -> None:
    """Raise WeightsRefused unless these are the tensors of a model of these parameters, each once."""
    counts = Counter(spec.name for spec in index)
    if (missing := min(shapes.keys() - counts.keys(), default=None)) is not None:
        raise _refused(version, missing, "is missing")
    if (unknown := min(counts.keys() - shapes.keys(), default=None)) is not None:
        raise _refused(version, unknown, "is not one of this model's" + (" (its head is tied)" if unknown == HEAD else ""))
    if (twice := next((name for name, count in counts.items() if count > 1), None)) is not None:
        raise _refused(version, twice, "is there twice")
    for spec in index:
        if spec.shape != shapes[spec.name]:
            raise _refused(version, spec.name, f"has shape {list(spec.shape)}, this model's has {list(shapes[spec.name])}")
        if spec.dtype != dtype:
            raise _refused(version, spec.name, f"is {spec.dtype} and this engine's are {dtype}: rollout.dtype must be learner.dtype")


def _check_places(snapshot: WeightSnapshot) -> None:
    """Raise WeightsRefused unless every tensor is aligned, behind the one before, and inside the buffer, with
    nothing behind the last."""
    end = 0
    for spec in sorted(snapshot.index, key=lambda spec: spec.offset):
        if spec.offset < end or spec.offset % ALIGNMENT:
            raise _refused(snapshot.version, spec.name, f"begins at byte {spec.offset}, where it cannot: the one before ends at {end}")
        end = spec.offset + spec.nbytes
        if end > snapshot.nbytes:
            raise _refused(snapshot.version, spec.name, f"ends at byte {end} of {snapshot.nbytes}: the buffer is cut short")
    if snapshot.nbytes - end >= ALIGNMENT:
        raise WeightsRefused(f"version {snapshot.version}: the buffer has {snapshot.nbytes} bytes, its tensors end at {end}")


def _refused(version: int, tensor: str, why: str) -> WeightsRefused:
    return WeightsRefused(f"version {version}: tensor {tensor} {why}")
