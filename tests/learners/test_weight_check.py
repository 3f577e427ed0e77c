from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learners.forward import causal_lm_shapes, load_causal_lm
from learners.weight_check import WeightsRefused, check_snapshot
from learners.weights import HEAD, TensorSpec, WeightSnapshot, load_snapshot, take_snapshot
from tests.tiny_model import make_tiny_model

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
Change = Callable[[WeightSnapshot], WeightSnapshot]


@pytest.fixture(scope="module")
def snapshot(tiny_model: str) -> WeightSnapshot:
    return take_snapshot(load_causal_lm(tiny_model, dtype="float32").named_parameters(), version=3, tied_to=EMBEDDING)


@pytest.fixture(scope="module")
def shapes(tiny_model: str) -> dict[str, tuple[int, ...]]:
    return causal_lm_shapes(tiny_model)


def refusal(snapshot: WeightSnapshot, shapes: dict[str, tuple[int, ...]], *, dtype: str = "float32") -> str:
    with pytest.raises(WeightsRefused) as refused:
        check_snapshot(snapshot, shapes=shapes, dtype=dtype)
    return str(refused.value)


def with_spec(snapshot: WeightSnapshot, name: str, /, **changes: object) -> WeightSnapshot:
    return replace(snapshot, index=tuple(replace(spec, **changes) if spec.name == name else spec for spec in snapshot.index))


def without(snapshot: WeightSnapshot, name: str) -> WeightSnapshot:
    return replace(snapshot, index=tuple(spec for spec in snapshot.index if spec.name != name))


def spec_of(snapshot: WeightSnapshot, name: str) -> TensorSpec:
    return next(spec for spec in snapshot.index if spec.name == name)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_s_shapes_are_known_without_its_weights(tmp_path: Path, tied: bool) -> None:
    path = make_tiny_model(tmp_path, tied=tied)
    loaded = {name: tuple(parameter.shape) for name, parameter in load_causal_lm(path, dtype="float32").named_parameters()}
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert causal_lm_shapes(path) == loaded
    assert (HEAD in loaded) is not tied


def test_what_was_published_passes_also_as_a_file_and_on_read_only_memory(
    snapshot: WeightSnapshot, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    snapshot.save(tmp_path / "weights")
    read_only = replace(snapshot, buffer=snapshot.buffer.copy())
    read_only.buffer.flags.writeable = False
    for each in (snapshot, read_only, load_snapshot(tmp_path / "weights")):
        check_snapshot(each, shapes=shapes, dtype="float32")


def test_an_untied_head_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, tied=False)
    snapshot = take_snapshot(load_causal_lm(path, dtype="float32").named_parameters(), version=1)
    check_snapshot(snapshot, shapes=causal_lm_shapes(path), dtype="float32")
    assert refusal(without(snapshot, HEAD), causal_lm_shapes(path)) == "version 1: tensor lm_head.weight is missing"


@pytest.mark.parametrize("position", range(0, 120_000, 4_999))
def test_one_flipped_bit_anywhere_is_found_and_its_tensor_named(
    snapshot: WeightSnapshot, shapes: dict[str, tuple[int, ...]], position: int
) -> None:
    """The bit is flipped where the digests look, and where they do not."""
    altered = replace(snapshot, buffer=snapshot.buffer.copy())
    altered.buffer[position % altered.nbytes] ^= 0x10
    inside = [spec.name for spec in snapshot.index if spec.offset <= position % altered.nbytes < spec.offset + spec.nbytes]
    if not inside:  # between two tensors
        check_snapshot(altered, shapes=shapes, dtype="float32")
    else:
        assert f"tensor {inside[0]} is not as it was published" in refusal(altered, shapes)


def test_a_buffer_that_was_overwritten_by_the_next_version_is_found(snapshot: WeightSnapshot, shapes: dict[str, tuple[int, ...]]) -> None:
    half = snapshot.nbytes // 2
    torn = replace(snapshot, buffer=np.concatenate([snapshot.buffer[:half], np.roll(snapshot.buffer, 7)[half:]]))
    assert "is not as it was published" in refusal(torn, shapes)


def test_weights_that_were_damaged_before_their_checksums_were_taken_do_not_pass_the_digests(
    snapshot: WeightSnapshot, shapes: dict[str, tuple[int, ...]], tiny_model: str
) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    with torch.no_grad():
        model.get_parameter(NORM).add_(1)
    other = take_snapshot(model.named_parameters(), version=3, tied_to=EMBEDDING)
    assert refusal(replace(other, fingerprint=snapshot.fingerprint), shapes) == f"version 3: tensor {NORM} is not the learner's (digest)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: without(s, NORM), f"tensor {NORM} is missing"),
        (lambda s: with_spec(s, NORM, name="model.norm.bias"), f"tensor {NORM} is missing"),
        (lambda s: replace(s, index=(*s.index, replace(s.index[0], name="more"))), "tensor more is not one of this model's"),
        (
            lambda s: replace(s, index=(*s.index, replace(s.index[0], name=HEAD))),
            f"tensor {HEAD} is not one of this model's (its head is tied)",
        ),
        (lambda s: replace(s, index=(*s.index, spec_of(s, NORM))), f"tensor {NORM} is there twice"),
        (lambda s: with_spec(s, NORM, shape=(2, 16)), f"tensor {NORM} has shape [2, 16], this model's has [32]"),
        (lambda s: with_spec(s, NORM, dtype="bfloat16"), f"tensor {NORM} is bfloat16 and this engine's are float32: rollout.dtype must be"),
        (lambda s: with_spec(s, NORM, offset=spec_of(s, NORM).offset + 4), f"tensor {NORM} begins at byte"),
        (lambda s: with_spec(s, NORM, offset=0), "where it cannot: the one before ends at"),
        (lambda s: replace(s, buffer=s.buffer[: s.nbytes // 3]), "the buffer is cut short"),
        (lambda s: replace(s, buffer=np.concatenate([s.buffer, s.buffer])), "bytes, its tensors end at"),
        (
            lambda s: replace(s, checksums={k: v for k, v in s.checksums.items() if k != NORM}),
            f"tensor {NORM} has no checksum or no digest",
        ),
        (lambda s: replace(s, fingerprint={}), "has no checksum or no digest"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    snapshot: WeightSnapshot, shapes: dict[str, tuple[int, ...]], change: Change, reason: str
) -> None:
    found = refusal(change(snapshot), shapes)
    assert found.startswith("version 3: ") and reason in found
