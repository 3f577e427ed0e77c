"""Reading weights back from vLLM's modules, on stand-ins: fused projections, biases, packed kernels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from actors.engine import EngineError, WeightMismatch
from actors.vllm_worker import _read, _require_all_parameters

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
SIZES = {"q_proj": 4, "k_proj": 2, "v_proj": 2}
SHAPES = {f"attn.{part}.weight": (rows, 3) for part, rows in SIZES.items()} | {f"attn.{part}.bias": (rows,) for part, rows in SIZES.items()}


@pytest.fixture
def hub() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}


@pytest.fixture
def modules(hub: dict[str, torch.Tensor]) -> dict[str, SimpleNamespace]:
    """The modules of a model with one fused projection, whose matrix only its kernel can use, as on CPU."""
    packed = torch.cat([hub[f"attn.{part}.weight"] for part in SIZES])
    bias = torch.cat([hub[f"attn.{part}.bias"] for part in SIZES])
    fused = SimpleNamespace(
        weight=torch.empty(0, dtype=torch.bfloat16), bias=bias, input_size_per_partition=3, cpu_linear=lambda x, weight, bias: x @ packed.T
    )
    return {"attn.qkv_proj": fused}


@pytest.mark.parametrize("part", SIZES)
def test_columns_of_a_packed_fused_matrix_are_exact(hub, modules, part):
    columns = torch.tensor([0, 2])
    assert torch.equal(_read(modules, PACKED, SHAPES, f"attn.{part}.weight", columns), hub[f"attn.{part}.weight"][:, columns])


@pytest.mark.parametrize("part", SIZES)
def test_bias_of_a_fused_projection_is_its_own_part(hub, modules, part):
    assert torch.equal(_read(modules, PACKED, SHAPES, f"attn.{part}.bias", None), hub[f"attn.{part}.bias"])


def test_tensor_without_a_module_is_named():
    with pytest.raises(EngineError, match=r"no module for tensor mlp\.up\.weight"):
        _read({}, PACKED, {"mlp.up.weight": (2, 2)}, "mlp.up.weight", torch.tensor([0]))


def test_parameter_that_was_not_published_is_named():
    model = SimpleNamespace(named_parameters=lambda: [("attn.qkv_proj.weight", None), ("norm.weight", None)])
    with pytest.raises(WeightMismatch, match=r"no tensor attn\.v_proj\.weight"):
        _require_all_parameters(model, PACKED, {"attn.q_proj.weight": 0, "attn.k_proj.weight": 0, "norm.weight": 0})
    complete = {"attn.q_proj.weight": 0, "attn.k_proj.weight": 0, "attn.v_proj.weight": 0, "norm.weight": 0}
    _require_all_parameters(model, PACKED, complete)
