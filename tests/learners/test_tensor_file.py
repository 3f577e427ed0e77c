from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learners.sharding import full_tensor, full_tensors, shard_of
from learners.tensor_file import DTYPES, TensorFile, layout_of, write_tensors


def make_tensors() -> dict[str, Tensor]:
    """Return tensors of all dtypes, a scalar, an empty tensor, and one that is not contiguous."""
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES}
    return {**tensors, "scalar": torch.tensor(3), "odd": torch.arange(7, dtype=torch.uint8), "turned": torch.randn(4, 6).T}


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    layout = layout_of(tensors)
    write_tensors(path, layout, ((name, tensors[name]) for name in layout))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_the_library_reads_what_was_written_tensor_by_tensor(tmp_path: Path) -> None:
    write(tmp_path / "state", make_tensors())
    assert_same(load_file(tmp_path / "state"), make_tensors())


def test_what_the_library_wrote_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in make_tensors().items()}, tmp_path / "state")
    with TensorFile(tmp_path / "state") as found:
        assert len(found) == len(make_tensors())
        assert_same(dict(found), make_tensors())
        with pytest.raises(KeyError, match="missing"):
            found["missing"]


def test_a_file_without_tensors_is_one(tmp_path: Path) -> None:
    write(tmp_path / "state", {})
    assert load_file(tmp_path / "state") == {}


def test_every_tensor_begins_where_its_dtype_may(tmp_path: Path) -> None:
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "wide": torch.ones(2, dtype=torch.float64), "half": torch.ones(1).bfloat16()}
    assert list(layout_of(tensors)) == ["wide", "half", "odd"]


def test_only_one_tensor_is_asked_for_at_a_time(tmp_path: Path) -> None:
    size_at_request = []
    layout = {name: (torch.float32, (250_000,)) for name in "abc"}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in layout:
            size_at_request.append((tmp_path / "state").stat().st_size)
            yield name, torch.zeros(250_000)

    write_tensors(tmp_path / "state", layout, tensors())
    assert size_at_request[2] >= 1_000_000  # the first is on its way to the disk before the third is made


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ([("b", torch.ones(2))], r"\('b', .* came where the layout has \('a'"),
        ([("a", torch.ones(3))], r"torch.float32, \(3,\).* came where"),
        ([("a", torch.ones(2).double())], r"torch.float64.* came where"),
        ([], "the layout has .* which did not come"),
        ([("a", torch.ones(2)), ("c", torch.ones(2))], "came where the layout has None"),
    ],
)
def test_what_is_not_in_the_layout_is_refused(tmp_path: Path, came: list[tuple[str, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "state", {"a": (torch.float32, (2,))}, came)


# --- tensors that are whole ------------------------------------------------------------------------------------------


def test_a_tensor_that_is_no_part_is_left_as_it_is() -> None:
    tensor = torch.randn(3, requires_grad=True)
    assert full_tensor(tensor).data_ptr() == tensor.data_ptr() and not full_tensor(tensor).requires_grad
    assert full_tensor(tensor, torch.bfloat16).dtype == torch.bfloat16
    assert shard_of(tensor, torch.zeros(3)) is tensor


def test_what_was_not_asked_for_is_gathered_when_the_block_is_left() -> None:
    asked = []

    def named() -> Iterator[tuple[str, Tensor]]:
        for name in "abc":
            asked.append(name)
            yield name, torch.zeros(1)

    with pytest.raises(OSError, match="disk full"), full_tensors(named()) as tensors:
        assert next(tensors)[0] == "a" and asked == ["a"]
        raise OSError("disk full")
    assert asked == ["a", "b", "c"]
