"""A real vLLM engine on the embedded model, in this process: what it samples, the states it saw, and that it proves its
weights. Once AsyncLLM, in processes of its own.

It decodes fewer responses at once than some tests ask for and takes in prompts in pieces, so that requests wait and
prompts are cut."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineError, EngineSetup, Progress, Sample, SampleRequest, WeightMismatch
from actors.step_loop import StepLoop
from buffers.records import FinishReason
from learners.forward import causal_lm_shapes, load_causal_lm, response_logprobs
from learners.models import resolve_model
from learners.packing import pack, prefix_tree
from learners.weight_check import WeightsRefused, check_snapshot
from learners.weights import HEAD, WeightSnapshot
from tests.actors.real_engine import EMBEDDING, MAX_BATCHED_TOKENS, MAX_SEQUENCES, perturbed_model, snapshot_of, vllm_engine
from tests.learners.samples import group_tokens, plain_hidden_states, plain_logprobs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

NORM = "model.norm.weight"
HIDDEN = 576
RESPONSE_TOKENS = 12
MAX_STEPS = 500
TOLERANCE = 1e-3
"""Bound of mean log-prob differences, float32 against float32."""
WAIT_S = 120.0  # bounds every wait
QUESTIONS = [f"Tell me a long story about {n} animals and what they do all day long." for n in range(2, 8)]


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def engine(model_path: str) -> Iterator[Any]:
    sampling = SamplingConfig(max_prompt_tokens=80, max_response_tokens=RESPONSE_TOKENS)
    with vllm_engine(model_path, sampling, pool_states=True) as engine:
        yield engine


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
    """The embedded model in float32, as in the engine."""
    return load_causal_lm(model_path, dtype="float32")


@pytest.fixture(scope="module")
def perturbed(model_path: str) -> Any:
    """The model with every weight changed, also the embedding and so the tied head."""
    return perturbed_model(model_path, 0.008)


def run(engine: Any, prompts: Mapping[str, list[int]], tag: str) -> dict[str, Sample]:
    for key, prompt_ids in prompts.items():
        engine.add(SampleRequest(key=f"{tag}/{key}", prompt_ids=prompt_ids))
    return finish(engine)


def finish(engine: Any) -> dict[str, Sample]:
    """Step until all requests have ended. Return their samples by the part of the key behind the tag."""
    found: dict[str, Sample] = {}
    for _ in range(MAX_STEPS):
        if not engine.has_unfinished:
            return found
        found |= {key.rpartition("/")[2]: sample for key, sample in engine.step()}
    pytest.fail(f"not finished after {MAX_STEPS} steps")


def mean_difference(samples: Mapping[str, Sample], prompts: Mapping[str, list[int]], model: Any) -> float:
    """Return the mean |log-prob of the engine − log-prob of a transformers forward| over all tokens."""
    packed = pack(prefix_tree([group_tokens(prompts[key], [sample.token_ids]) for key, sample in samples.items()]))
    with torch.no_grad():
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
    found = np.concatenate([logprob_N[packed.response_N == index].numpy() for index in range(len(samples))])
    behavior = np.concatenate([sample.logprobs for sample in samples.values()])
    return float(np.abs(found - behavior).mean())


def test_it_samples_from_the_model(engine: Any, prompts: dict[str, list[int]], original: Any) -> None:
    engine.load(snapshot_of(original, 1))
    found = run(engine, prompts, "samples")
    assert found.keys() == prompts.keys()
    for sample in found.values():
        assert len(sample.token_ids) == len(sample.logprobs) <= RESPONSE_TOKENS
        assert (sample.version_starts, sample.version_values) == ((0,), (1,))
        assert sample.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert mean_difference(found, prompts, original) < TOLERANCE
    assert not engine.has_unfinished


def test_requests_go_on_under_new_weights_with_two_version_runs(engine: Any, prompts: dict[str, list[int]], original: Any) -> None:
    engine.load(snapshot_of(original, 2))
    for key, prompt_ids in prompts.items():
        engine.add(SampleRequest(key=f"in flight/{key}", prompt_ids=prompt_ids))
    for _ in range(5):  # the first three or four take in the prompts
        assert not engine.step()
    sampled = {key: len(partial.token_ids) for key, partial in engine._partials.items()}
    assert all(1 <= count <= 5 for count in sampled.values())
    engine.load(snapshot_of(original, 3))
    for key, sample in finish(engine).items():
        assert (sample.version_starts, sample.version_values) == ((0, sampled[f"in flight/{key}"]), (2, 3))
        assert sample.state_mean is not None and sample.state_mean.shape == (HIDDEN,)
        assert np.isfinite(sample.state_mean).all() and sample.state_mean.any()


def test_after_a_load_it_samples_from_the_new_weights(engine: Any, prompts: dict[str, list[int]], original: Any, perturbed: Any) -> None:
    """The prompts were just answered under the old weights. A prefix that was cached then must not be used now."""
    engine.load(snapshot_of(original, 4))
    before = run(engine, prompts, "before")
    engine.load(snapshot_of(perturbed, 5))
    found = run(engine, prompts, "after")
    assert all(sample.version_values == (5,) for sample in found.values())
    assert mean_difference(before, prompts, original) < TOLERANCE
    assert mean_difference(found, prompts, perturbed) < TOLERANCE
    assert mean_difference(found, prompts, original) > 0.2


def test_abort_returns_the_tokens_so_far(engine: Any, prompts: dict[str, list[int]], original: Any) -> None:
    engine.load(snapshot_of(original, 20))
    for key, prompt_ids in prompts.items():
        engine.add(SampleRequest(key=f"aborted/{key}", prompt_ids=prompt_ids))
    for _ in range(4):
        engine.step()
    engine.add(SampleRequest(key="aborted/late", prompt_ids=prompts["0"]))
    aborted = dict(engine.abort(["aborted/0", "aborted/1", "aborted/late"]))
    assert {sample.finish_reason for sample in aborted.values()} == {FinishReason.ABORTED}
    late = aborted.pop("aborted/late")
    assert (late.token_ids, late.state_mean) == ((), None)
    assert all(1 <= len(sample.token_ids) == len(sample.logprobs) <= 4 for sample in aborted.values())
    others = finish(engine)
    assert others.keys() == prompts.keys() - {"0", "1"}
    assert_state_means({key.rpartition("/")[2]: sample for key, sample in aborted.items()} | others, prompts, original)


# --- going on after tokens sampled before --------------------------------------------------------------------------


def cut_short(engine: Any, prompts: Mapping[str, list[int]], tag: str, *, steps: int) -> dict[str, Sample]:
    """Abort the prompts' responses after `steps` steps. Return those that have a token, by prompt."""
    keys = {f"{tag}/{key}": key for key in prompts}
    for key in keys:
        engine.add(SampleRequest(key=key, prompt_ids=prompts[keys[key]]))
    for _ in range(steps):
        assert not engine.step()
    so_far = engine.partials([*keys, "never heard of"])
    aborted = dict(engine.abort(list(keys)))
    assert so_far == aborted and not engine.has_unfinished
    return {keys[key]: sample for key, sample in aborted.items() if sample.token_ids}


