"""Which models a packed pass computes correctly. Others are refused by their class's name.

    require_supported(model, longest=1536)          # by what the model says about itself; it may have no weights
    require_independent(model, states_of)           # by a pass over a few tokens

A packed pass runs responses through the model side by side (`learners.packing`), and only attention knows where one
ends. A model that mixes tokens anywhere else (a convolution, a state space, linear attention) would carry state from
each response to the next. Axes: T tokens, H hidden size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.packing import GroupTokens, PackedTokens, pack, prefix_tree

SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""The names by which models' configs change logits behind the head (Gemma 2, Cohere, Granite)."""
ATTENTION_LAYERS = ("full_attention", "sliding_attention")


class ModelUnsupported(ValueError):
    """A packed pass would compute another model. The message is one line that names its class."""


def require_supported(model: Any, *, longest: int | None = None) -> None:
    """Raise ModelUnsupported for a model that a packed pass would compute wrongly. `longest` is the most tokens of a
    prompt with its response, if it is known. transformers takes the frequencies of "dynamic" and "longrope" position
    embeddings from the longest sequence of a pass, so a response would depend on its neighbors. "longrope" has two
    tables and uses the first up to some length."""
    others = sorted(set(getattr(text_config(model), "layer_types", None) or ()) - set(ATTENTION_LAYERS))
    if named := "a recurrent state" if getattr(model, "_is_stateful", False) else ", ".join(others):
        raise _refusal(model, f"mixes tokens elsewhere than in attention ({named})")
    if not getattr(model, "_supports_attention_backend", False):
        raise _refusal(model, "has an attention of its own, in whose place transformers puts no other")
    modules = list(model.modules())
    if any(getattr(module, "is_causal", True) is False for module in modules):
        raise _refusal(model, "attends to later tokens too")
    for kind, reach in _rope_tables(model, modules):
        if kind == "dynamic" or (longest is not None and longest > reach):
            limit = "" if kind == "dynamic" else f" beyond {reach} tokens, and prompt and response may have {longest}"
            raise _refusal(model, f'takes its position embeddings ("{kind}") from the longest sequence of a pass{limit}')
    window = min(filter(None, (_window(model, module) for module in modules)), default=None)
    if longest is not None and window is not None and longest > window:
        raise _refusal(model, f"attends within a window of {window} tokens, and prompt and response may have {longest}")


def longest_supported(model: Any) -> int | None:
    """Return the most tokens of a prompt with its response that `require_supported` allows; None where any are."""
    modules = list(model.modules())
    windows = filter(None, (_window(model, module) for module in modules))
    return min([*windows, *(reach for _, reach in _rope_tables(model, modules))], default=None)


def require_short(model: Any, longest: int) -> None:
    """Raise ModelUnsupported if a branch of `longest` tokens would change other branches' position embeddings."""
    for kind, reach in _rope_tables(model, model.modules()):
        if longest > reach:
            why = f'takes its position embeddings ("{kind}") from the longest sequence of a pass, which has {longest} tokens'
            raise _refusal(model, why)


def require_plain_logits(model: Any) -> None:
    """Raise ModelUnsupported for a model that changes its logits behind its head."""
    config = text_config(model)
    if changed := [name for name in SCALED_LOGITS if getattr(config, name, None) not in (None, 1)]:
        raise ModelUnsupported(f"{type(model).__name__} changes its logits by {', '.join(changed)}, which the learner does not support")


@torch.no_grad()
def require_independent(model: Any, states_of: Callable[[PackedTokens], Tensor]) -> None:
    """Raise ModelUnsupported unless a response's states are independent of its neighbors. Takes two passes over a few
    tokens. Of three branches, the first and the last must have the same states (T, H) for any tokens of the middle one.
    A model that cannot run the pass is refused too. States must be equal bit for bit, except that the matrix products
    of experts change in shape: so the square root of a rounding error is allowed."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt, first, second, other, last = ((np.arange(3) + 3 * i + 1) * vocabulary // 16 for i in range(5))
    responses = [[first, second, last], [first, other, last]]
    passes = [pack(prefix_tree([GroupTokens(prompt_ids=prompt, responses=ids)], own_states=True)) for ids in responses]
    device = model.get_input_embeddings().weight.device
    try:
        states, others = (states_of(packed.to(device)) for packed in passes)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a seam: whatever it is in the code of a model that was not written for this pass
        raise _refusal(model, f"cannot be run so: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}") from error
    kept_T = torch.from_numpy(~np.isin(passes[0].input_ids_T.numpy(), second)).to(device)
    states_TH, others_TH = states[kept_T].double(), others[kept_T].double()
    moved_T = (states_TH - others_TH).norm(dim=-1) / states_TH.norm(dim=-1)
    if not float(moved_T.max()) <= torch.finfo(states.dtype).eps ** 0.5:
        raise _refusal(model, "mixes tokens elsewhere than in attention: the states of a response change with those beside it")


def text_config(model: Any) -> Any:
    """Return the part of a model's config that describes its language model: that of several models nests it."""
    nested = getattr(model.config, "get_text_config", None)
    return nested() if nested is not None else model.config


def _window(model: Any, module: Any) -> int | None:
    """Return the sliding window of an attention module, or None. Some modules store it, others ask the config."""
    if not type(module).__name__.endswith("Attention"):
        return None
    window: int | None = getattr(module, "sliding_window", getattr(text_config(model), "sliding_window", None))
    return window


def _rope_tables(model: Any, modules: Any) -> list[tuple[str, int]]:
    """Return the position embeddings that depend on the longest sequence of a pass, and up to where they do not."""
    found, config = [], text_config(model)
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if kind == "dynamic":
                found.append((kind, config.max_position_embeddings))
            elif kind == "longrope":
                parameters = config.rope_parameters if layer is None else config.rope_parameters[layer]
                found.append((kind, parameters["original_max_position_embeddings"]))
    return found


def _refusal(model: Any, why: str) -> ModelUnsupported:
    return ModelUnsupported(f"{type(model).__name__} {why}: the learner's packed rows do not support that")
