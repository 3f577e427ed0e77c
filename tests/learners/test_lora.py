"""Adapters compared with peft's own layers, and a learner that trains only adapters."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import peft
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from learners.batches import TokenLookup, read_groups
from learners.checkpoint import CheckpointError
from learners.config import LoraConfig
from learners.forward import load_causal_lm, response_logprobs
from learners.lora import Adapters, LoraError, check_lora, merged, require_base, write_merged
from learners.policy_learner import PolicyLearner
from learners.weights import HEAD, take_snapshot
from tests.learners.samples import assert_equal_gradients, plain_logprobs, ragged_batch
from tests.learners.test_policy_learner import GROUP_SIZE, PLAIN, assert_identical, make_learner, mixed_batch, plain_loss
from tests.tiny_model import make_tiny_model

LORA = {"enabled": True, "rank": 4, "alpha": 8.0}
SOME = {"targets": ("q_proj", "down_proj")}
LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def lora_learner(model: str, *, lora: dict[str, Any] | None = None, **settings: Any) -> PolicyLearner:
    return make_learner(model, lora={**LORA, **(lora or {})}, **settings)


def stir(learner: PolicyLearner, *, scale: float = 0.05) -> None:
    """Change B so that it is no longer 0, as after much training."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in learner._model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def adapters_of(learner: PolicyLearner) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in learner._model.named_parameters() if parameter.requires_grad}


def peft_model_like(learner: PolicyLearner, base: str, directory: Path) -> Any:
    """Return what peft itself reads from the learner's files, in float64, trainable."""
    learner._adapters.save(directory)  # type: ignore[union-attr]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    return peft.PeftModel.from_pretrained(model, directory, is_trainable=True).eval()


def plain_gradient_by_peft(wrapped: Any, batch: pa.RecordBatch, learner: PolicyLearner) -> dict[str, Tensor]:
    """Return the gradient of peft's own forward pass, with one unpadded row per response."""
    plain_loss(wrapped, batch, learner._config.loss, PLAIN).backward()
    return {
        name.removeprefix("base_model.model."): parameter.grad
        for name, parameter in wrapped.named_parameters()
        if parameter.grad is not None
    }


class AdapterGradients:
    """Replaces the optimiser: keeps the gradient and applies none."""

    last_learning_rate, num_steps = 0.0, 1

    def __init__(self, learner: PolicyLearner) -> None:
        self._learner = learner
        self.gradient: dict[str, Tensor] = {}

    def step(self, share: float = 1.0) -> float:
        assert all(p.grad is None for p in self._learner._model.parameters() if not p.requires_grad), "the frozen model has a gradient"
        self.gradient = {name: parameter.grad.clone() for name, parameter in adapters_of(self._learner).items()}
        return 1.0


# ---- the mathematics ----


@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize("targets", [{}, SOME], ids=["all", "some"])
def test_the_gradient_of_adapters_is_that_of_pefts_own_layers(
    tiny_model: str, tmp_path: Path, exact_norms: None, targets: dict[str, Any], budget: int
) -> None:
    learner = lora_learner(tiny_model, lora=targets, dtype="float64", advantage=PLAIN, tokens_per_micro_batch=budget)
    stir(learner)
    recorder = AdapterGradients(learner)
    learner._optimiser = recorder  # type: ignore[assignment]
    learner.step(mixed_batch())
    expected = plain_gradient_by_peft(peft_model_like(learner, tiny_model, tmp_path), mixed_batch(), learner)
    assert len(expected) == 2 * 2 * (2 if targets else 7)  # layers, A and B, targets
    assert_equal_gradients(recorder.gradient, expected, atol=1e-11)


@pytest.mark.long
def test_compiled_layers_give_adapters_the_same_gradient(tiny_model: str, exact_norms: None) -> None:
    """This also holds with activations that are computed again."""
    torch._dynamo.reset()  # what other tests had compiled
    torch._dynamo.utils.counters.clear()
    gradients = []
    for settings in ({}, {"compile": True}, {"compile": True, "activation_checkpointing": True}):
        learner = lora_learner(tiny_model, dtype="float64", advantage=PLAIN, **settings)
        stir(learner)
        recorder = AdapterGradients(learner)
        learner._optimiser = recorder  # type: ignore[assignment]
        learner.step(mixed_batch())
        gradients.append(recorder.gradient)
    expected, *found = gradients
    for gradient in found:
        assert_equal_gradients(gradient, expected, atol=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_merged_weights_are_those_of_pefts_merge_and_unload(tiny_model: str, tmp_path: Path) -> None:
    learner = lora_learner(tiny_model, dtype="float64")
    stir(learner)
    unloaded = dict(peft_model_like(learner, tiny_model, tmp_path).merge_and_unload().named_parameters())
    snapshot = learner.snapshot()
    found = dict(snapshot.tensors())
    assert found.keys() == unloaded.keys()
    base = dict(load_causal_lm(tiny_model, dtype="float64").named_parameters())
    for name, weight in unloaded.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-14, msg=name)
        assert torch.equal(found[name], base[name]) != (name.split(".")[-2] in LAYERS), name
    assert HEAD in snapshot.fingerprint