def differences(samples: Mapping[str, Sample], prompts: Mapping[str, list[int]], model: Any, positions: Mapping[str, slice]) -> np.ndarray:
    """Return |log-prob of the engine − log-prob of a transformers forward| of the tokens at `positions`."""
    found = []
    for key, sample in samples.items():
        with torch.no_grad():
            logprob_T = plain_logprobs(model, prompts[key], sample.token_ids).numpy()
        found.append(np.abs(logprob_T - np.array(sample.logprobs))[positions[key]])
    return np.concatenate(found)


@pytest.mark.parametrize("new_weights", [False, True], ids=["same weights", "new weights"])
def test_a_cut_response_goes_on_after_its_own_tokens(
    engine: Any, prompts: dict[str, list[int]], original: Any, perturbed: Any, new_weights: bool
) -> None:
    engine.load(snapshot_of(original, 40))
    before = cut_short(engine, prompts, f"cut {new_weights}", steps=7)
    assert len(before) >= 4
    if new_weights:
        engine.load(snapshot_of(perturbed, 41))
    sampled_tokens = engine.sampled_tokens
    for key, sample in before.items():
        engine.add(SampleRequest(key=f"resumed {new_weights}/{key}", prompt_ids=prompts[key], sampled=sample))
    found = finish(engine)
    assert found.keys() == before.keys()
    old = {key: slice(0, len(sample.token_ids)) for key, sample in before.items()}
    new = {key: slice(len(sample.token_ids), None) for key, sample in before.items()}
    for key, sample in found.items():
        assert sample.token_ids[old[key]] == before[key].token_ids
        assert sample.logprobs[old[key]] == before[key].logprobs
        assert len(before[key].token_ids) < len(sample.token_ids) == len(sample.logprobs) <= RESPONSE_TOKENS
        assert (sample.finish_reason is FinishReason.LENGTH) == (len(sample.token_ids) == RESPONSE_TOKENS)
        runs = ((0, old[key].stop), (40, 41)) if new_weights else ((0,), (40,))
        assert (sample.version_starts, sample.version_values) == runs
        assert sample.state_mean is None, "the states of its first tokens are unknown"
    assert engine.sampled_tokens - sampled_tokens == sum(len(sample.token_ids[new[key]]) for key, sample in found.items())
    assert differences(found, prompts, original, old).mean() < TOLERANCE
    assert differences(found, prompts, perturbed if new_weights else original, new).mean() < TOLERANCE
    if new_weights:
        assert differences(found, prompts, original, new).mean() > 0.2


