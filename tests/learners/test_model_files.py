"""What the files of a model directory tell by their headers. The files are written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from learners.model_files import FileTensor, read_config, tensors_in, text_values, token_limit, weight_files
from learners.models import ModelError, check_model
from tests.learners.model_directories import write_safetensors

SMALL = {"a.weight": ("F32", (2, 3)), "b.weight": ("BF16", (4,))}


def index_of(directory: Path, parts: dict[str, str], name: str = "model.safetensors") -> None:
    (directory / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as refused:
        tensors_in(weight_files(str(directory)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_header_names_every_tensor_with_dtype_and_shape(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "model.safetensors", SMALL)
    assert weight_files(str(tmp_path)) == [file]
    assert tensors_in([file]) == {
        "a.weight": FileTensor(dtype="F32", shape=(2, 3), file=file),
        "b.weight": FileTensor(dtype="BF16", shape=(4,), file=file),
    }


def test_the_files_of_an_index_are_read_each_once(tmp_path: Path) -> None:
    one = write_safetensors(tmp_path / "model-1.safetensors", SMALL)
    two = write_safetensors(tmp_path / "model-2.safetensors", {"c": ("I64", (1,)), "d": ("F16", (1, 1))})
    index_of(tmp_path, {"a.weight": one.name, "b.weight": one.name, "c": two.name, "d": two.name})
    assert weight_files(str(tmp_path)) == [one, two]
    assert list(tensors_in([one, two])) == ["a.weight", "b.weight", "c", "d"]


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model-1.safetensors", SMALL)
    index_of(tmp_path, {"a.weight": "model-1.safetensors", "z": "model-3.safetensors", "y": "model-2.safetensors"})
    assert "names 3 files, and 2 of them are missing, the first model-2.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}', "[1]", "{"]
)
def test_an_index_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize("cut", [1, 30, 60, 10_000])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL, cut=cut)
    assert refusal(tmp_path).startswith(f"model file {tmp_path}/model.safetensors is damaged or cut short")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_no_file(tmp_path: Path, name: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelError, match=rf"{name} is a pointer of git-lfs.*git lfs pull"):
        read_config(str(tmp_path)) if name == "config.json" else weight_files(str(tmp_path))


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    assert "has no weights" in refusal(tmp_path)


def test_an_adapter_beside_a_whole_model_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter beside it (adapter_config.json)" in refusal(tmp_path)


def test_an_adapter_in_a_folder_of_its_own_is_none_of_the_model(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert weight_files(str(tmp_path)) == [tmp_path / "model.safetensors"]


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter alone: merge it"):
        check_model(str(tmp_path))


@pytest.mark.parametrize("other", ["consolidated.safetensors", "adapter_model.safetensors", "model-00001-of-00001.safetensors"])
def test_weights_that_only_an_engine_would_read_are_refused(tmp_path: Path, other: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)
    write_safetensors(tmp_path / other, SMALL)
    assert f"{other} is there beside model.safetensors" in refusal(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for part in ("one", "two"):
        write_safetensors(tmp_path / f"{part}.safetensors", {"a.weight": ("F32", (1,))})
    index_of(tmp_path, {"a.weight": "one.safetensors", "b.weight": "two.safetensors"})
    assert "tensor a.weight is in one.safetensors and in two.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "tokens", "key"),
    [
        ({"max_position_embeddings": 512}, 512, "max_position_embeddings"),
        ({"n_positions": 1024, "max_position_embeddings": 2048}, 1024, "n_positions"),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072, "model_max_length"),
        ({"text_config": {"max_position_embeddings": 300}, "max_position_embeddings": 9}, 300, "max_position_embeddings"),
        ({"llm_config": {"max_seq_len": 77}}, 77, "max_seq_len"),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400, "max_position_embeddings"),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 200, "max_position_embeddings"),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn", "factor": 4}}, 100, "max_position_embeddings"),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "llama3", "factor": 8}}, 100, "max_position_embeddings"),
        (
            {"max_position_embeddings": 50, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
            400,
            "max_position_embeddings",
        ),
        ({"max_position_embeddings": 100, "rope_scaling": None, "seq_length": None}, 100, "max_position_embeddings"),
    ],
)
def test_the_limit_of_tokens_is_what_an_engine_derives(config: dict[str, Any], tokens: int, key: str) -> None:
    limit = token_limit(config)
    assert limit is not None and (limit.tokens, limit.key) == (tokens, key)


@pytest.mark.parametrize("config", [{}, {"max_position_embeddings": None}, {"max_position_embeddings": "4096"}, {"seq_len": 0}])
def test_a_config_may_set_no_limit(config: dict[str, Any]) -> None:
    assert token_limit(config) is None


def test_the_language_model_of_a_nested_config_is_found() -> None:
    assert text_values({"vocab_size": 7}) == {"vocab_size": 7}
    assert text_values({"text_config": {"vocab_size": 9}, "vision_config": {}})["vocab_size"] == 9


def test_the_headers_need_neither_torch_nor_transformers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)
    code = (
        "import sys; from learners.model_files import tensors_in, weight_files\n"
        f"tensors_in(weight_files({str(tmp_path)!r})); sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_config_that_is_nested_without_end_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_config(str(tmp_path))