def test_a_merged_weight_is_formed_in_float32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, a, b = torch.randn(6, 5, generator=generator).bfloat16(), torch.randn(3, 5, generator=generator), torch.randn(6, 3)
    found = merged(weight, a, b, 0.5)
    exact = weight.double() + 0.5 * b.double() @ a.double()
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= (exact.abs() * 2**-8).max()
    assert torch.equal(found, (weight.float() + 0.5 * (b @ a)).bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learner_computes_with_the_very_weights_it_publishes(tiny_model: str, tmp_path: Path, dtype: str) -> None:
    learner = lora_learner(tiny_model, dtype=dtype)
    stir(learner, scale=1e-3)
    seen: list[Tensor] = []

    def note(model: Any, *args: Any, **settings: Any) -> Any:
        output = response_logprobs(model, *args, **settings)
        seen.append(output[0])
        return output

    learner._ranks.compute = lambda function, model, *args, **settings: note(model, *args, **settings)  # type: ignore[method-assign]
    learner.save_policy(str(tmp_path))
    learner.step(ragged_batch(2))
    whole = make_learner(str(tmp_path), dtype=dtype)
    of_adapters, seen = seen, []
    whole._ranks.compute = learner._ranks.compute  # type: ignore[method-assign]
    whole.step(ragged_batch(2))
    assert of_adapters and all(torch.equal(one, other) for one, other in zip(of_adapters, seen, strict=True))


def test_before_training_the_policy_is_the_model_bit_for_bit(tiny_model: str) -> None:
    adapted, plain = lora_learner(tiny_model).snapshot(), make_learner(tiny_model).snapshot()
    assert adapted.fingerprint == plain.fingerprint and adapted.checksums == plain.checksums and adapted.index == plain.index


# ---- the learner ----


def test_training_moves_adapters_alone(tiny_model: str) -> None:
    learner = lora_learner(tiny_model)
    before = {name: parameter.clone() for name, parameter in learner._model.named_parameters()}
    for seed in range(3):
        learner.step(ragged_batch(2, seed=seed))
    after = dict(learner._model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".lora_" in name}
    base = dict(load_causal_lm(tiny_model, dtype="float32").named_parameters())
    frozen = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if ".lora_" not in name}
    assert_identical(frozen, base)
    assert dict(learner.snapshot().fingerprint) != dict(lora_learner(tiny_model).snapshot().fingerprint)


def test_a_restored_learner_goes_on_bit_for_bit_from_adapters_alone(tiny_model: str, tmp_path: Path) -> None:
    straight = lora_learner(tiny_model)
    straight.step(ragged_batch(2))
    straight.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "optimiser.safetensors"}
    names = load_file(tmp_path / "optimiser.safetensors").keys()
    of_weights = {name for name in names if name.partition("/")[0] in ("master", "exp_avg", "exp_avg_sq")}
    assert len(of_weights) == 3 * 2 * 2 * 7 and all(".lora_" in name for name in of_weights)
    restored = lora_learner(tiny_model, lora={"seed": 9})  # A of its own, until it is restored
    restored.load(tmp_path)
    for seed in (1, 2):
        for learner in (straight, restored):
            learner.step(ragged_batch(2, seed=seed))
    assert_identical(adapters_of(restored), adapters_of(straight))
    assert_identical(restored._optimiser.state_dict(), straight._optimiser.state_dict())
    assert restored.snapshot().checksums == straight.snapshot().checksums


def test_what_another_base_would_make_of_a_checkpoint_is_refused(tiny_model: str, tmp_path: Path) -> None:
    lora_learner(tiny_model).save(tmp_path)
    saved = json.loads((tmp_path / "adapter" / "base.json").read_text())
    assert saved["model"] == tiny_model and len(saved["digest"]) == 32
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"belongs to the weights that .* had .* those of .*/other are others"):
        lora_learner(other).load(tmp_path)
    require_base(tmp_path / "adapter", make_tiny_model(tmp_path / "same", seed=0))  # wherever it lies