def test_a_likely_response_that_is_cut_goes_on_as_it_would_have(engine: Any, prompts: dict[str, list[int]], original: Any) -> None:
    """A token of the whole response that was nearly certain is also the first token of the continuation."""
    engine.load(snapshot_of(original, 42))
    whole = run(engine, prompts, "whole")
    certain = {
        (key, position)
        for key, sample in whole.items()
        for position, logprob in enumerate(sample.logprobs)
        if position and logprob > -0.005
    }
    assert certain, "no prompt has a nearly certain token"
    for key, position in certain:
        before = replace(
            whole[key],
            token_ids=whole[key].token_ids[:position],
            logprobs=whole[key].logprobs[:position],
            finish_reason=FinishReason.ABORTED,
        )
        engine.add(SampleRequest(key=f"likely/{key}:{position}", prompt_ids=prompts[key], sampled=before))
    found = finish(engine)
    same = [found[f"{key}:{position}"].token_ids[position] == whole[key].token_ids[position] for key, position in certain]
    assert np.mean(same) > 0.9


# --- a batch of its own, and the states seen on the way ------------------------------------------------------------


def with_loop(engine: Any, use: Any) -> Any:
    """Return what `use(loop)` returns, where `loop` is the engine as the rollout worker sees it."""

    async def main() -> Any:
        loop = StepLoop(lambda: engine._engine)
        try:
            return await use(loop)
        finally:
            loop.close()

    return asyncio.run(asyncio.wait_for(main(), WAIT_S))


