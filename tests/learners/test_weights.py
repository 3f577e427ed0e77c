from __future__ import annotations

import itertools
import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.forward import load_causal_lm
from learners.weights import (
    ALIGNMENT,
    HEAD,
    PROBED_COLUMNS,
    Part,
    WeightSnapshot,
    digest,
    fingerprint,
    first_mismatch,
    first_mismatch_of_ranks,
    load_snapshot,
    probed_columns,
    save_model,
    take_snapshot,
)

INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_tensors() -> dict[str, Tensor]:
    """Return tensors of all dtypes that weights have, with sizes that fit no alignment."""
    return {
        "embed.weight": draw(11, 7),
        "norm.weight": draw(7, dtype=torch.float32),
        "double": draw(3, 5, dtype=torch.float64),
        "half": draw(1, 1, dtype=torch.float16),
        "eight_bits": draw(5, 3, dtype=torch.float32).to(torch.float8_e4m3fn),
        "counts": torch.arange(9),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "convolution": draw(2, 3, 5),
        "transposed": draw(7, 11).T,
    }


def flip_bit(tensor: Tensor, index: tuple[int, ...]) -> Tensor:
    """Return a copy with the lowest bit of one element flipped."""
    copy = tensor.clone()
    copy.view(INTEGER_OF_WIDTH[tensor.element_size()])[index] ^= 1
    return copy


def assert_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_a_snapshot_gives_back_every_tensor_bit_for_bit() -> None:
    tensors = make_tensors()
    snapshot = take_snapshot(tensors.items(), version=3)
    assert_same_tensors(dict(snapshot.tensors()), tensors)
    assert snapshot.version == 3
    assert all(spec.offset % ALIGNMENT == 0 for spec in snapshot.index)


def test_a_snapshot_is_a_copy() -> None:
    weight = draw(4, 4)
    snapshot = take_snapshot([("w", weight)], version=0)
    before = weight.clone()
    weight.zero_()
    assert_same_tensors(dict(snapshot.tensors()), {"w": before})


def test_a_snapshot_can_take_over_the_buffer_of_an_earlier_one() -> None:
    earlier = take_snapshot(make_tensors().items(), version=0)
    doubled = {
        name: tensor if tensor.dtype == torch.bool else (tensor.double() * 2).to(tensor.dtype) for name, tensor in make_tensors().items()
    }
    later = take_snapshot(doubled.items(), version=1, into=earlier.buffer)
    assert later.buffer is earlier.buffer
    assert_same_tensors(dict(later.tensors()), doubled)
    assert later.fingerprint == take_snapshot(doubled.items(), version=1).fingerprint


def sum_of_words(data: bytes) -> int:
    return sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)) % 2**64


@pytest.mark.parametrize("threads", [1, 3])
def test_checksums_are_those_of_each_tensor_s_bytes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    snapshot = take_snapshot(make_tensors().items(), version=0)
    expected = {name: sum_of_words(bytes(t.contiguous().view(-1).view(torch.uint8).tolist())) for name, t in make_tensors().items()}
    assert dict(snapshot.checksums) == expected
    assert snapshot.nbytes == snapshot.buffer.nbytes


def test_a_buffer_of_another_size_is_not_taken_over() -> None:
    with pytest.raises(ValueError, match="the buffer to reuse has 64 bytes, these tensors need 128"):
        take_snapshot([("w", draw(33))], version=0, into=np.zeros(64, np.uint8))


def test_parameters_with_gradient_can_be_taken() -> None:
    parameter = torch.nn.Parameter(draw(4, 4))
    (_, tensor), *_ = take_snapshot([("w", parameter)], version=0).tensors()
    assert not tensor.requires_grad and torch.equal(tensor, parameter.detach())


def test_a_snapshot_survives_a_file_as_a_memory_map(tmp_path: Path) -> None:
    snapshot = take_snapshot(make_tensors().items(), version=5, tied_to="embed.weight")
    snapshot.save(tmp_path / "weights")
    loaded = load_snapshot(tmp_path / "weights")
    assert isinstance(loaded.buffer, np.memmap)
    assert_same_tensors(dict(loaded.tensors()), make_tensors())
    assert (loaded.version, loaded.index, loaded.fingerprint) == (5, snapshot.index, snapshot.fingerprint)
    assert loaded.checksums == snapshot.checksums