@pytest.mark.parametrize("where", ["loss", "reward"])
def test_the_reference_is_the_model_without_adapters_and_no_copy_of_it(tiny_model: str, exact_norms: None, where: str) -> None:
    kl = {"kl": {"where": where, "coefficient": 0.1}}
    settings = {"loss": kl, "advantage": {"normalise": "mean"}, "dtype": "float64"}
    learner = lora_learner(tiny_model, **settings)
    assert learner._reference is None
    frozen = make_learner(tiny_model, **settings)
    stir(learner)
    batch = ragged_batch(3)
    groups, lookup = read_groups(batch, GROUP_SIZE), TokenLookup.of(batch)
    reference = learner._reference_logprobs(lookup, groups)
    assert (reference == frozen._reference_logprobs(lookup, groups)).all()
    assert (reference != learner._flat_logprobs(learner._model, lookup, groups, [range(3)])).any(), "its adapters are off still"
    assert learner.step(batch).metrics["learner/grad_norm"] > 0
    assert all(parameter.requires_grad for parameter in adapters_of(learner).values()) and len(adapters_of(learner)) == 28


def test_the_saved_policy_loads_as_a_model_and_its_adapter_by_peft(tiny_model: str, tmp_path: Path) -> None:
    learner = lora_learner(tiny_model, lr=1e-2)
    learner.step(ragged_batch(2))
    learner.save_policy(str(tmp_path / "policy"))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert not [name for name, _ in policy.named_parameters() if "lora" in name]
    assert take_snapshot(policy.named_parameters(), version=1).checksums == learner.snapshot().checksums
    by_peft = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy" / "adapter", dtype=torch.float32).eval()
    prompt, response = [5, 6, 7], [8, 9, 10, 11]
    base = plain_logprobs(load_causal_lm(tiny_model, dtype="float32"), prompt, response)
    torch.testing.assert_close(plain_logprobs(by_peft, prompt, response), plain_logprobs(policy, prompt, response), rtol=0, atol=2e-5)
    assert (plain_logprobs(policy, prompt, response) - base).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoints_adapter_makes_the_policy_that_was_published(tiny_model: str, tmp_path: Path, dtype: Any) -> None:
    learner = lora_learner(tiny_model, dtype=dtype)
    learner.step(ragged_batch(2))
    learner.save(tmp_path)
    write_merged(tmp_path / "adapter", str(tmp_path / "policy"), base=tiny_model, dtype=dtype)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype="auto")
    assert take_snapshot(policy.named_parameters(), version=1).checksums == learner.snapshot().checksums


# ---- refusals ----


@pytest.mark.parametrize("targets", [("q_proj", "nope"), ("lm_head",), ("embed_tokens",)])
def test_unknown_targets_are_refused_with_those_there_are(tiny_model: str, targets: tuple[str, ...]) -> None:
    config = LoraConfig(enabled=True, targets=targets)
    named = rf"learner.lora.targets: {targets[-1]} is no linear layer of this model's body; there are: {', '.join(LAYERS)} "
    with pytest.raises(LoraError, match=named):
        check_lora(tiny_model, config)
    with pytest.raises(LoraError, match=named):
        Adapters.attach(load_causal_lm(tiny_model, dtype="float32"), config, base=tiny_model)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("gpt2", {"vocab_size": 104, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}, "GPT2LMHeadModel has no linear layers"),
        (
            "qwen3_moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
            r'targets = "all-linear": the experts of Qwen3MoeForCausalLM are fused .*: name the layers that are meant, of .*q_proj',
        ),
    ],
)
def test_a_model_of_which_adapters_would_leave_most_out_is_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], named: str
) -> None:
    sizes = {"vocab_size": 104, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **(settings if family == "gpt2" else {**sizes, **heads, **settings}))
    ).save_pretrained(tmp_path)
    with pytest.raises(LoraError, match=named):
        check_lora(str(tmp_path), LoraConfig(enabled=True))
    if family == "qwen3_moe":
        check_lora(str(tmp_path), LoraConfig(enabled=True, targets=("q_proj",)))


def test_without_peft_one_line_says_what_to_install(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoraError, match=r"needs the package peft: pip install --no-deps peft==[0-9.]+, or set it to false"):
        check_lora(tiny_model, LoraConfig(enabled=True))


def test_the_version_named_is_the_one_in_the_lock() -> None:
    from learners.lora import _PEFT

    assert _PEFT in (Path(__file__).parents[2] / "requirements" / "cpu.lock").read_text().split()