def requests_of(prompts: Mapping[str, list[int]], number: int, *, max_tokens: int | None = None) -> list[SampleRequest]:
    """Return `number` requests that take the prompts in turn."""
    chosen = itertools.islice(itertools.cycle(prompts.items()), number)
    return [SampleRequest(key=f"{n}:{key}", prompt_ids=prompt_ids, max_tokens=max_tokens) for n, (key, prompt_ids) in enumerate(chosen)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def assert_state_means(samples: Mapping[str, Sample], prompts: Mapping[str, list[int]], model: Any) -> None:
    """Check each mean state: over all tokens but the last, or of a single token the one at the prompt's last token."""
    for key, sample in samples.items():
        prompt = prompts[key]
        with torch.no_grad():
            states_TH = plain_hidden_states(model, prompt[:-1], [prompt[-1], *sample.token_ids[:-1]])
        expected_H = (states_TH[1:].mean(0) if len(states_TH) > 1 else states_TH[0]).numpy()
        assert sample.state_mean is not None and sample.state_mean.dtype == np.float32 and sample.state_mean.shape == (HIDDEN,)
        assert cosine(sample.state_mean, expected_H) >= 0.999, f"{key}: {cosine(sample.state_mean, expected_H):.5f}"
        assert abs(np.linalg.norm(sample.state_mean) / np.linalg.norm(expected_H) - 1) < 0.02


@pytest.mark.parametrize("max_tokens", [None, 1, 2])
def test_every_sample_carries_its_mean_state(engine: Any, prompts: dict[str, list[int]], original: Any, max_tokens: int | None) -> None:
    """This includes those that waited for a place, and those whose prompt was taken in by pieces."""
    engine.load(snapshot_of(original, 21))
    requests = requests_of(prompts, 20, max_tokens=max_tokens)
    assert len(requests) > MAX_SEQUENCES and sum(map(len, prompts.values())) > MAX_BATCHED_TOKENS
    samples = with_loop(engine, lambda loop: loop.sample_batch(requests, seed=3))
    assert max(len(sample.token_ids) for sample in samples) == (max_tokens or RESPONSE_TOKENS)
    keyed = {request.key: sample for request, sample in zip(requests, samples, strict=True)}
    assert_state_means(keyed, {request.key: list(request.prompt_ids) for request in requests}, original)


def test_a_batch_is_the_same_whatever_was_sampled_before_and_another_with_another_seed(
    engine: Any, prompts: dict[str, list[int]], original: Any
) -> None:
    engine.load(snapshot_of(original, 22))
    requests = requests_of(prompts, 12)

    async def use(loop: StepLoop) -> list[list[Sample]]:
        first = await loop.sample_batch(requests, seed=7)
        await loop.sample("another", prompts["3"])
        other = await loop.sample_batch(requests, seed=8)
        again = await loop.sample_batch(requests, seed=7)
        cached = await loop.sample_batch(requests, seed=7, keep_cache=True)
        return [first, other, again, cached]

    first, other, again, cached = with_loop(engine, use)
    assert again == first
    assert all(np.array_equal(a.state_mean, b.state_mean) for a, b in zip(first, again, strict=True))
    assert sum(mine.token_ids == others.token_ids for mine, others in zip(first, other, strict=True)) <= 2
    assert len(cached) == len(first) and all(sample.token_ids for sample in cached)


def test_a_batch_is_refused_while_others_run(engine: Any, prompts: dict[str, list[int]]) -> None:
    async def use(loop: StepLoop) -> Sample:
        running = asyncio.create_task(loop.sample("running", prompts["0"]))
        await asyncio.sleep(0)  # up to its first wait, so that its command is queued before the next
        with pytest.raises(RuntimeError, match="to be sampled alone, but the engine has others under way"):
            await loop.sample_batch(requests_of(prompts, 2), seed=7)
        return await running

    assert len(with_loop(engine, use).token_ids) > 0


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
    assert mean_difference(run(engine, prompts, "repaired"), prompts, perturbed) < TOLERANCE


@pytest.mark.parametrize(
    "name",
    [NORM, EMBEDDING, HEAD, *(f"model.layers.7.{part}_proj.weight" for part in ("self_attn.k", "self_attn.o", "mlp.up", "mlp.down"))],
)
def test_a_tensor_that_is_not_the_published_one_is_named(engine: Any, original: Any, name: str) -> None:
    snapshot = snapshot_of(original, 9)
    wrong = replace(snapshot, fingerprint={**snapshot.fingerprint, name: 0})
    with pytest.raises(WeightMismatch, match=rf"version 9 the engine \(rank 0\) does not hold tensor {name}"):
        engine.load(wrong)


def test_one_changed_column_of_a_fused_matrix_is_named(engine: Any, original: Any, model_path: str) -> None:
    """k_proj lies in the middle of the engine's fused qkv matrix. The check before the load finds it too."""
    name = "model.layers.3.self_attn.k_proj.weight"
    snapshot, shapes = snapshot_of(original, 10), causal_lm_shapes(model_path)
    check_snapshot(snapshot, shapes=shapes, dtype="float32")
    dict(snapshot.tensors())[name].add_(1.0)
    with pytest.raises(WeightsRefused, match=name):
        check_snapshot(snapshot, shapes=shapes, dtype="float32")
    with pytest.raises(WeightMismatch, match=name):
        engine.load(snapshot)
    engine.load(snapshot_of(original, 11))
    assert engine.version == 11


# --- in processes of its own ---------------------------------------------------------------------------------------


@pytest.fixture
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_async_llm_goes_on_after_what_was_cut_tells_how_far_it_is_and_says_when_it_died(
    environment: None, model_path: str, prompts: dict[str, list[int]], original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        from actors.vllm_engine import AsyncVllmEngine

        config = RolloutConfig(engine="vllm-async", dtype="float32", max_sequences=MAX_SEQUENCES, max_batched_tokens=MAX_BATCHED_TOKENS)
        others = {child.pid for child in psutil.Process().children(recursive=True)}
        sampling = SamplingConfig(max_prompt_tokens=80, max_response_tokens=40)
        engine = AsyncVllmEngine()
        await engine.start(EngineSetup(model=model_path, config=config, sampling=sampling, seed=0))
        try:
            assert 0 < await engine.load(snapshot_of(original, 1)) < WAIT_S
            running = asyncio.create_task(engine.sample("a", prompts["0"]))
            await engine.wait_for_tokens(6)
            progress = await engine.partials(["a", "never heard of"])
            assert progress.samples.keys() == {"a"} and progress.sampled_tokens == len(progress.samples["a"].token_ids) >= 6
            with pytest.raises(RuntimeError, match="request a runs already"):
                await engine.sample("a", prompts["0"])
            await engine.abort(["a"])
            before = await running
            assert before.token_ids[: progress.sampled_tokens] == progress.samples["a"].token_ids
            assert before.finish_reason is FinishReason.ABORTED and len(before.token_ids) == engine.sampled_tokens < 40
            with monkeypatch.context() as patched:
                patched.setattr(WeightSnapshot, "save", no_room)
                with pytest.raises(WeightsRefused, match=r"version 2 could not be written to /dev/shm/[-\w]+: No space left on device"):
                    await engine.load(snapshot_of(original, 2))
            await engine.load(snapshot_of(original, 2))
            found = await engine.sample("a", prompts["0"], before)
            cut = len(before.token_ids)
            assert (found.token_ids[:cut], found.logprobs[:cut]) == (before.token_ids, before.logprobs)
            assert (found.version_starts, found.version_values) == ((0, cut), (1, 2))
            assert cut < len(found.token_ids) <= 40 and found.finish_reason is not FinishReason.ABORTED
            assert mean_difference({"0": found}, prompts, original) < TOLERANCE
            assert await engine.partials(["a"]) == Progress(samples={}, sampled_tokens=len(found.token_ids))

            waiting = [asyncio.create_task(call) for call in (engine.sample("b", prompts["1"]), engine.wait_for_tokens(math.inf))]
            await engine.wait_for_tokens(engine.sampled_tokens + 1)
            for child in psutil.Process().children(recursive=True):
                if child.pid not in others and "EngineCore" in child.name():
                    child.kill()
            for call in (*waiting, engine.partials(["b"]), engine.wait_for_tokens(math.inf), engine.load(snapshot_of(original, 3))):
                with pytest.raises(EngineError, match="the engine failed: EngineDeadError"):
                    await call
        finally:
            engine.close()

    asyncio.run(asyncio.wait_for(main(), 2 * WAIT_S))
