"""How the layers of a decoder are run: with their activations kept or computed again, as they stand or compiled.

    run_layers(model, recomputed=True, compiled=False)      # in place, once, after it is loaded (and divided over ranks)

Neither changes what is computed. A layer is whatever the model may not be split below; the rest of it, embeddings, the
last norm and the head, is run as ever."""

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
    """Layers cannot be compiled here; the message is one line that names the key and the mend."""


def run_layers(model: Any, *, recomputed: bool = False, compiled: bool = False) -> None:
    """`recomputed`: of each layer only the input is kept for the backward pass, which computes the rest again.
    `compiled`: by torch.compile, all layers as one piece of code for passes of any length.

    Raises ValueError for a model that does not say what its layers are.
    """
    layers = layers_of(model)
    if not layers and (recomputed or compiled):
        raise ValueError(
            f"{type(model).__name__} does not say which of its modules are layers: set activation_checkpointing and compile to false"
        )
    for layer in layers:
        if compiled:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        if recomputed:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def layers_of(model: Any) -> list[Any]:
    """The modules that a model may not be split below, in order. FSDP gives a module that it has divided a class
    derived from its own."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if any(cls.__name__ in names for cls in type(module).__mro__)]


def require_compiler(device: torch.device) -> None:
    """Raises CompilerMissing where torch.compile has nothing to compile with: Triton on a GPU, a C++ compiler on a
    CPU."""
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        raise CompilerMissing("learner.compile = true needs the package triton: install it, or set learner.compile to false")
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise CompilerMissing(
            f"learner.compile = true needs a C++ compiler ({' or '.join(COMPILERS)}, or what $CXX names), and there is none here: install "
            "one, or set learner.compile to false"
        )
