from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineSetup, PartialSample, Sample, SampleRequest, StepEngine, WeightMismatch
from actors.reference_engine import ReferenceEngine
from actors.step_loop import RunningRequests, StepLoop
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from learners.weights import HEAD, WeightSnapshot, take_snapshot
from tests.learners.samples import plain_hidden_states, plain_logprobs

CONFIG = RolloutConfig(engine="transformers", dtype="float32")
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
END = 2
PROMPTS = {f"0:p{n}/0/0/{n}": [1, *range(10, 12 + n)] for n in range(8)}


WAIT_S = 30.0  # bounds every wait
T = TypeVar("T")
E = TypeVar("E", bound=StepEngine)


def start_engine(model: str, **settings: Any) -> ReferenceEngine:
    return started(ReferenceEngine(), CONFIG, model, **settings)


def started(
    engine: E,
    config: RolloutConfig,
    model: str,
    *,
    seed: int = 0,
    max_response_tokens: int = 10,
    temperature: float = 1.0,
    pool_states: bool = False,
) -> E:
    sampling = SamplingConfig(temperature=temperature, max_response_tokens=max_response_tokens)
    engine.start(EngineSetup(model=model, config=config, sampling=sampling, seed=seed, pool_states=pool_states))
    return engine


def make_engine(model: str, **settings: Any) -> RunningRequests:
    """A started engine, and what the loop keeps about its requests."""
    return RunningRequests(start_engine(model, **settings))


def wait(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, WAIT_S))


def run(engine: RunningRequests, prompts: Mapping[str, list[int]]) -> dict[str, Sample]:
    for key, prompt_ids in prompts.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    return finish(engine)


def finish(engine: RunningRequests) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for _ in range(1000):
        if not engine.has_unfinished:
            return found
        found |= dict(engine.step())
    pytest.fail("a response never ended")


def partial_of(token_ids: list[int]) -> Sample:
    """Return an unfinished response that another engine has sampled under version 2."""
    partial = PartialSample()
    for token_id in token_ids:
        partial.append(token_id, -1.0, 2)
    return partial.finish(FinishReason.ABORTED)


def cut(sample: Sample, num_tokens: int) -> Sample:
    """Return the first tokens of a response that was sampled under one version."""
    assert 0 <= num_tokens <= len(sample.token_ids) and sample.version_starts == (0,)
    has_run = slice(0, 1 if num_tokens else 0)
    return Sample(
        token_ids=sample.token_ids[:num_tokens],
        logprobs=sample.logprobs[:num_tokens],
        version_starts=sample.version_starts[has_run],
        version_values=sample.version_values[has_run],
        finish_reason=FinishReason.ABORTED,
    )


