"""Reading weights back from vLLM's modules, on stand-ins: fused projections, biases, packed kernels, several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.engine import EngineError, WeightMismatch
from actors.vllm_worker import OWNER, HeldTensors, _require_all_parameters
from learners.weights import Part, fingerprint, first_mismatch_of_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
SIZES = {"q_proj": 4, "k_proj": 2, "v_proj": 2}
SHAPES = {f"attn.{part}.weight": (rows, 3) for part, rows in SIZES.items()} | {f"attn.{part}.bias": (rows,) for part, rows in SIZES.items()}


@pytest.fixture
def hub() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}


def linear(weight: torch.Tensor, sizes: list[int], **attributes: Any) -> SimpleNamespace:
    """Return a module whose matrix only its kernel can use, as on CPU. `sizes` are its rows by output."""
    return SimpleNamespace(
        weight=torch.empty(0, dtype=weight.dtype),
        output_partition_sizes=sizes,
        input_size_per_partition=weight.shape[1],
        cpu_linear=lambda x, empty, bias: x @ weight.T,
        **attributes,
    )


def held_by(ranks: list[dict[str, Any]], packed: dict[str, list[str]], hub: dict[str, torch.Tensor]) -> list[dict[str, list[Part]]]:
    """Return what each rank shows of the tensors `hub`, given its modules."""
    shapes = {name: tuple(tensor.shape) for name, tensor in hub.items()}
    held = [HeldTensors(modules, packed, shapes, rank, len(ranks)) for rank, modules in enumerate(ranks)]
    return [{name: one.parts(name, 3) for name in shapes} for one in held]


def fused(hub: dict[str, torch.Tensor], heads: list[slice], kv_heads: list[slice], **attributes: Any) -> list[dict[str, Any]]:
    """Return the modules of ranks that hold these rows of q, and these of k and v, in one matrix."""
    ranks = []
    for mine, shared in zip(heads, kv_heads, strict=True):
        rows = {"q_proj": mine, "k_proj": shared, "v_proj": shared}
        weight = torch.cat([hub[f"attn.{part}.weight"][row] for part, row in rows.items()])
        bias = torch.cat([hub[f"attn.{part}.bias"][row] for part, row in rows.items()])
        sizes = [row.stop - row.start for row in rows.values()]
        ranks.append({"attn.qkv_proj": linear(weight, sizes, bias=bias, **attributes)})
    return ranks


WHOLE = ([slice(0, 4)], [slice(0, 2)])
HALVES = ([slice(0, 2), slice(2, 4)], [slice(0, 1), slice(1, 2)])
SHARED = ([slice(n, n + 1) for n in range(4)], [slice(n // 2, n // 2 + 1) for n in range(4)])  # two ranks hold each row of k and v


@pytest.mark.parametrize("division", [WHOLE, HALVES, SHARED], ids=["one rank", "two", "four, with copies"])
def test_ranks_show_what_was_published_of_a_fused_matrix(hub: dict[str, torch.Tensor], division: Any) -> None:
    published = fingerprint(hub, version=3)
    assert first_mismatch_of_ranks(published, held_by(fused(hub, *division), PACKED, hub)) is None
    for name in hub:
        changed = {**hub, name: hub[name] + 1}
        assert first_mismatch_of_ranks(fingerprint(changed, version=3), held_by(fused(hub, *division), PACKED, hub))[0] == name


@pytest.mark.parametrize("division", [WHOLE, HALVES, SHARED], ids=["one rank", "two", "four, with copies"])
def test_ranks_show_what_was_published_of_a_matrix_that_the_model_itself_has_fused(hub: dict[str, torch.Tensor], division: Any) -> None:
    one = {f"attn.qkv_proj.{kind}": torch.cat([hub[f"attn.{part}.{kind}"] for part in SIZES]) for kind in ("weight", "bias")}
    ranks = fused(hub, *division, num_kv_head_replicas=max(1, len(division[0]) // 2))
    assert first_mismatch_of_ranks(fingerprint(one, version=3), held_by(ranks, {}, one)) is None
    one["attn.qkv_proj.weight"] = one["attn.qkv_proj.weight"].flip(0)
    assert first_mismatch_of_ranks(fingerprint(one, version=3), held_by(ranks, {}, one)) is not None


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_show_what_was_published_of_columns_of_a_vocabulary_and_of_a_norm(num_ranks: int) -> None:
    torch.manual_seed(1)
    hub = {
        "down.weight": torch.randn(3, 16),
        "down.bias": torch.randn(3),
        "embed.weight": torch.randn(7, 16),
        "norm.weight": torch.randn(16),
    }
    ranks: list[dict[str, Any]] = []
    for rank in range(num_ranks):
        columns, rows = (
            slice(rank * 16 // num_ranks, (rank + 1) * 16 // num_ranks),
            slice(rank * 8 // num_ranks, (rank + 1) * 8 // num_ranks),
        )
        padded = torch.cat([hub["embed.weight"], torch.full((1, 16), torch.nan)])[rows]
        shard = SimpleNamespace(org_vocab_start_index=rows.start, num_org_elements=min(rows.stop, 7) - rows.start)
        ranks.append(
            {
                "down": linear(hub["down.weight"][:, columns], [3], bias=hub["down.bias"]),
                "embed": SimpleNamespace(weight=padded, shard_indices=shard, output_partition_sizes=[len(padded)]),
                "norm": SimpleNamespace(weight=hub["norm.weight"]),
            }
        )
    held = held_by(ranks, {}, hub)
    assert first_mismatch_of_ranks(fingerprint(hub, version=3), held) is None
    for name, tensor in hub.items():
        assert first_mismatch_of_ranks(fingerprint({**hub, name: tensor.flip(0)}, version=3), held)[0] == name


def test_tensor_without_a_module_is_named():
    with pytest.raises(EngineError, match=r"no module for tensor mlp\.up\.weight"):
        HeldTensors({}, PACKED, {"mlp.up.weight": (2, 2)}).parts("mlp.up.weight", 0)


def test_parameter_that_was_not_published_is_named():
    model = SimpleNamespace(named_parameters=lambda: [("attn.qkv_proj.weight", None), ("norm.weight", None)])
    with pytest.raises(WeightMismatch, match=r"no tensor attn\.v_proj\.weight"):
        _require_all_parameters(model, PACKED, {"attn.q_proj.weight": 0, "attn.k_proj.weight": 0, "norm.weight": 0})
    complete = {"attn.q_proj.weight": 0, "attn.k_proj.weight": 0, "attn.v_proj.weight": 0, "norm.weight": 0}
    _require_all_parameters(model, PACKED, complete)


def test_a_process_of_an_engine_ends_with_the_owner_of_the_engine():
    owner = subprocess.Popen(["sleep", "3600"])
    code = "import time, actors.vllm_worker; print(flush=True); time.sleep(3600)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), OWNER: str(owner.pid)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        assert process.poll() is None
        owner.kill()
        owner.wait()
        assert process.wait(timeout=60) == 1
    finally:
        owner.kill()
        process.kill()
