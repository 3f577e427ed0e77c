"""How the layers of a decoder are run: with activations kept or computed again, compiled or not.

    run_layers(model, recomputed=True, compiled=False)      # in place, once, after loading (and sharding over ranks)

Neither changes what is computed. A layer is a module that the model may not be split below. The rest (embeddings, last
norm, head) is not changed."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

COMPILERS = ("g++", "clang++")


class CompilerMissing(RuntimeError):
    """Layers cannot be compiled here. The message is one line that names the key and the fix."""


def run_layers(model: Any, *, recomputed: bool = False, compiled: bool = False) -> None:
    """Change how the layers of `model` are run, in place. With `recomputed`, only the input of each layer is kept for
    the backward pass, which computes the rest again. With `compiled`, torch.compile makes one piece of code for passes
    of any length. Raises ValueError for a model that does not say what its layers are."""
    layers = layers_of(model)
    if not layers and (recomputed or compiled):
        why = "does not say which of its modules are layers: set activation_checkpointing and compile to false"
        raise ValueError(f"{type(model).__name__} {why}")
    for layer in layers:
        if compiled:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        if recomputed:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def layers_of(model: Any) -> list[Any]:
    """Return the modules that a model may not be split below, in order. The classes of their bases count too, because
    FSDP gives a sharded module a class that is derived from its own."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if any(cls.__name__ in names for cls in type(module).__mro__)]


def require_compiler(device: torch.device) -> None:
    """Raise CompilerMissing if torch.compile has no compiler here: Triton on a GPU, a C++ compiler on a CPU."""
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        raise CompilerMissing("learner.compile = true needs the package triton: install it, or set learner.compile to false")
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise CompilerMissing(
            f"learner.compile = true needs a C++ compiler ({' or '.join(COMPILERS)}, or what $CXX names), and there is none here: install "
            "one, or set learner.compile to false"
        )
