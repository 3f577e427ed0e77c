"""What runs inside vLLM's worker process, beside the model: it loads weights and reads them back, pools hidden states
and seeds the sampler.

CPU kernels pack matrices into a layout of their own and drop the originals. So the weights that a live module computes
with are read by computing with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.engine import EngineError, WeightMismatch
from actors.pooled_states import PooledStates
from learners.weights import HEAD, WeightSnapshot, fingerprint_by, load_snapshot

Packed = Mapping[str, Sequence[str]]  # by the name of a fused matrix, those of its parts


class EngineWorker:
    """Mixed into vLLM's worker class, whose `collective_rpc` calls these methods."""

    model_runner: Any

    def seed_sampler(self, seed: int) -> None:
        torch.manual_seed(seed)

    def pool_states(self) -> None:
        """Start to keep the mean of the states that each request's tokens are sampled from."""
        self._pooled = PooledStates()
        model = self.model_runner.model
        compute_logits = model.compute_logits

        def pooled_compute_logits(states_NH: Tensor, *args: Any, **options: Any) -> Any:
            self._pool(states_NH)
            return compute_logits(states_NH, *args, **options)

        model.compute_logits = pooled_compute_logits

    def _pool(self, states_NH: Tensor) -> None:
        """Add the states of a step: one row for each scheduled request, in the runner's order. A prompt that is taken
        in by chunks samples no token before its last chunk."""
        runner = self.model_runner
        keys = runner.input_batch.req_ids
        if len(keys) != len(states_NH):
            raise EngineError(f"{len(states_NH)} hidden states for {len(keys)} requests: pooling does not know speculative decoding")
        rows = np.flatnonzero(~runner.discard_request_mask.np[: len(keys)]).tolist()
        external_keys = [keys[row][:-9] for row in rows]  # vLLM has appended "-" and eight characters
        self._pooled.add(external_keys, states_NH if len(rows) == len(keys) else states_NH[rows])

    def take_states(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the mean states of ended requests as float32 bytes. A request without a token has none."""
        return {key: mean_H.tobytes() for key, mean_H in self._pooled.take_all(keys).items()}

    def load_weights_from(self, source: WeightSnapshot | str) -> None:
        """Load all tensors from memory or from a file, and pack a tied head again (see `actors.vllm_engine`)."""
        snapshot = load_snapshot(Path(source)) if isinstance(source, str) else source
        self.model_runner.reload_weights(weights_iterator=snapshot.tensors())
        model = self.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        if head is not None and hasattr(head, "cpu_linear"):
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def held_weights(self, shapes: dict[str, tuple[int, ...]], with_head: bool, version: int) -> dict[str, str]:
        """Return the fingerprint, as of `version`, of the tensors that the model computes with now. `shapes` names the
        tensors. The output head is added under its own name if `with_head`."""
        model = self.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if with_head and HEAD not in shapes:
            shapes[HEAD] = (head.weight.shape[0], head.weight.shape[1]) if head is not None else ()
        modules = dict(model.named_modules())
        packed = getattr(model, "packed_modules_mapping", {})
        _require_all_parameters(model, packed, shapes)
        with torch.inference_mode():
            return fingerprint_by(shapes, lambda name, columns: _read(modules, packed, shapes, name, columns), version=version)


def _require_all_parameters(model: Any, packed: Packed, given: Mapping[str, Any]) -> None:
    """Raise WeightMismatch if the snapshot lacks a parameter of the model, which would then keep its old weights."""
    for name, _ in model.named_parameters():
        module_name, _, parameter = name.rpartition(".")
        parent, _, leaf = module_name.rpartition(".")
        for part in packed.get(leaf, [leaf]):
            tensor = ".".join(filter(None, (parent, part, parameter)))
            if tensor not in given:
                raise WeightMismatch(f"the published weights have no tensor {tensor}, which the engine's model has")


def _read(modules: Mapping[str, Any], packed: Packed, shapes: Mapping[str, tuple[int, ...]], name: str, columns: Tensor | None) -> Tensor:
    """Return columns of the Hugging Face matrix `name`, or a whole vector, as the live vLLM module computes with them.
    The module may hold several matrices fused into one. Raises EngineError if the model has no such module."""
    module_name, _, parameter = name.rpartition(".")
    parent, _, leaf = module_name.rpartition(".")
    fused = next((fused for fused, parts in packed.items() if leaf in parts), leaf)
    module = modules.get(f"{parent}.{fused}" if parent else fused)
    if module is None:
        raise EngineError(f"the engine has no module for tensor {name}")
    rows = slice(0, shapes[name][0])
    if fused != leaf:
        parts = [shapes[f"{parent}.{part}.{parameter}"][0] for part in packed[fused]]
        position = list(packed[fused]).index(leaf)
        rows = slice(sum(parts[:position]), sum(parts[: position + 1]))
    return (getattr(module, parameter) if columns is None else _columns_of(module, columns))[rows]


def _columns_of(module: Any, columns: Tensor) -> Tensor:
    """Return columns of the module's matrix. Where the matrix is packed, its kernel is applied to one-hot inputs: the
    result is exactly a column, because 0·v + 1·w = w."""
    if "Embedding" in type(module).__name__ or not hasattr(module, "cpu_linear"):  # a lookup, or not packed
        return module.weight[:, columns.to(module.weight.device)]
    width = module.input_size_per_partition if hasattr(module, "input_size_per_partition") else module.embedding_dim
    inputs = torch.zeros(len(columns), width, dtype=module.weight.dtype)
    inputs[torch.arange(len(columns)), columns] = 1
    return module.cpu_linear(inputs, module.weight, None).T
