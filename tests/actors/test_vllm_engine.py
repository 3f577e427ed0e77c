"""A real vLLM engine on the embedded model, in this process: what it samples, and that it proves the weights it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import Sample, WeightMismatch
from buffers.records import FinishReason
from learners.forward import load_causal_lm, response_logprobs
from learners.models import resolve_model
from learners.packing import build_rows, pack
from learners.weights import HEAD, WeightSnapshot, take_snapshot
from tests.learners.samples import group_tokens

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
RESPONSE_TOKENS = 12
MAX_STEPS = 500
QUESTIONS = [f"Tell me a long story about {n} animals and what they do all day long." for n in range(2, 8)]


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def engine(model_path: str) -> Iterator[Any]:
    from actors.vllm_engine import VllmEngine

    environment, threads = dict(os.environ), torch.get_num_threads()
    config = RolloutConfig(engine="vllm", kv_cache_gib=1, max_sequences=16)
    sampling = SamplingConfig(max_prompt_tokens=80, max_response_tokens=RESPONSE_TOKENS)
    engine = VllmEngine(model_path, config, sampling, seed=0)
    yield engine
    engine._engine.engine_core.shutdown()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts(model_path: str) -> dict[str, list[int]]:
    """Prompts longer than a cache block (32 tokens), so that their prefixes are cached."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def encode(question: str) -> list[int]:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=False
        )

    prompts = {str(index): encode(question) for index, question in enumerate(QUESTIONS)}
    assert all(32 < len(ids) <= 80 for ids in prompts.values())
    return prompts


@pytest.fixture(scope="module")
def original(model_path: str) -> Any:
    """float32 throughout, so that only the engine's rounding is measured; every weight is a bfloat16 number."""
    return load_causal_lm(model_path, dtype="float32")


@pytest.fixture(scope="module")
def perturbed(model_path: str) -> Any:
    """Every weight changed, embeddings and so the tied head included."""
    model = load_causal_lm(model_path, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.008 * torch.randn(parameter.shape, generator=generator)).copy_(parameter.bfloat16())
    return model


def snapshot_of(model: Any, version: int) -> WeightSnapshot:
    return take_snapshot(((name, parameter.bfloat16()) for name, parameter in model.named_parameters()), version=version, tied_to=EMBEDDING)


def run(engine: Any, prompts: Mapping[str, list[int]], tag: str) -> dict[str, Sample]:
    for key, prompt_ids in prompts.items():
        engine.add(f"{tag}/{key}", prompt_ids)
    return finish(engine)


def finish(engine: Any) -> dict[str, Sample]:
    """What is still under way, by the key's part behind the tag."""
    found: dict[str, Sample] = {}
    for _ in range(MAX_STEPS):
        if not engine.has_unfinished:
            return found
        found |= {key.rpartition("/")[2]: sample for key, sample in engine.step()}
    pytest.fail(f"not finished after {MAX_STEPS} steps")


def mean_difference(samples: Mapping[str, Sample], prompts: Mapping[str, list[int]], model: Any) -> float:
    """Mean |log-prob of the engine − log-prob of a transformers forward| over all tokens."""
    packed = pack(build_rows([group_tokens(prompts[key], [sample.token_ids]) for key, sample in samples.items()]))
    with torch.no_grad():
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
    behavior = np.concatenate([sample.logprobs for sample in samples.values()])
    return float(np.abs(logprob_N.numpy() - behavior).mean())


def test_it_samples_from_the_model(engine: Any, prompts: dict[str, list[int]], original: Any) -> None:
    engine.load(snapshot_of(original, 1))
    found = run(engine, prompts, "samples")
    assert found.keys() == prompts.keys()
    for sample in found.values():
        assert len(sample.token_ids) == len(sample.logprobs) <= RESPONSE_TOKENS
        assert (sample.version_starts, sample.version_values) == ((0,), (1,))
        assert sample.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert mean_difference(found, prompts, original) < 0.06
    assert not engine.has_unfinished


