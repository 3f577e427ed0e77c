"""Low-rank adapters on a frozen model (LoRA, Hu et al. 2021, arXiv:2106.09685).

    W' = W + s·B·A        s = alpha / rank        W: (O, I) frozen, A: (R, I), B: (O, R) trained

    adapters = Adapters.attach(model, config, base=path)     # in place; from now on only A and B are trained
    loss(model).backward()                                   # computes with W'
    with adapters.off(): ...                                 # with W: the reference of a divergence
    adapters.named_weights()                                 # W', under W's names: what engines receive

peft makes the adapters, names them and writes their files. The pass is our own. peft adds s·B·(A x) to W x, but an
engine receives W' in the dtype of the model, and in bfloat16 rounding W' loses most of a small step (docs/lora.md). The
learner would then train a policy that no engine samples from. So it computes with exactly the W' that is published:
formed in float32 and rounded once (`merged`), as full weights are rounded from their masters. W' is formed layer by
layer, and once more in the backward pass, so that there is no second copy of the model. The gradient ignores the
rounding, like that of a master. Axes: T tokens, I features in, O out, R rank."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.checkpoint import CheckpointError
from learners.config import LoraConfig
from learners.forward import load_causal_lm, without_weights
from learners.models import model_digest
from learners.precision import Dtype
from learners.sharding import Deferred
from learners.weights import save_model, take_snapshot

ADAPTER = "adapter"
"""The directory of an adapter in peft's format. It is never the model's own directory, because transformers would
take the merged model there for the adapter's base."""
BASE = "base.json"
_NAME = "default"
_PEFT = "peft==0.21.2"


class LoraError(ValueError):
    """These adapters are not possible here. The message is one line that names the key and the fix."""


def check_lora(model_path: str, config: LoraConfig) -> None:
    """Raise LoraError for what `Adapters.attach` would refuse, without reading weights."""
    _require_peft()
    target_names(without_weights(model_path), config)


def target_names(model: Any, config: LoraConfig) -> list[str]:
    """Return the last names of the layers to adapt, sorted. Raises LoraError for a name that this model does not have,
    and for "all-linear" if that would leave out most of a model, because its experts are one tensor."""
    head = model.get_output_embeddings()
    layers = ((name, module) for name, module in model.named_modules() if module is not head)
    there = sorted({name.rpartition(".")[2] for name, module in layers if isinstance(module, torch.nn.Linear)})
    if not there:
        why = f"{type(model).__name__} has no linear layers that adapters could be put on: set it to false"
        raise LoraError(f"learner.lora.enabled = true: {why}")
    if config.targets == "all-linear":
        if fused := next((name for name, parameter in model.named_parameters() if ".experts." in name and parameter.ndim > 2), None):
            raise LoraError(
                f'learner.lora.targets = "all-linear": the experts of {type(model).__name__} are fused into one tensor ({fused}), on which '
                f"adapters are not put: name the layers that are meant, of {', '.join(there)}, or set learner.lora.enabled to false"
            )
        return there
    if unknown := [name for name in config.targets if name not in there]:
        raise LoraError(
            f"learner.lora.targets: {', '.join(unknown)} is no linear layer of this model's body; there are: {', '.join(there)} "
            '(embeddings and the output head are not adapted), or "all-linear" for all of these'
        )
    return sorted(set(config.targets))


def _require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise LoraError(f"learner.lora.enabled = true needs the package peft: pip install --no-deps {_PEFT}, or set it to false")