def test_protocol_five_keeps_the_weights_out_of_band() -> None:
    snapshot = take_snapshot([("w", draw(300, 300))], version=1)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(snapshot, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 2_000 < snapshot.buffer.nbytes
    assert [buffer.raw().nbytes for buffer in buffers] == [snapshot.buffer.nbytes]
    restored = pickle.loads(data, buffers=buffers)
    assert np.shares_memory(restored.buffer, snapshot.buffer)
    assert_same_tensors(dict(restored.tensors()), dict(snapshot.tensors()))
    assert (restored.version, restored.index, restored.fingerprint) == (1, snapshot.index, snapshot.fingerprint)


def test_a_snapshot_on_read_only_memory_can_be_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    """The object store hands out read-only buffers."""
    snapshot = take_snapshot(make_tensors().items(), version=0)
    snapshot.buffer.flags.writeable = False
    assert_same_tensors(dict(snapshot.tensors()), make_tensors())
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("row", [0, 6, 10])
def test_the_fingerprint_sees_one_bit_of_a_probed_column(row: int) -> None:
    weight = draw(11, 64)
    expected = fingerprint({"w": weight}, version=2)
    columns = probed_columns("w", 64, 2).tolist()
    assert len(set(columns)) == PROBED_COLUMNS
    for column in columns:
        assert fingerprint({"w": flip_bit(weight, (row, column))}, version=2) != expected


def test_a_bit_outside_the_probed_columns_is_seen_at_a_later_version() -> None:
    weight = draw(3, 16)
    column = next(c for c in range(16) if c not in probed_columns("w", 16, 0))
    changed = flip_bit(weight, (1, column))
    assert fingerprint({"w": changed}, version=0) == fingerprint({"w": weight}, version=0)
    seen = [version for version in range(50) if fingerprint({"w": changed}, version=version) != fingerprint({"w": weight}, version=version)]
    assert seen == [version for version in range(50) if column in probed_columns("w", 16, version)]
    assert seen


@pytest.mark.parametrize("name", ["norm.weight", "counts", "convolution", "scalar"])
def test_the_fingerprint_sees_one_bit_of_any_element_of_what_is_no_matrix(name: str) -> None:
    tensor = make_tensors()[name]
    expected = fingerprint({name: tensor}, version=0)
    for index in np.ndindex(tuple(tensor.shape)):
        assert fingerprint({name: flip_bit(tensor, index)}, version=0) != expected


def test_columns_change_with_the_version_and_the_name_and_are_reproducible() -> None:
    def draws(name: str, versions: range) -> list[list[int]]:
        return [probed_columns(name, 576, version).tolist() for version in versions]

    first = draws("a", range(20))
    assert len({tuple(columns) for columns in first}) == 20
    assert draws("a", range(20)) == first
    assert draws("b", range(20)) != first
    assert all(columns == sorted(set(columns)) and len(columns) == PROBED_COLUMNS for columns in first)


def test_a_narrow_matrix_is_probed_whole() -> None:
    assert probed_columns("w", 3, 0).tolist() == [0, 1, 2]


def test_a_tied_head_is_fingerprinted_under_its_own_name_but_sent_once() -> None:
    tensors = {"embed.weight": draw(11, 64), "norm.weight": draw(64)}
    snapshot = take_snapshot(tensors.items(), version=4, tied_to="embed.weight")
    assert [spec.name for spec in snapshot.index] == ["embed.weight", "norm.weight"]
    assert list(snapshot.fingerprint) == ["embed.weight", "norm.weight", HEAD]
    assert snapshot.fingerprint[HEAD] == fingerprint({HEAD: tensors["embed.weight"]}, version=4)[HEAD]
    stale = fingerprint({**tensors, HEAD: draw(11, 64, seed=9)}, version=4)
    assert first_mismatch(snapshot.fingerprint, stale) == HEAD


@pytest.mark.parametrize("rows", [(0, 5, 11), (0, 1, 2, 11)])
@pytest.mark.parametrize("at", [0, 13, 64])
def test_digests_of_the_parts_of_a_matrix_add_up_to_its_own(rows: tuple[int, ...], at: int) -> None:
    matrix, columns = draw(11, 64), torch.tensor([3, 12, 13, 63])
    parts = 0
    for start, stop in itertools.pairwise(rows):
        for mine in (columns[columns < at], columns[columns >= at]):
            parts += digest(matrix[start:stop][:, mine], row=start, columns=mine)
    assert parts % 2**64 == digest(matrix[:, columns], columns=columns)


def test_a_digest_sees_parts_that_have_changed_places() -> None:
    matrix, columns = draw(8, 4), torch.arange(4)
    upper, lower = (digest(half, row=row, columns=columns) for half, row in ((matrix[4:], 0), (matrix[:4], 4)))
    assert (upper + lower) % 2**64 != digest(matrix)
    assert digest(matrix[:, [1, 0, 2, 3]]) != digest(matrix) == digest(matrix[:, [1, 0, 2, 3]], columns=torch.tensor([1, 0, 2, 3]))
    assert digest(torch.zeros(3)) != digest(torch.zeros(4))


class TestRanks:
    """Two ranks that hold halves of a matrix and all of a vector; of four, neighbors hold the same half."""

    expected: ClassVar = {"matrix": 4, "vector": 5}

    def ranks(self, copies: int = 1) -> list[dict[str, list[Part]]]:
        halves = ([Part(0, 0, 7)], [Part(4, 0, 2**64 - 3)])
        return [{"matrix": list(half), "vector": [Part(0, 0, 5)]} for half in halves for _ in range(copies)]

    @pytest.mark.parametrize("copies", [1, 2])
    def test_parts_of_all_ranks_are_the_tensor(self, copies: int) -> None:
        assert first_mismatch_of_ranks(self.expected, self.ranks(copies)) is None

    @pytest.mark.parametrize("copies", [1, 2])
    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_with_another_part_is_found(self, copies: int, rank: int) -> None:
        ranks = self.ranks(copies)
        ranks[rank]["matrix"] = [ranks[rank]["matrix"][0]._replace(digest=1)]
        assert first_mismatch_of_ranks(self.expected, ranks) == ("matrix", None)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_that_holds_a_whole_tensor_is_named_first(self, rank: int) -> None:
        ranks = self.ranks()
        ranks[rank] = {"matrix": [ranks[rank]["matrix"][0]._replace(digest=1)], "vector": [Part(0, 0, 6)]}
        assert first_mismatch_of_ranks(self.expected, ranks) == ("vector", rank)

    @pytest.mark.parametrize("name", ["matrix", "vector"])
    @pytest.mark.parametrize("parts", [None, []])
    def test_a_rank_that_says_nothing_of_a_tensor_is_named(self, name: str, parts: list[Part] | None) -> None:
        ranks = self.ranks()
        ranks[1] = {key: held for key, held in ranks[1].items() if key != name} | ({} if parts is None else {name: parts})
        assert first_mismatch_of_ranks(self.expected, ranks) == (name, 1)


@pytest.mark.parametrize("name", ["embed.weight", "norm.weight", HEAD])
@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_the_first_mismatch_names_the_tensor(name: str, fault: str) -> None:
    snapshot = take_snapshot([("embed.weight", draw(8, 8)), ("norm.weight", draw(8))], version=0, tied_to="embed.weight")
    found: dict[str, Any] = {**snapshot.fingerprint, "of another tensor": "is not looked at"}
    assert first_mismatch(snapshot.fingerprint, found) is None
    if fault == "altered":
        found[name] += 1
    else:
        del found[name]
    assert first_mismatch(snapshot.fingerprint, found) == name


def test_snapshots_are_values() -> None:
    snapshot = take_snapshot([("w", draw(2, 2))], version=0)
    with pytest.raises(AttributeError):
        snapshot.version = 1  # type: ignore[misc]
    assert isinstance(replace(snapshot, version=1), WeightSnapshot)


def test_a_model_whose_generation_settings_contradict_each_other_is_saved(tiny_model: str, tmp_path: Path) -> None:
    """As older base models were published. transformers reads them with a warning, and refuses to write them."""
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}))
    model = load_causal_lm(str(source), dtype="float32")
    save_model(model, take_snapshot(model.named_parameters(), version=1), str(tmp_path / "saved"), tokenizer=str(source))
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["eos_token_id"]) == (0.9, 0.6, 2)
