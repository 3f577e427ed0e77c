"""A model directory, looked at before anything starts: the headers of its files, its config and its tokenizer.

    facts = look_at(directory, computed=True)    # raises ModelError and ModelUnsupported: one line that says what to do
    facts.max_tokens, facts.num_embeddings       # 8192, 49152

transformers itself is asked which tensors it would find: it loads the headers as tensors without data. So renamed and
fused tensors are understood as they are when weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from learners.forward import meta_loading, without_weights
from learners.loading import require_whole, two_matrices, untied
from learners.model_files import TokenLimit, read_config, read_generation_config, tensors_in, text_values, token_limit, weight_files
from learners.models import ModelError, load_tokenizer
from learners.supported import longest_supported, require_supported, text_config

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""By the words of the safetensors format."""
_NUMBERED = re.compile(r"(?P<before>.*)\.(?P<number>\d+)\.(?P<after>[^\d]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What a job must know of a model."""

    path: str
    limit: TokenLimit | None
    """The most tokens of a prompt with its response, and why. None: the model says nothing."""
    num_embeddings: int
    """The number of token ids that the model has."""
    max_token_id: int
    """The largest id of its tokenizer."""


def look_at(path: str, *, computed: bool = True) -> ModelFacts:
    """Return the facts of the model in the directory `path`. Raises ModelError where its files lack a tensor or have
    one too many, where a tied head is another matrix, and where its tokenizer has ids that it does not know. With
    `computed`, a pass of `learners.forward` runs on it, so that it must not be quantized, ModelUnsupported is raised as
    by `require_supported`, and the limit is what such a pass allows."""
    config, files = read_config(path), weight_files(path)
    method = config.get("quantization_config") or text_values(config).get("quantization_config")
    if method and computed:
        kind = method.get("quant_method", "unknown method") if isinstance(method, dict) else method
        raise ModelError(f"model {path} is quantized ({kind}), and only an engine could use it: name the model that it was made from")
    model = _without_weights(path)
    _require_head(path, model, config)
    _require_generation(path)
    if not method:
        _require_tensors(path, files)
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])
    max_token_id = _require_known_ids(path, num_embeddings)
    limit = token_limit(text_config(model).to_dict())
    if computed:
        require_supported(model)
        reach = longest_supported(model)
        if reach is not None and (limit is None or reach < limit.tokens):
            limit = TokenLimit(tokens=reach, key="a sliding window, or position embeddings that depend on the longest sequence")
    return ModelFacts(path=path, limit=limit, num_embeddings=num_embeddings, max_token_id=max_token_id)


def _without_weights(path: str) -> Any:
    try:
        return without_weights(path)
    except Exception as error:  # a seam: what transformers raises for a config that it cannot make a model of
        reason = " ".join(str(error).split()) or type(error).__name__  # its first line may only be a heading
        raise ModelError(f"model {path}: no causal language model can be made of its config.json: {reason}") from None


def _require_head(path: str, model: Any, config: Mapping[str, Any]) -> None:
    """Raise ModelError for a model that was saved without its head: an engine would not generate with it."""
    names = config.get("architectures")
    saved = names[0] if isinstance(names, list) and names else None
    if isinstance(saved, str) and saved.endswith("Model") and saved != type(model).__name__:
        raise ModelError(
            f"model {path}: config.json says that its files are a {saved}, which has no language model head: save it as "
            f"{type(model).__name__}, or correct architectures"
        )


def _require_generation(path: str) -> None:
    """Raise ModelError for a generation_config.json with which no engine starts, or that ends responses by no id."""
    from transformers import GenerationConfig

    values = read_generation_config(path) or {}
    ends = values.get("eos_token_id")
    if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise ModelError(f"model {path}: generation_config.json has eos_token_id = {ends!r}: set it to an id or a list of ids")
    try:
        GenerationConfig.from_dict(values)
    except Exception as error:  # a seam: each of its settings has checks of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"model {path}: generation_config.json cannot be used: {reason}") from None


def _require_tensors(path: str, files: list[Path]) -> None:
    """Raise ModelError for what `require_loaded` would find with the weights."""
    if files[0].suffix == ".safetensors":
        tensors = tensors_in(files)
        places = {name: tensor.file for name, tensor in tensors.items()}
        state = {
            name: torch.empty(tensor.shape, dtype=DTYPES.get(tensor.dtype, torch.uint8), device="meta") for name, tensor in tensors.items()
        }
    else:
        state, places = _pickled(files)
    try:
        model, report = meta_loading(path, state)
    except RuntimeError:
        gap = _first_gap(state)
        what = f"its files lack tensor {gap}" if gap else "their shapes contradict each other"
        raise ModelError(f"model {path}: tensors that are loaded as one do not fit together: {what}: copy or fetch it again") from None
    require_whole(path, report)
    for name, _ in model.named_parameters():
        if name in state and not state[name].is_floating_point():
            raise ModelError(f"model {path}: tensor {name} holds no floating-point numbers: name the model before it was quantized")
    pair = untied(model)  # of tensors without data, those of which both are there are never tied
    if pair is not None and not _are_equal(*(_value(places, name) for name in pair)):
        raise two_matrices(path, *pair)


def _first_gap(names: Iterable[str]) -> str | None:
    """Return the name of a tensor that is missing among numbered ones, such as those of experts, or None."""
    numbers: dict[str, dict[str, set[int]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            numbers.setdefault(match["before"], {}).setdefault(match["after"], set()).add(int(match["number"]))
    for before, by_name in sorted(numbers.items()):
        everywhere = set().union(*by_name.values())
        for after, there in sorted(by_name.items()):
            if gone := everywhere - there:
                return f"{before}.{min(gone)}.{after}"
    return None


def _pickled(files: list[Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the tensors of pickled files without data, and the file of each."""
    state: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for file in files:
        try:
            held = dict(torch.load(file, map_location="meta", weights_only=True))
            state |= held
            places |= dict.fromkeys(held, file)
        except Exception as error:  # a seam: pickle, zip and torch each have errors of their own for a damaged file
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"model file {file} cannot be read: {reason}") from None
    if others := [name for name, tensor in state.items() if not (isinstance(name, str) and isinstance(tensor, torch.Tensor))]:
        raise ModelError(f"model file {files[0]} holds more than tensors by name, the first {others[0]!r}: save the state_dict alone")
    return state, places


def _value(places: Mapping[str, Path], name: str) -> Tensor:
    """Return one tensor, whose name in the files may lack or have a prefix. The others are not read."""
    from safetensors import safe_open

    found = next(other for other in sorted(places, key=len) if other == name or other.endswith(f".{name}") or name.endswith(f".{other}"))
    file = places[found]
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            value: Tensor = opened.get_tensor(found)
    else:
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))[found]
    return value


def _are_equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second) if first.dtype == second.dtype else torch.equal(first.float(), second.float())


def _require_known_ids(path: str, num_embeddings: int) -> int:
    vocabulary: dict[str, int] = load_tokenizer(path).get_vocab()
    if not vocabulary:
        raise ModelError(f"model {path}: its tokenizer has no tokens: copy or fetch its files (tokenizer.json)")
    last = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[last] >= num_embeddings:
        beyond = sum(number >= num_embeddings for number in vocabulary.values())
        raise ModelError(
            f"model {path}: its tokenizer has {beyond} ids beyond the {num_embeddings} rows of the embedding, up to {vocabulary[last]} "
            f"({last!r}): take the tokenizer of this model, or resize the model's embedding"
        )
    return vocabulary[last]