class Adapters:
    """The trained part of a model that is otherwise frozen."""

    def __init__(self, wrapped: Any, base: str) -> None:
        """`wrapped` is peft's model around ours. Use `attach` or `load`."""
        self._wrapped = wrapped
        self._base = base
        self._model = wrapped.get_base_model()
        self._layers = {name: module for name, module in self._model.named_modules() if hasattr(module, "lora_A")}
        for layer in self._layers.values():
            layer.forward = functools.partial(_forward, layer)
        self._model.eval()

    @classmethod
    def attach(cls, model: Any, config: LoraConfig, *, base: str) -> Self:
        """Put new adapters into `model` of `base`. A is seeded and B is 0: it has not changed yet. Raises LoraError."""
        _require_peft()
        import peft

        settings = peft.LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=target_names(model, config),
        )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            return cls(peft.get_peft_model(model, settings, adapter_name=_NAME), base)

    @classmethod
    def load(cls, model: Any, directory: Path, *, base: str) -> Self:
        """Put what `save` wrote into a model of `base`. Raises LoraError, and CheckpointError for another base."""
        _require_peft()
        import peft

        require_base(directory, base)
        return cls(peft.PeftModel.from_pretrained(model, directory, adapter_name=_NAME), base)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Use the model as it was before training, without a copy of it."""
        with self._wrapped.disable_adapter():
            yield

    def named_weights(self) -> list[tuple[str, Tensor | Deferred]]:
        """Return the model's tensors by their names without adapters, merged where needed when they are asked for."""
        weights: list[tuple[str, Tensor | Deferred]] = []
        for name, parameter in self._model.named_parameters():
            if ".lora_" in name:
                continue
            owner, _, last = name.rpartition(".base_layer.")
            if last == "weight":
                make = functools.partial(_merged_weight, self._layers[owner])
                weights.append((f"{owner}.weight", Deferred(dtype=parameter.dtype, shape=tuple(parameter.shape), make=make)))
            else:
                weights.append((f"{owner}.{last}" if owner else name, parameter))
        return weights

    def save(self, directory: Path) -> None:
        """Write the adapters in peft's format, with the name and the digest of the model that they belong to."""
        self._wrapped.save_pretrained(directory, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # peft's own model card, which says nothing
        (directory / BASE).write_text(json.dumps({"model": self._base, "digest": model_digest(self._base)}))


def write_merged(adapter: Path, directory: str, *, base: str, dtype: Dtype) -> None:
    """Write the policy of an adapter that `Adapters.save` wrote as a Hugging Face directory. It is bit for bit the
    policy of a learner of this `dtype`. Raises as `Adapters.load` does."""
    weights = Adapters.load(model := load_causal_lm(base, dtype=dtype), adapter, base=base).named_weights()
    save_model(model, take_snapshot(weights, version=0), directory, tokenizer=base)


def require_base(directory: Path, base: str) -> None:
    """Raise CheckpointError unless the adapter in `directory` belongs to the model at `base`, weight for weight."""
    saved = json.loads((directory / BASE).read_text())
    if saved["digest"] != (found := model_digest(base)):
        raise CheckpointError(
            f"the adapter in {directory} belongs to the weights that {saved['model']} had (digest {saved['digest']}) and those of {base} "
            f"are others (digest {found}): give the model back, or start a new run"
        )


def merged(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """Return W + s·B·A (O, I), computed in float32 or wider and rounded once to the dtype of W. s is `scale`."""
    wide = torch.promote_types(weight_OI.dtype, torch.float32)
    return torch.addmm(weight_OI.to(wide), b_OR.to(wide), a_RI.to(wide), alpha=scale).to(weight_OI.dtype)


def _parts(layer: Any) -> tuple[Tensor, Tensor, Tensor, float]:
    return layer.base_layer.weight, layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, layer.scaling[_NAME]


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    return merged(*_parts(layer))


def _forward(layer: Any, x: Tensor) -> Tensor:
    apply: Any = _MergedLinear.apply
    output: Tensor = layer.base_layer(x) if layer.disable_adapters else apply(x, layer.base_layer.bias, *_parts(layer))
    return output


class _MergedLinear(torch.autograd.Function):
    """y = W' x + bias. Only x, W, A and B are kept for the backward pass:

        ∂x = W'ᵀ ∂y        ∂A = s·(∂y B)ᵀ x        ∂B = s·∂yᵀ (x Aᵀ)

    Neither W' nor its gradient exists longer than the layer's own computation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR)
        ctx.scale = scale
        return torch.nn.functional.linear(x, merged(weight_OI, a_RI, b_OR, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, a_RI, b_OR = ctx.saved_tensors
        dx = dy @ merged(weight_OI, a_RI, b_OR, ctx.scale) if ctx.needs_input_grad[0] else None
        x_TI, dy_TO = x.flatten(0, -2), dy.flatten(0, -2)
        da_RI = (dy_TO @ b_OR.to(dy.dtype)).t() @ x_TI
        db_OR = dy_TO.t() @ (x_TI @ a_RI.to(x.dtype).t())
        return dx, None, None, ctx.scale * da_RI.to(a_RI.dtype), ctx.scale * db_OR.to(b_OR.dtype), None
