"""Responses that share their prefixes are independent samples of the model, as if each were computed by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import RolloutConfig
from actors.engine import SampleRequest, WeightMismatch
from actors.step_loop import RunningRequests, StepLoop
from actors.tree_engine import TreeEngine
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from tests.actors.test_reference_engine import (
    END,
    NORM,
    PROMPTS,
    assert_logprobs,
    assert_state_mean,
    changed_model,
    cut,
    finish,
    flip_probed_bit,
    requests_of,
    run,
    snapshot_of,
    started,
    with_tensor,
)

CONFIG = RolloutConfig(engine="prefix-tree", dtype="float32")
ONE_PROMPT = {f"0:p/0/0/{n}": [1, 10, 11] for n in range(40)}
MANY = {**PROMPTS, **ONE_PROMPT}


def start_engine(model: str, **settings: Any) -> TreeEngine:
    return started(TreeEngine(), CONFIG, model, **settings)


def make_engine(model: str, **settings: Any) -> RunningRequests:
    return RunningRequests(start_engine(model, **settings))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
def test_log_probs_are_those_of_a_plain_forward_of_each_response(tiny_model: str, temperature: float) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    found = run(make_engine(tiny_model, temperature=temperature), MANY)
    assert found.keys() == MANY.keys()
    for key, sample in found.items():
        assert_logprobs(sample, model, MANY[key], temperature=temperature)
        assert len(sample.token_ids) == 10 or sample.token_ids[-1] == END


def test_pairs_of_tokens_are_as_frequent_as_the_model_makes_them(tiny_model: str) -> None:
    """The likeliest pairs of 2,000 responses, each within four standard errors: children of one prefix are drawn
    independently, and from the distribution after that prefix."""
    model = load_causal_lm(tiny_model, dtype="float32")
    prompt, num, temperature = [1, 10, 11], 2000, 0.3
    found = run(make_engine(tiny_model, temperature=temperature, max_response_tokens=2), {f"0:p/0/0/{n}": prompt for n in range(num)})
    pairs = Counter(sample.token_ids for sample in found.values() if len(sample.token_ids) == 2)
    with torch.no_grad():
        first_V = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        likely = first_V.topk(3).indices.tolist()
        second = {token: (model(input_ids=torch.tensor([[*prompt, token]])).logits[0, -1] / temperature).softmax(-1) for token in likely}
    checked = 0
    for token, rank in product(likely, range(3)):
        after = int(second[token].topk(3).indices[rank])
        expected = float(first_V[token] * second[token][after])
        if token != END and expected > 0.005:
            checked += 1
            assert abs(pairs[(token, after)] / num - expected) < 4 * (expected * (1 - expected) / num) ** 0.5
    assert checked >= 3


def test_equal_prefixes_are_one_row_and_others_are_not_computed_twice(tiny_model: str) -> None:
    engine = start_engine(tiny_model, temperature=0.2)
    for key, prompt_ids in ONE_PROMPT.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    so_far: dict[str, list[int]] = {key: [] for key in ONE_PROMPT}
    ended: set[str] = set()
    shared = 0
    while engine._trees or engine._waiting:
        for new in engine.step():
            so_far[new.key].extend(new.token_ids)
            ended |= {new.key} if new.finish_reason else set()
        distinct = {tuple(tokens) for key, tokens in so_far.items() if key not in ended}
        assert sum(len(tree.rows) for tree in engine._trees) == len(distinct)
        shared += len(ONE_PROMPT) - len(ended) - len(distinct)
    assert shared > 0, "nothing was shared, so this test saw nothing"


def test_more_responses_than_the_cache_holds_wait_and_all_end(tiny_model: str) -> None:
    engine = start_engine(tiny_model)
    engine._max_cached = 100
    requests = RunningRequests(engine)
    for key, prompt_ids in MANY.items():
        requests.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    found = {}
    while requests.has_unfinished:
        assert sum(tree.num_reserved() for tree in engine._trees) <= 100
        found |= dict(requests.step())
    assert found.keys() == MANY.keys()


def test_a_request_that_alone_exceeds_the_cache_runs_alone(tiny_model: str) -> None:
    engine = start_engine(tiny_model)
    engine._max_cached = 5
    found = run(RunningRequests(engine), dict(list(ONE_PROMPT.items())[:3]))
    assert len(found) == 3


def test_requests_go_on_under_new_weights_and_every_token_carries_its_version(tiny_model: str) -> None:
    old, new = load_causal_lm(tiny_model, dtype="float32"), changed_model(tiny_model)
    engine = make_engine(tiny_model)
    for key, prompt_ids in MANY.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    early = [key for _ in range(3) for key, _ in engine.step()]
    engine.load(snapshot_of(new, version=4))
    found = finish(engine)
    assert len(found) == len(MANY) - len(early) >= 4
    for key, sample in found.items():
        assert (sample.version_starts, sample.version_values) == ((0, 3), (0, 4))
        assert_logprobs(sample, old, MANY[key], slice(0, 3))
        assert_logprobs(sample, new, MANY[key], slice(3, None))


def test_abort_returns_the_tokens_so_far_and_disturbs_no_other(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    engine = make_engine(tiny_model)
    for key, prompt_ids in MANY.items():
        engine.add(SampleRequest(key=key, prompt_ids=prompt_ids))
    ended = [key for _ in range(2) for key, _ in engine.step()]
    going = [key for key in MANY if key not in ended]
    aborted = dict(engine.abort(going[::2]))
    assert list(aborted) == going[::2] and {sample.finish_reason for sample in aborted.values()} == {FinishReason.ABORTED}
    assert {len(sample.token_ids) for sample in aborted.values()} == {2}
    found = finish(engine)
    assert found.keys() == set(going[1::2])
    for key, sample in found.items():
        assert_logprobs(sample, model, MANY[key])


def test_a_response_goes_on_after_tokens_of_another_engine(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    whole = run(make_engine(tiny_model), ONE_PROMPT)
    engine = make_engine(tiny_model, seed=3)
    cut_short = {key: cut(sample, n % 5) for n, (key, sample) in enumerate(whole.items()) if len(sample.token_ids) > n % 5}
    for key, sample in cut_short.items():
        engine.add(SampleRequest(key=key, prompt_ids=ONE_PROMPT[key], sampled=sample))
    for key, sample in finish(engine).items():
        num = len(cut_short[key].token_ids)
        assert sample.token_ids[:num] == cut_short[key].token_ids and len(sample.token_ids) <= 10
        assert_logprobs(sample, model, ONE_PROMPT[key], slice(num, None))


def test_a_batch_is_the_same_whatever_was_sampled_before_and_another_with_another_seed(tiny_model: str) -> None:
    async def main() -> None:
        loop = StepLoop(lambda: start_engine(tiny_model))
        first = await loop.sample_batch(requests_of(ONE_PROMPT), seed=7)
        await loop.sample("9:other/0/0/0", [1, 40, 41])
        assert await loop.sample_batch(requests_of(ONE_PROMPT), seed=7) == first
        assert await loop.sample_batch(requests_of(ONE_PROMPT), seed=8) != first
        loop.close()

    asyncio.run(asyncio.wait_for(main(), 60.0))


def test_a_sample_carries_the_mean_state_of_all_its_tokens_but_the_last(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    engine = make_engine(tiny_model, max_response_tokens=25, pool_states=True)
    found = run(engine, MANY)
    assert {sample.finish_reason for sample in found.values()} == {FinishReason.STOP, FinishReason.LENGTH}
    for key, sample in found.items():
        assert_state_mean(sample, model, MANY[key])


def test_an_altered_tensor_is_named(tiny_model: str) -> None:
    snapshot = with_tensor(snapshot_of(changed_model(tiny_model)), NORM, flip_probed_bit)
    with pytest.raises(WeightMismatch, match=f"version 1 .* tensor {NORM}"):
        make_engine(tiny_model).load(snapshot)


def test_the_bytes_of_a_cached_token_are_those_of_the_cache(tiny_model: str) -> None:
    engine = start_engine(tiny_model)
    engine.add(SampleRequest(key="0:p/0/0/0", prompt_ids=[1, 10, 11, 12]))
    engine.step()
    layers = engine._trees[0].cache.layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert held == 4 * engine._bytes_per_token() and np.isfinite(held)
