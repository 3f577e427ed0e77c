"""Whether a model was loaded whole. transformers fills what its files lack with random numbers and only warns.

model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
require_loaded(path, model, report)          # where weights are read: raises ModelError
require_whole(path, report)                  # the part that needs no weights (`learners.model_check`)"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from learners.models import ModelError
from learners.supported import text_config

OLD_CONSTANT = ".masked_bias"
"""The number that older GPT-2, GPT-J and GPT-NeoX models keep for masked positions. No engine reads it."""


def require_loaded(path: str, model: Any, report: Mapping[str, Any]) -> None:
    """Raise ModelError unless all of `model` came from its files, and its tied head is its embedding."""
    require_whole(path, report)
    if (pair := untied(model)) is not None:
        raise two_matrices(path, *pair)


def require_whole(path: str, report: Mapping[str, Any]) -> None:
    """Raise ModelError for a tensor that the files lack, have in another shape, or have without a place in the model.
    The report names no buffer that transformers makes by itself, such as `attn.bias` and `rotary_emb.inv_freq`."""
    missing = report["missing_keys"]
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith(OLD_CONSTANT)]
    if missing:
        what = f"its files lack {_first(missing)}, which would be filled with random numbers"
        others = f"; they have {_first(unexpected)}, which the model does not know" if unexpected else ""
        raise ModelError(f"model {path}: {what}{others}: copy or fetch it again, or correct config.json")
    if unexpected:
        why = "which the model does not know and would leave out: remove it from the files, or correct config.json"
        raise ModelError(f"model {path}: its files have {_first(unexpected)}, {why}")
    if mismatched := report["mismatched_keys"]:
        name, in_file, in_model = min(mismatched)
        shapes = f"the shape {list(in_file)} in its file and {list(in_model)} by config.json"
        raise ModelError(f"model {path}: tensor {_more(name, len(mismatched))} has {shapes}: correct config.json, or fetch the model again")


def untied(model: Any) -> tuple[str, str] | None:
    """Return the names of head and embedding where the config ties them and the model has both; else None."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not text_config(model).tie_word_embeddings or head.weight is embedding.weight:
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    return names[id(head.weight)], names[id(embedding.weight)]


def two_matrices(path: str, head: str, embedding: str) -> ModelError:
    """Return the refusal of a model whose files have two matrices in place of one."""
    return ModelError(
        f"model {path}: tie_word_embeddings = true makes {head} and {embedding} one matrix, and the files have two different ones: set it "
        f"to false in config.json, or remove {head} from the files"
    )


def _first(names: Collection[str]) -> str:
    return f"tensor {_more(min(names), len(names))}"


def _more(name: str, count: int) -> str:
    return name if count == 1 else f"{name} (and {count - 1} more)"
