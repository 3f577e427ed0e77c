"""What runs inside vLLM's worker process, beside the model: it loads weights and reads them back, pools hidden states
and seeds the sampler.

CPU kernels pack matrices into a layout of their own and drop the originals. So the weights that a live module computes
with are read by computing with it.

With tensor parallelism each rank has such a process, and holds parts of most tensors: rows of those whose output is
divided (projections, embedding and head), columns of those whose input is."""

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from actors.engine import EngineError, WeightMismatch
from actors.orphans import end_with
from actors.pooled_states import PooledStates
from learners.weights import HEAD, Part, WeightSnapshot, digest, load_snapshot, probed_columns

OWNER = "REPEXP_ENGINE_OWNER"
"""The variable with the process id of an engine's owner, for an engine in processes of its own: vLLM's engine core does
not end with the process that started it."""
if (owner := int(os.environ.get(OWNER, os.getpid()))) != os.getpid():
    end_with(owner)  # now, because the model is not loaded yet

Packed = Mapping[str, Sequence[str]]  # by the name of a fused matrix, those of its parts


class EngineWorker:
    """Mixed into vLLM's worker class, whose `collective_rpc` calls these methods."""

    model_runner: Any
    vllm_config: Any
    rank: int

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

    def held_weights(self, shapes: dict[str, tuple[int, ...]], with_head: bool, version: int) -> dict[str, list[Part]]:
        """Return, as of `version`, the parts of the tensors that the model computes with now, here. `shapes` names the
        tensors. The output head is added under its own name if `with_head`."""
        model = self.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if with_head and HEAD not in shapes:
            shapes[HEAD] = (getattr(head, "org_vocab_size", head.weight.shape[0]), head.weight.shape[1]) if head is not None else ()
        modules = dict(model.named_modules())
        packed = getattr(model, "packed_modules_mapping", {})
        _require_all_parameters(model, packed, shapes)
        num_ranks = self.vllm_config.parallel_config.tensor_parallel_size  # an engine is divided in no other way
        held = HeldTensors(modules, packed, shapes, self.rank, num_ranks)
        with torch.inference_mode():
            return {name: held.parts(name, version) for name in shapes}


def _require_all_parameters(model: Any, packed: Packed, given: Mapping[str, Any]) -> None:
    """Raise WeightMismatch if the snapshot lacks a parameter of the model, which would then keep its old weights."""
    for name, _ in model.named_parameters():
        module_name, _, parameter = name.rpartition(".")
        parent, _, leaf = module_name.rpartition(".")
        for part in packed.get(leaf, [leaf]):
            tensor = ".".join(filter(None, (parent, part, parameter)))
            if tensor not in given:
                raise WeightMismatch(f"the published weights have no tensor {tensor}, which the engine's model has")


class _Rows(NamedTuple):
    """Adjacent rows of a tensor, from row `first` on, that a module holds from its own row `local` on."""

    first: int
    local: int
    num: int


class HeldTensors:
    """The tensors of Hugging Face's names that one rank's live modules compute with."""

    def __init__(
        self, modules: Mapping[str, Any], packed: Packed, shapes: Mapping[str, tuple[int, ...]], rank: int = 0, num_ranks: int = 1
    ) -> None:
        self._modules, self._packed, self._shapes = modules, packed, shapes
        self._rank, self._num_ranks = rank, num_ranks

    def parts(self, name: str, version: int) -> list[Part]:
        """Return the parts of a tensor that are here: of a matrix, what is here of the columns that the fingerprint of
        `version` has. Raises EngineError if the model has no such module."""
        module, parameter, rows = self._find(name)
        shape = self._shapes[name]
        if len(shape) != 2:
            values, first, columns = getattr(module, parameter), 0, None
        else:
            width = getattr(module, "input_size_per_partition", shape[1])
            first = 0 if width == shape[1] else self._rank * width
            probed = probed_columns(name, shape[1], version)
            columns = probed[(probed >= first) & (probed < first + width)]
            values = _columns_of(module, columns - first) if len(columns) else torch.empty(0, 0)
        return [
            Part(row, first, digest(values[local : local + num], row=row, columns=columns)) if values.dim() else Part(0, 0, digest(values))
            for row, local, num in rows
        ]

    def _find(self, name: str) -> tuple[Any, str, list[_Rows]]:
        """Return the module that holds `name`, maybe fused with others, its parameter, and the rows of `name` in it."""
        module_name, _, parameter = name.rpartition(".")
        parent, _, leaf = module_name.rpartition(".")
        fused = next((fused for fused, parts in self._packed.items() if leaf in parts), leaf)
        module = self._modules.get(f"{parent}.{fused}" if parent else fused)
        if module is None:
            raise EngineError(f"the engine has no module for tensor {name}")
        if (shard := getattr(module, "shard_indices", None)) is not None:  # of the vocabulary, without its padding
            return module, parameter, [_Rows(shard.org_vocab_start_index, 0, shard.num_org_elements)]
        held = getattr(module, "output_partition_sizes", None) or getattr(module, parameter).shape[:1]  # by output: the rows that are here
        num_rows = self._shapes[name][0] if self._shapes[name] else 1
        if fused != leaf:
            position = list(self._packed[fused]).index(leaf)
            return module, parameter, [_Rows(self._first(held[position], num_rows), sum(held[:position]), held[position])]
        if not held or sum(held) == num_rows:
            return module, parameter, [_Rows(0, 0, num_rows)]
        return module, parameter, self._divided(module, held)

    def _divided(self, module: Any, held: Sequence[int]) -> list[_Rows]:
        """Return the rows of a matrix that a rank has a part of each output of. Heads of keys and values may be on
        several ranks."""
        copies = [1, *[getattr(module, "num_kv_head_replicas", 1)] * (len(held) - 1)]
        whole = [num * self._num_ranks // times for num, times in zip(held, copies, strict=True)]
        begins = zip(accumulate(whole, initial=0), accumulate(held, initial=0), held, whole, strict=False)
        return [_Rows(begin + self._first(num, of), local, num) for begin, local, num, of in begins]

    def _first(self, num: int, of: int) -> int:
        """Return the first of the `num` rows of `of` that this rank holds. Where ranks hold more than all, neighbors
        hold the same."""
        return self._rank // (num * self._num_ranks // of) * num


def _columns_of(module: Any, columns: Tensor) -> Tensor:
    """Return columns of the module's matrix. Where the matrix is packed, its kernel is applied to one-hot inputs: the
    result is exactly a column, because 0·v + 1·w = w."""
    if "Embedding" in type(module).__name__ or not hasattr(module, "cpu_linear"):  # a lookup, or not packed
        return module.weight[:, columns.to(module.weight.device)]
    width = module.input_size_per_partition if hasattr(module, "input_size_per_partition") else module.embedding_dim
    inputs = torch.zeros(len(columns), width, dtype=module.weight.dtype)
    inputs[torch.arange(len(columns)), columns] = 1
    return module.cpu_linear(inputs, module.weight, None).T
