"""`rollout.engine_args`, the arguments of vLLM's own: which names there are, and which this project gives itself.

    require_own(arguments)       # with the configuration; raises ValueError
    require_known(arguments)     # in the driver, and where the engine starts; raises ExtensionError

vLLM is not imported, which takes seconds: the names are read from the source of the installed one. Where none is
installed, a name is checked when an engine starts."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from buffers.extensions import ExtensionError, did_you_mean

SET_BY_KEYS = {
    "model": "model",
    "tokenizer": "model",
    "seed": "seed",
    "dtype": "rollout.dtype",
    "max_model_len": "rollout.max_model_len",
    "max_num_seqs": "rollout.max_sequences",
    "max_num_batched_tokens": "rollout.max_batched_tokens",
    "gpu_memory_utilization": "rollout.gpu_memory_fraction",
    "tensor_parallel_size": "rollout.tensor_parallel",
    "weight_transfer_config": "rollout.weight_transfer",
}
"""By the name of an argument, the key of the configuration that decides it."""
GIVEN = ("logprobs_mode", "async_scheduling", "worker_extension_cls", "distributed_executor_backend")
"""Arguments that versions, log-probs and the proof of the weights depend on."""
OTHER_DIVISIONS = ("pipeline_parallel", "data_parallel", "prefill_context_parallel", "decode_context_parallel", "nnodes", "node_rank")
"""How the names begin that divide an engine in ways which the proof of the weights does not know."""


def require_own(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that the project gives vLLM itself."""
    for name in arguments:
        if name in SET_BY_KEYS:
            raise ValueError(f"engine_args.{name}: this is what the key {SET_BY_KEYS[name]} says: set that, and leave it out here")
        if name in GIVEN:
            raise ValueError(f"engine_args.{name}: the project needs a value of its own for it: leave it out")
        if name.startswith(OTHER_DIVISIONS):
            raise ValueError(f"engine_args.{name}: an engine is divided by rollout.tensor_parallel only: leave it out")


def require_known(arguments: Mapping[str, Any]) -> None:
    """Raise ExtensionError for a name that the installed vLLM does not have. Where it cannot be told, do nothing."""
    known = vllm_arguments() if arguments else None
    for name in arguments:
        if known is not None and name not in known:
            raise ExtensionError(f"rollout.engine_args.{name}: vLLM has no such argument{did_you_mean(name, sorted(known))}")


@cache
def vllm_arguments() -> frozenset[str] | None:
    """Return the names of vLLM's engine arguments, or None where no vLLM is installed."""
    package = importlib.util.find_spec("vllm")
    source = Path(package.origin).parent / "engine" / "arg_utils.py" if package and package.origin else None
    if source is None or not source.is_file():
        return None
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    fields = next((node.body for node in classes if node.name == "EngineArgs"), [])
    return frozenset(field.target.id for field in fields if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)) or None
