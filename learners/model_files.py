"""The files of a model directory, as their headers tell. No weights are read; torch and transformers are not loaded.

files = weight_files(directory)              # raises ModelError: an adapter beside a model, a file that is missing
tensors = tensors_in(files)                  # {"lm_head.weight": FileTensor(dtype="BF16", shape=(…), file=…)}
limit = token_limit(read_config(directory))  # how many tokens a prompt and its response may have"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.models import ModelError

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""The weights as one file, in the order in which transformers looks for it and for its index."""
INDEX_SUFFIX = ".index.json"
ADAPTER = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs"
LIMITS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
"""The keys of a config that bound the tokens of a sequence. The smallest counts, as it does in vLLM."""
SCALED_ALREADY = frozenset({"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""Kinds of position embeddings whose limit contains their scaling factor."""
NESTED = ("text_config", "llm_config", "language_config", "decoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor:
    """A tensor as the header of its file describes it. `dtype` is a word of the safetensors format."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLimit:
    """The most tokens of a sequence, and the key of the config that says so."""

    tokens: int
    key: str


def read_config(directory: str) -> dict[str, Any]:
    """Return config.json. Raises ModelError where it is no JSON object."""
    return _json_object(Path(directory) / "config.json")


def read_generation_config(directory: str) -> dict[str, Any] | None:
    """Return generation_config.json, which may be missing. Raises ModelError where it is no JSON object: it says which
    tokens end a response, and transformers would do without it in silence."""
    file = Path(directory) / "generation_config.json"
    return _json_object(file) if file.exists() else None


def text_values(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that describes the language model: a config of several models nests it."""
    nested = (config.get(name) for name in NESTED)
    return next((part for part in nested if isinstance(part, dict)), config)


def token_limit(config: Mapping[str, Any]) -> TokenLimit | None:
    """Return the limit that a config sets, None where it sets none."""
    values = text_values(config)
    found = {key: values[key] for key in LIMITS if isinstance(values.get(key), int) and values[key] > 0}
    if not found:
        return None
    key = min(found, key=lambda name: found[name])
    if isinstance(values.get("model_max_length"), int):
        key, found = "model_max_length", {"model_max_length": values["model_max_length"]}
    return TokenLimit(tokens=int(found[key] * _scaling(values)), key=key)


def weight_files(directory: str) -> list[Path]:
    """Return the files of the weights that transformers reads. Raises ModelError where there are none, where one is
    missing or cut short, and where an engine would read others."""
    place = Path(directory)
    if (place / ADAPTER).is_file():
        raise ModelError(
            f"model {directory} is a whole model with an adapter beside it ({ADAPTER}): the learner would load the adapter and the engine "
            "would not: move the adapter to another directory, or merge it into the model"
        )
    files = next((files for name in WHOLE if (files := _files_of(place, name))), [])
    if not files:
        raise ModelError(f"model {directory} has no weights: neither {WHOLE[0]}, nor {WHOLE[0]}{INDEX_SUFFIX}, nor {WHOLE[1]}")
    for file in files:
        _require_no_pointer(file)
    others = sorted(set(place.glob("*.safetensors")) - set(files)) if files[0].suffix == ".safetensors" else []
    if others:
        raise ModelError(
            f"model {directory}: {others[0].name} is there beside {files[0].name}, and an engine would read it too: move it to another "
            "directory"
        )
    return files


def tensors_in(files: Sequence[Path]) -> dict[str, FileTensor]:
    """Return the tensors of safetensors files by name. Raises ModelError for a file that is damaged or cut short, and
    for a tensor that two files have."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, FileTensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in list(opened.keys()):
                    if name in found:
                        raise ModelError(f"model {file.parent}: tensor {name} is in {found[name].file.name} and in {file.name}")
                    part = opened.get_slice(name)
                    found[name] = FileTensor(dtype=part.get_dtype(), shape=tuple(part.get_shape()), file=file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model file {file} is damaged or cut short ({str(error).splitlines()[0]}): copy or fetch it again") from None
    return found


def _files_of(place: Path, name: str) -> list[Path]:
    if (place / name).is_file():
        return [place / name]
    index = place / f"{name}{INDEX_SUFFIX}"
    if not index.is_file():
        return []
    parts = _json_object(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
        raise ModelError(f"model {place}: {index.name} has no weight_map of file names: copy or fetch it again")
    files = [place / part for part in sorted(set(parts.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"model {place}: {index.name} names {len(files)} files, and {len(missing)} of them are missing, the first {missing[0]}: "
            "copy or fetch them"
        )
    return files


def _json_object(file: Path) -> dict[str, Any]:
    _require_no_pointer(file)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"model file {file} is no JSON object")
    return values


def _require_no_pointer(file: Path) -> None:
    """Raise ModelError for what git leaves in place of a file that its LFS has not fetched."""
    try:
        with open(file, "rb") as opened:
            is_pointer = opened.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise ModelError(f"model file {file} cannot be read: {error.strerror}") from None
    if is_pointer:
        raise ModelError(f"model file {file} is a pointer of git-lfs, not the file: run `git lfs pull` in its directory")


def _scaling(values: Mapping[str, Any]) -> float:
    """Return the factor by which position embeddings reach beyond the limit in the config."""
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    tables = [parameters, *parameters.values()] if isinstance(parameters, dict) else []
    for table in tables:
        kind = table.get("rope_type", table.get("type")) if isinstance(table, dict) else None
        if isinstance(kind, str) and kind not in SCALED_ALREADY and isinstance(table.get("factor"), (int, float)):
            return float(table["factor"])
    return 1.0
