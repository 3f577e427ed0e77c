"""The policy as others load it: a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learners.weights import WeightSnapshot


def save_model(model: Any, weights: WeightSnapshot, directory: str, *, tokenizer: str) -> None:
    """Write `weights` with the configuration of `model` and the tokenizer at that path, to be loaded by
    `from_pretrained`.

    `model` itself may be in parts (`learners.fsdp`), and then of another dtype: of its own it only gives what is no
    parameter."""
    from transformers import AutoTokenizer

    Path(directory).mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    model.save_pretrained(directory, state_dict={**buffers, **dict(weights.tensors())})
    model.config.dtype = weights.index[0].dtype  # else that of the parameters
    model.config.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