def test_requests_go_on_under_new_weights_with_two_version_runs(engine: Any, prompts: dict[str, list[int]], original: Any) -> None:
    engine.load(snapshot_of(original, 2))
    for key, prompt_ids in prompts.items():
        engine.add(f"in flight/{key}", prompt_ids)
    for _ in range(4):  # the first step or two take in the prompts
        assert not engine.step()
    sampled = {key: len(partial.token_ids) for key, partial in engine._partial.items()}
    assert all(1 <= count <= 4 for count in sampled.values())
    engine.load(snapshot_of(original, 3))
    for key, sample in finish(engine).items():
        assert (sample.version_starts, sample.version_values) == ((0, sampled[f"in flight/{key}"]), (2, 3))


def test_after_a_load_it_samples_from_the_new_weights(engine: Any, prompts: dict[str, list[int]], original: Any, perturbed: Any) -> None:
    """The prompts were answered under the old weights just before: a prefix cached then must not be used now."""
    engine.load(snapshot_of(original, 4))
    before = run(engine, prompts, "before")
    engine.load(snapshot_of(perturbed, 5))
    found = run(engine, prompts, "after")
    assert all(sample.version_values == (5,) for sample in found.values())
    assert mean_difference(before, prompts, original) < 0.06
    assert mean_difference(found, prompts, perturbed) < 0.06
    assert mean_difference(found, prompts, original) > 0.2


def test_abort_returns_the_tokens_so_far(engine: Any, prompts: dict[str, list[int]]) -> None:
    for key, prompt_ids in prompts.items():
        engine.add(f"aborted/{key}", prompt_ids)
    for _ in range(4):
        engine.step()
    aborted = dict(engine.abort(["aborted/0", "aborted/1"]))
    assert {sample.finish_reason for sample in aborted.values()} == {FinishReason.ABORTED}
    assert all(1 <= len(sample.token_ids) == len(sample.logprobs) <= 4 for sample in aborted.values())
    assert finish(engine).keys() == prompts.keys() - {"0", "1"}


def test_a_stale_tied_head_is_noticed(
    engine: Any, original: Any, perturbed: Any, prompts: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM packs a tied head apart from the embedding, and a reload alone leaves the old one serving."""
    from vllm.model_executor.layers import utils

    pack_weight = utils.dispatch_cpu_unquantized_gemm
    skipped: list[str] = []

    def pack_all_but_the_head(layer: Any, remove_weight: bool) -> None:
        if type(layer).__name__ == "ParallelLMHead":
            skipped.append("head")
        else:
            pack_weight(layer, remove_weight)

    engine.load(snapshot_of(original, 6))
    with monkeypatch.context() as patched:
        patched.setattr(utils, "dispatch_cpu_unquantized_gemm", pack_all_but_the_head)
        with pytest.raises(WeightMismatch, match=rf"version 7 .* tensor {HEAD}"):
            engine.load(snapshot_of(perturbed, 7))
    assert skipped and engine.version == 6
    engine.load(snapshot_of(perturbed, 8))
    assert mean_difference(run(engine, prompts, "mended"), prompts, perturbed) < 0.06


@pytest.mark.parametrize(
    "name",
    [NORM, EMBEDDING, HEAD, *(f"model.layers.7.{part}_proj.weight" for part in ("self_attn.k", "self_attn.o", "mlp.up", "mlp.down"))],
)
def test_a_tensor_that_is_not_the_published_one_is_named(engine: Any, original: Any, name: str) -> None:
    snapshot = snapshot_of(original, 9)
    wrong = replace(snapshot, fingerprint={**snapshot.fingerprint, name: "0" * 16})
    with pytest.raises(WeightMismatch, match=rf"version 9 the engine \(rank 0\) does not hold tensor {name}"):
        engine.load(wrong)


def test_one_changed_column_of_a_fused_matrix_is_named(engine: Any, original: Any) -> None:
    """k_proj lies in the middle of the engine's fused qkv matrix."""
    name = "model.layers.3.self_attn.k_proj.weight"
    snapshot = snapshot_of(original, 10)
    dict(snapshot.tensors())[name].add_(1.0)
    with pytest.raises(WeightMismatch, match=name):
        engine.load(snapshot)
    engine.load(snapshot_of(original, 11))
    assert engine.version == 11
