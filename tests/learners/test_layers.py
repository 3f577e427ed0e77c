from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.batches import read_groups
from learners.config import LearnerConfig
from learners.forward import load_causal_lm, response_logprobs
from learners.layers import CompilerMissing, layers_of, require_compiler, run_layers
from learners.packing import pack, prefix_tree
from learners.policy_learner import PolicyLearner
from tests.learners.samples import assert_equal_gradients, gradients, ragged_batch


def logprobs_and_gradients(model: Any, *seeds: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return log-probs and gradients of passes of different lengths."""
    found = []
    model.zero_grad()
    for seed in seeds:
        packed = pack(prefix_tree(read_groups(ragged_batch(2 + seed, seed=seed), 4)))
        logprob_N, entropy_N = response_logprobs(model, packed, temperature=0.9, entropy_gradient=True)
        (logprob_N.square().sum() + entropy_N.sum()).backward()
        found.append(logprob_N.detach())
    return found, gradients(model)


def saved_bytes(model: Any) -> int:
    """Return the size of what the forward pass keeps for the backward pass, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    packed = pack(prefix_tree(read_groups(ragged_batch(8), 4)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = response_logprobs(model, packed, temperature=1.0)
        return sum(kept.values())


def test_the_layers_are_those_of_the_decoder_in_order(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    layers = list(model.model.layers)
    assert layers_of(model) == layers and len(layers) == 2
    for layer in layers:  # as FSDP does
        layer.__class__ = type("FSDPLayer", (type(layer),), {})
    assert layers_of(model) == layers
    model._no_split_modules = None
    run_layers(model)
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM does not say"):
        run_layers(model, recomputed=True)


def test_activations_computed_again_give_the_same_gradient_to_the_bit(tiny_model: str) -> None:
    """Only the input of each layer is kept."""
    kept, recomputed = (load_causal_lm(tiny_model, dtype="float64") for _ in range(2))
    run_layers(recomputed, recomputed=True)
    expected, found = (logprobs_and_gradients(model, 0, 1) for model in (kept, recomputed))
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert not [name for name, gradient in expected[1].items() if not torch.equal(found[1][name], gradient)]
    assert 3 * saved_bytes(recomputed) < saved_bytes(kept)


def test_a_learner_that_computes_activations_again_trains_alike(tiny_model: str) -> None:
    def trained(**settings: Any) -> dict[str, Tensor]:
        config = LearnerConfig.model_validate({"dtype": "float32", "lr": 1e-3, "warmup_steps": 0, **settings})
        learner = PolicyLearner(tiny_model, config, temperature=0.8, group_size=4)
        for seed in range(2):
            learner.step(ragged_batch(3, seed=seed))
        return {name: tensor.clone() for name, tensor in learner.snapshot().tensors()}

    expected, found = trained(), trained(activation_checkpointing=True)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.long
def test_compiled_layers_give_the_same_gradient(tiny_model: str, exact_norms: None) -> None:
    """Passes of three lengths share one compilation of a layer, also with activations that are computed again."""
    torch._dynamo.reset()  # what other tests had compiled
    torch._dynamo.utils.counters.clear()
    plain, compiled, both = (load_causal_lm(tiny_model, dtype="float64") for _ in range(3))
    run_layers(compiled, compiled=True)
    run_layers(both, compiled=True, recomputed=True)
    expected = logprobs_and_gradients(plain, 0, 1, 2)
    for model in (compiled, both):
        found = logprobs_and_gradients(model, 0, 1, 2)
        for one, other in zip(found[0], expected[0], strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-9)
        assert_equal_gradients(found[1], expected[1], atol=1e-9)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # before and after attention, of models with and without


def test_a_cpu_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "g++").touch(mode=0o755)
    require_compiler(cpu)
    (tmp_path / "g++").unlink()
    with pytest.raises(CompilerMissing, match=r"^learner\.compile = true needs a C\+\+ compiler .* or set learner\.compile to false$"):
        require_compiler(cpu)
    compiler = tmp_path / "mine"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    require_compiler(cpu)


def test_a_gpu_without_triton_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompilerMissing, match=r"^learner\.compile = true needs the package triton"):
        require_compiler(torch.device("cuda"))