def changed_model(path: str, *, dtype: str = "float32") -> Any:
    """Return the model with all weights changed, as by training."""
    model = load_causal_lm(path, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def snapshot_of(model: Any, version: int = 1) -> WeightSnapshot:
    return take_snapshot(model.named_parameters(), version=version, tied_to=EMBEDDING)


def assert_logprobs(sample: Sample, model: Any, prompt: list[int], positions: slice = slice(None), **settings: float) -> None:
    with torch.no_grad():
        expected = plain_logprobs(model, prompt, sample.token_ids, **settings)
    torch.testing.assert_close(torch.tensor(sample.logprobs)[positions], expected[positions], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probs_are_those_of_a_plain_forward_under_the_sampling_temperature(tiny_model: str, temperature: float) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    found = run(make_engine(tiny_model, temperature=temperature), PROMPTS)
    assert found.keys() == PROMPTS.keys()
    for key, sample in found.items():
        assert_logprobs(sample, model, PROMPTS[key], temperature=temperature)


@pytest.mark.parametrize("num_before", [0, 1, 5])
def test_tokens_are_drawn_from_the_distribution_whose_log_probs_are_given(tiny_model: str, num_before: int) -> None:
    """Among 200 tokens at one position, the share of the likeliest is its probability within four standard errors."""
    model = load_causal_lm(tiny_model, dtype="float32")
    prompt, before = [1, 10, 11], partial_of([12, 13, 14, 15, 16][:num_before])
    with torch.no_grad():
        probability_V = model(input_ids=torch.tensor([[*prompt, *before.token_ids]])).logits[0, -1].div(0.3).softmax(-1)
    engine = make_engine(tiny_model, temperature=0.3, max_response_tokens=num_before + 1)
    for n in range(200):
        engine.add(SampleRequest(key=f"0:p/{n}", prompt_ids=prompt, sampled=before))
    found = finish(engine)
    likeliest = int(probability_V.argmax())
    share = np.mean([sample.token_ids[num_before] == likeliest for sample in found.values()])
    expected = float(probability_V[likeliest])
    assert 0.1 < expected < 0.95
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 200) ** 0.5


def test_what_is_sampled_depends_on_the_seed_and_the_key_alone(tiny_model: str) -> None:
    together = run(make_engine(tiny_model), PROMPTS)
    for key, prompt_ids in reversed(PROMPTS.items()):
        assert run(make_engine(tiny_model), {key: prompt_ids}) == {key: together[key]}
    assert run(make_engine(tiny_model, seed=1), PROMPTS) != together


def test_a_group_sampled_again_under_another_id_is_the_same_group(tiny_model: str) -> None:
    prompt = [1, 10, 11]
    found = run(make_engine(tiny_model), {"4:p/0/0/1": prompt, "9:p/0/0/1": prompt, "4:p/0/0/2": prompt})
    assert found["4:p/0/0/1"] == found["9:p/0/0/1"] != found["4:p/0/0/2"]


def test_a_response_ends_with_its_end_token_or_at_its_length(tiny_model: str) -> None:
    found = run(make_engine(tiny_model, max_response_tokens=25), {f"0:p/{n}": [1, 10, 11] for n in range(20)})
    by_reason = {reason: [sample for sample in found.values() if sample.finish_reason is reason] for reason in FinishReason}
    assert by_reason[FinishReason.STOP] and by_reason[FinishReason.LENGTH] and not by_reason[FinishReason.ABORTED]
    for sample in by_reason[FinishReason.STOP]:  # the end token is kept: it was sampled, and is trained on
        assert sample.token_ids[-1] == END and END not in sample.token_ids[:-1]
    for sample in by_reason[FinishReason.LENGTH]:
        assert len(sample.token_ids) == 25 and END not in sample.token_ids


def test_requests_go_on_under_new_weights_and_every_token_carries_its_version(tiny_model: str) -> None:
    old, new = load_causal_lm(tiny_model, dtype="float32"), changed_model(tiny_model)
    engine = make_engine(tiny_model)
    for key, prompt_ids in PROMPTS.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    early = [key for _ in range(3) for key, _ in engine.step()]
    engine.load(snapshot_of(new, version=4))
    assert engine.version == 4
    found = finish(engine)
    assert len(found) == len(PROMPTS) - len(early) >= 4
    for key, sample in found.items():
        assert (sample.version_starts, sample.version_values) == ((0, 3), (0, 4))
        assert_logprobs(sample, old, PROMPTS[key], slice(0, 3))
        assert_logprobs(sample, new, PROMPTS[key], slice(3, None))


def test_abort_returns_the_tokens_so_far(tiny_model: str) -> None:
    engine = make_engine(tiny_model)
    whole = run(make_engine(tiny_model), PROMPTS)
    for key, prompt_ids in PROMPTS.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    for _ in range(2):
        assert not engine.step()
    first, second, *others = PROMPTS
    aborted = dict(engine.abort([first, second]))
    assert list(aborted) == [first, second]
    for key, sample in aborted.items():
        assert sample.finish_reason is FinishReason.ABORTED
        assert (sample.token_ids, sample.logprobs) == (whole[key].token_ids[:2], whole[key].logprobs[:2])
    assert finish(engine) == {key: whole[key] for key in others}


def test_partials_are_the_tokens_so_far_and_disturb_no_request(tiny_model: str) -> None:
    whole = run(make_engine(tiny_model, pool_states=True), PROMPTS)
    engine = make_engine(tiny_model, pool_states=True)
    for key, prompt_ids in PROMPTS.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    first, second, *_ = PROMPTS
    assert engine.partials([first]) == {first: cut(whole[first], 0)}
    for _ in range(2):
        assert not engine.step()
    found = engine.partials([first, second, "never heard of"])
    assert found == {key: cut(whole[key], 2) for key in (first, second)}
    assert all(sample.state_mean is None for sample in found.values())
    assert engine.sampled_tokens == 2 * len(PROMPTS)
    assert finish(engine) == whole
    assert engine.sampled_tokens == sum(len(sample.token_ids) for sample in whole.values())


def test_a_response_cut_anywhere_goes_on_in_another_engine_as_if_it_had_not_been(tiny_model: str) -> None:
    """It is the same token for token and bit for bit, also if it is cut twice."""
    whole = run(make_engine(tiny_model), PROMPTS)
    for num_tokens in range(10):
        cut_short = {key: cut(sample, num_tokens) for key, sample in whole.items() if num_tokens < len(sample.token_ids)}
        assert len(cut_short) >= 4
        engine = make_engine(tiny_model)
        for key, sample in reversed(cut_short.items()):
            engine.add(SampleRequest(key=key, prompt_ids=PROMPTS[key], sampled=sample))
        early = dict(engine.step())
        again = dict(engine.abort([key for key in cut_short if key not in early]))
        assert again == {key: cut(whole[key], num_tokens + 1) for key in again}
        third = make_engine(tiny_model)
        for key, sample in again.items():
            third.add(SampleRequest(key=key, prompt_ids=PROMPTS[key], sampled=sample))
        assert early | finish(third) == {key: whole[key] for key in cut_short}
        assert engine.sampled_tokens == len(cut_short)


def test_under_other_weights_the_old_tokens_stay_and_the_new_ones_are_a_version_run_of_their_own(tiny_model: str) -> None:
    old, new = load_causal_lm(tiny_model, dtype="float32"), changed_model(tiny_model)
    whole = run(make_engine(tiny_model), PROMPTS)
    engine = make_engine(tiny_model)
    engine.load(snapshot_of(new, version=4))
    for num_tokens in range(1, 10):
        cut_short = {key: cut(sample, num_tokens) for key, sample in whole.items() if num_tokens < len(sample.token_ids)}
        for key, sample in cut_short.items():
            engine.add(SampleRequest(key=key, prompt_ids=PROMPTS[key], sampled=sample))
        found = finish(engine)
        assert found.keys() == cut_short.keys()
        for key, sample in found.items():
            assert (sample.version_starts, sample.version_values) == ((0, num_tokens), (0, 4))
            assert sample.token_ids[:num_tokens] == whole[key].token_ids[:num_tokens]
            assert sample.logprobs[:num_tokens] == whole[key].logprobs[:num_tokens]
            assert len(sample.token_ids) == 10 or sample.token_ids[-1] == END
            assert_logprobs(sample, old, PROMPTS[key], slice(0, num_tokens))
            assert_logprobs(sample, new, PROMPTS[key], slice(num_tokens, None))


def test_loaded_weights_are_those_sampled_with(tiny_model: str) -> None:
    new = changed_model(tiny_model)
    engine = make_engine(tiny_model)
    before = run(engine, PROMPTS)
    engine.load(snapshot_of(new))
    after = run(engine, PROMPTS)
    for key, sample in after.items():
        assert_logprobs(sample, new, PROMPTS[key])
        assert sample.version_values == (1,)
        assert sample.token_ids != before[key].token_ids


def test_weights_of_another_precision_do_not_pass_for_the_published_ones(tiny_model: str) -> None:
    with pytest.raises(WeightMismatch, match=r"version 1 .* tensor"):
        make_engine(tiny_model).load(snapshot_of(changed_model(tiny_model, dtype="bfloat16")))


# --- a batch of its own --------------------------------------------------------------------------------------------


def requests_of(prompts: Mapping[str, list[int]], *, max_tokens: int | None = None) -> list[SampleRequest]:
    return [SampleRequest(key=key, prompt_ids=prompt_ids, max_tokens=max_tokens) for key, prompt_ids in prompts.items()]


def test_a_batch_is_the_same_whatever_was_sampled_before_and_another_with_another_seed(tiny_model: str) -> None:
    async def main() -> None:
        loop = StepLoop(lambda: start_engine(tiny_model))
        first = await loop.sample_batch(requests_of(PROMPTS), seed=7)
        await loop.sample("9:other/0/0/0", [1, 40, 41])
        other = await loop.sample_batch(requests_of(PROMPTS), seed=8)
        again = await loop.sample_batch(requests_of(PROMPTS), seed=7)
        assert again == first
        assert all(mine.token_ids != others.token_ids for mine, others in zip(first, other, strict=True))
        fresh = StepLoop(lambda: start_engine(tiny_model, seed=5))
        assert await fresh.sample_batch(requests_of(PROMPTS), seed=7) == first
        for each in (loop, fresh):
            each.close()

    wait(main())


def test_a_request_s_own_limit_takes_the_place_of_the_config_s(tiny_model: str) -> None:
    async def main() -> None:
        loop = StepLoop(lambda: start_engine(tiny_model))
        by_limit = {limit: await loop.sample_batch(requests_of(PROMPTS, max_tokens=limit), seed=7) for limit in (None, 3, 14)}
        loop.close()
        longest = {limit: max(len(sample.token_ids) for sample in samples) for limit, samples in by_limit.items()}
        assert longest == {None: 10, 3: 3, 14: 14}
        for short, long in zip(by_limit[3], by_limit[14], strict=True):
            assert short.token_ids == long.token_ids[:3]
            assert short.finish_reason is (FinishReason.STOP if short.token_ids[-1] == END else FinishReason.LENGTH)

    wait(main())


# --- hidden states seen while sampling -----------------------------------------------------------------------------


def assert_state_mean(sample: Sample, model: Any, prompt: list[int]) -> None:
    """Check the mean state: over all tokens but the last, or of a single token the one at the prompt's last token."""
    with torch.no_grad():
        states_TH = plain_hidden_states(model, prompt, sample.token_ids)
        before_H = plain_hidden_states(model, prompt[:-1], prompt[-1:])[0]
    expected_H = states_TH[:-1].mean(0) if len(states_TH) > 1 else before_H
    assert sample.state_mean is not None and sample.state_mean.dtype == np.float32
    np.testing.assert_allclose(sample.state_mean, expected_H.numpy(), rtol=0.0, atol=1e-5)


def test_a_sample_carries_the_mean_state_of_all_its_tokens_but_the_last(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    engine = make_engine(tiny_model, max_response_tokens=25, pool_states=True)
    found = run(engine, {**PROMPTS, **{f"0:more/{n}": [1, 10, 11] for n in range(10)}})
    prompts = {key: PROMPTS.get(key, [1, 10, 11]) for key in found}
    assert {sample.finish_reason for sample in found.values()} == {FinishReason.STOP, FinishReason.LENGTH}
    for key, sample in found.items():
        assert_state_mean(sample, model, prompts[key])
    assert not len(engine._engine._pooled or ())


def test_a_sample_of_one_token_carries_the_state_it_was_sampled_from(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    for key, sample in run(make_engine(tiny_model, max_response_tokens=1, pool_states=True), PROMPTS).items():
        assert len(sample.token_ids) == 1
        assert_state_mean(sample, model, PROMPTS[key])


def test_an_aborted_sample_carries_the_mean_of_what_it_had_or_none(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    engine = make_engine(tiny_model, pool_states=True)
    (started, prompt), (not_started, other_prompt), *_ = PROMPTS.items()
    engine.add(SampleRequest(key=started, prompt_ids=prompt))
    for _ in range(3):
        engine.step()
    engine.add(SampleRequest(key=not_started, prompt_ids=other_prompt))
    aborted = dict(engine.abort([started, not_started]))
    assert len(aborted[started].token_ids) == 3
    assert_state_mean(aborted[started], model, prompt)
    assert (aborted[not_started].token_ids, aborted[not_started].state_mean) == ((), None)


def test_a_continued_sample_has_no_mean_state_for_the_states_of_its_first_tokens_are_not_known(tiny_model: str) -> None:
    whole = run(make_engine(tiny_model, pool_states=True), PROMPTS)
    engine = make_engine(tiny_model, pool_states=True)
    for key, prompt_ids in PROMPTS.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids, sampled=cut(whole[key], 2)))
    found = finish(engine)
    assert found == whole
    assert all(sample.state_mean is None for sample in found.values())
    assert not len(engine._engine._pooled or ()), "a slot was not given back"


def test_pooling_states_changes_nothing_that_is_sampled(tiny_model: str) -> None:
    plain, pooled = (run(make_engine(tiny_model, pool_states=pool_states), PROMPTS) for pool_states in (False, True))
    assert plain == pooled
    assert all(sample.state_mean is None for sample in plain.values())


# --- what a load must notice ---------------------------------------------------------------------------------------


def with_tensor(snapshot: WeightSnapshot, name: str, change: Any) -> WeightSnapshot:
    """Return the snapshot with one tensor changed and the fingerprint of the true weights."""
    copied = replace(snapshot, buffer=snapshot.buffer.copy())
    change(dict(copied.tensors())[name])
    return copied


def flip_probed_bit(tensor: Tensor) -> None:
    """Flip the lowest bit of every float32, and so of the probed columns too."""
    tensor.view(torch.int32)[...] ^= 1


@pytest.mark.parametrize("name", [NORM, "model.layers.1.self_attn.k_proj.weight"])
def test_an_altered_tensor_is_named(tiny_model: str, name: str) -> None:
    snapshot = with_tensor(snapshot_of(changed_model(tiny_model)), name, flip_probed_bit)
    with pytest.raises(WeightMismatch, match=f"version 1 .* tensor {name}"):
        make_engine(tiny_model).load(snapshot)


@pytest.mark.parametrize("name", [NORM, "model.layers.0.mlp.down_proj.weight", EMBEDDING])
def test_a_dropped_tensor_is_named(tiny_model: str, name: str) -> None:
    snapshot = snapshot_of(changed_model(tiny_model))
    dropped = replace(snapshot, index=tuple(spec for spec in snapshot.index if spec.name != name))
    assert len(dropped.index) == len(snapshot.index) - 1
    with pytest.raises(WeightMismatch, match=f"tensor {name}"):
        make_engine(tiny_model).load(dropped)


def test_a_stale_tied_head_is_named(tiny_model: str) -> None:
    """The engine keeps a copy of the embedding as its head and does not update it."""
    engine = make_engine(tiny_model)
    head = engine._engine._model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with pytest.raises(WeightMismatch, match=f"tensor {HEAD}"):
        engine.load(snapshot_of(changed_model(tiny_model)))


def test_after_a_mismatch_the_version_has_not_advanced(tiny_model: str) -> None:
    engine = make_engine(tiny_model)
    with pytest.raises(WeightMismatch):
        engine.load(with_tensor(snapshot_of(changed_model(tiny_model)), NORM, flip_probed_bit))
    assert engine.version == 0
