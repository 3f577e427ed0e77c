from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import NovelSamplingConfig, RolloutConfig, SamplingConfig
from actors.engine import EngineSetup, PartialSample, Sample, SampleRequest
from actors.novel_sampling import NovelSampler
from actors.reference_engine import ReferenceEngine
from actors.step_loop import StepLoop
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from learners.weights import WeightSnapshot
from tests.actors.coroutines import run
from tests.learners.samples import plain_hidden_states, plain_logprobs

END = 2
PROMPT = [1, 10, 11]
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def make_config(**settings: Any) -> NovelSamplingConfig:
    return NovelSamplingConfig(**{"enabled": True, "chunk_tokens": 2, "candidates": 2, "quality_exponent": 0.0, **settings})


# --- a scripted engine ---------------------------------------------------------------------------------------------

Candidate = tuple[list[int], Sequence[float] | None, float]
"""Token ids, state mean and the log-prob of every token."""


def candidate(token: int, *state: float, logprob: float = -1.0, length: int = 3) -> Candidate:
    """Return a candidate that repeats one token `length` times. The engine cuts it to the length asked for."""
    return [token] * length, state or None, logprob


class ScriptedEngine:
    """Answers the requests of one round after another with the candidates of `rounds`, by response key. Checks what it
    is asked.

    A candidate that is shorter than asked for has ended, as has one whose last token is END.
    """

    def __init__(self, *rounds: dict[str, list[Candidate]]) -> None:
        self.calls: list[tuple[int, bool]] = []
        self.requests: list[list[SampleRequest]] = []
        self._rounds = rounds

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        assert len({request.key for request in requests}) == len(requests), "an engine's keys are unique"
        number = len(self.calls)
        assert number < len(self._rounds), f"a round {number} that the script does not have"
        script = {key: iter(candidates) for key, candidates in self._rounds[number].items()}
        self.calls.append((seed, keep_cache))
        self.requests.append(list(requests))
        samples = [self._sample(request, next(script[request.key.split("/")[0]])) for request in requests]
        assert not [key for key, candidates in script.items() if next(candidates, None) is not None], "not every candidate was asked for"
        return samples

    @staticmethod
    def _sample(request: SampleRequest, scripted: Candidate) -> Sample:
        token_ids, state, logprob = scripted
        assert request.max_tokens is not None
        partial = PartialSample()
        for token_id in token_ids[: request.max_tokens]:
            partial.append(token_id, logprob, 3)
        ended = len(token_ids) < request.max_tokens or partial.token_ids[-1] == END
        return partial.finish(STOP if ended else LENGTH, None if state is None else np.array(state, np.float32))

    async def sample(self, key: str, prompt_ids: Sequence[int]) -> Sample:
        raise AssertionError("novel sampling samples in batches")

    async def abort(self, keys: Sequence[str]) -> None:
        raise AssertionError("nothing is aborted")

    async def load(self, snapshot: WeightSnapshot) -> float:
        raise AssertionError("nothing is loaded")

    def take_idle_s(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


def sample(engine: ScriptedEngine, *keys: str, max_tokens: int, seed: int = 0, **config: Any) -> list[Sample]:
    return run(NovelSampler(engine, make_config(**config), max_tokens=max_tokens).sample(keys, PROMPT, seed=seed))


def test_the_most_novel_candidate_is_kept() -> None:
    """Nothing is known yet, so the longest state is the most novel."""
    engine = ScriptedEngine({"a": [candidate(5, 1.0, 0, 0, 0), candidate(6, 0, 3.0, 0, 0), candidate(7, 0, 0, 2.0, 0)]})
    (found,) = sample(engine, "a", max_tokens=2, candidates=3)
    assert found.token_ids == (6, 6)


def test_of_equals_the_first_is_kept() -> None:
    engine = ScriptedEngine({"a": [candidate(5, 1.0, 0, 0, 0), candidate(6, 0, 1.0, 0, 0)]})
    assert sample(engine, "a", max_tokens=2)[0].token_ids == (5, 5)


def test_a_response_avoids_what_earlier_responses_of_the_round_kept() -> None:
    """Both responses have the same candidates. The second finds e1 already taken: with lam = 0.1 (4 + 1) / 2 its
    novelty has fallen from 4 / 0.25 to 4 / 4.25, while the shorter e2 is still at 1 / 0.25."""
    candidates = [candidate(5, 2.0, 0, 0, 0), candidate(6, 0, 1.0, 0, 0)]
    first, second, third = sample(ScriptedEngine({"a": candidates, "b": candidates, "c": candidates}), "a", "b", "c", max_tokens=2)
    assert (first.token_ids, second.token_ids) == ((5, 5), (6, 6))
    assert third.token_ids == (5, 5)  # 4 / 4.25 against 1 / 1.25


def test_a_round_avoids_what_the_rounds_before_kept() -> None:
    candidates = [candidate(5, 2.0, 0, 0, 0), candidate(6, 0, 1.0, 0, 0)]
    (found,) = sample(ScriptedEngine({"a": candidates}, {"a": candidates}), "a", max_tokens=4)
    assert found.token_ids == (5, 5, 6, 6)


def test_the_ridge_decides_how_soon_a_direction_is_exhausted() -> None:
    """At lam = 100 · 2.5, the second novelties are 4 / 254 and 1 / 250."""
    candidates = [candidate(5, 2.0, 0, 0, 0), candidate(6, 0, 1.0, 0, 0)]
    (found,) = sample(ScriptedEngine({"a": candidates}, {"a": candidates}), "a", max_tokens=4, ridge=100.0)
    assert found.token_ids == (5, 5, 5, 5)


@pytest.mark.parametrize(("exponent", "kept"), [(0.0, 6), (4.0, 5)])
def test_a_likely_candidate_beats_a_slightly_more_novel_unlikely_one_where_quality_counts(exponent: float, kept: int) -> None:
    """The novelty is 1.2² against 1, the weight exp(2·4·(-1.5 + 1)) = 0.018 against 1."""
    engine = ScriptedEngine({"a": [candidate(5, 1.0, 0, 0, 0, logprob=-1.0), candidate(6, 0, 1.2, 0, 0, logprob=-1.5)]})
    assert sample(engine, "a", max_tokens=2, quality_exponent=exponent)[0].token_ids == (kept, kept)


def test_the_token_sampled_only_to_see_the_last_state_says_nothing_of_the_quality() -> None:
    """The last of c + 1 tokens is not kept, and here only that one is likely."""
    first, second = candidate(5, 1.0, 0, 0, 0), candidate(6, 0, 1.0, 0, 0)
    engine = ScriptedEngine({"a": [first, second]})

    def with_logprobs(request: SampleRequest, scripted: Candidate) -> Sample:
        logprobs = (-2.0, -2.0, -0.1) if scripted is first else (-1.0, -1.0, -9.0)
        partial = PartialSample()
        for token_id, logprob in zip(scripted[0], logprobs, strict=True):
            partial.append(token_id, logprob, 3)
        return partial.finish(LENGTH, np.array(scripted[1], np.float32))

    engine._sample = with_logprobs  # type: ignore[method-assign]
    (found,) = sample(engine, "a", max_tokens=2, quality_exponent=1.0)
    assert (found.token_ids, found.logprobs) == ((6, 6), (-1.0, -1.0))


def test_an_ended_response_stops_and_the_others_go_on() -> None:
    engine = ScriptedEngine(
        {"a": [candidate(END, 9.0, 0, 0, 0, length=1), candidate(5, 1.0, 0, 0, 0)], "b": [candidate(6, 0, 1.0, 0, 0)] * 2},
        {"b": [candidate(7, 0, 0, 1.0, 0)] * 2},
    )
    ended, other = sample(engine, "a", "b", max_tokens=4)
    assert (ended.token_ids, ended.finish_reason) == ((END,), STOP)
    assert (other.token_ids, other.finish_reason) == ((6, 6, 7, 7), LENGTH)
    assert [[request.key.split("/")[0] for request in requests] for requests in engine.requests] == [["a", "a", "b", "b"], ["b", "b"]]


def test_an_end_that_was_not_kept_is_no_end() -> None:
    """The end token is token c + 1, which is sampled only for the sake of the state before it."""
    engine = ScriptedEngine(
        {"a": [([5, 5, END], (1.0, 0, 0, 0), -1.0)] * 2},
        {"a": [([6, END], (0, 1.0, 0, 0), -1.0)] * 2},
    )
    (found,) = sample(engine, "a", max_tokens=8)
    assert (found.token_ids, found.finish_reason) == ((5, 5, 6, END), STOP)


def test_each_round_continues_what_was_kept_by_one_token_more_than_it_keeps() -> None:
    """With five tokens in chunks of two, the last chunk is shorter."""
    engine = ScriptedEngine(*({"a": [candidate(token, 1.0, 0, 0, 0)] * 2} for token in (5, 6, 7)))
    (found,) = sample(engine, "a", max_tokens=5)
    assert (found.token_ids, found.finish_reason) == ((5, 5, 6, 6, 7), LENGTH)
    prompts = [[list(request.prompt_ids) for request in requests] for requests in engine.requests]
    assert prompts == [[PROMPT] * 2, [[*PROMPT, 5, 5]] * 2, [[*PROMPT, 5, 5, 6, 6]] * 2]
    assert [{request.max_tokens for request in requests} for requests in engine.requests] == [{3}, {3}, {2}]


def test_a_chunk_of_one_re_ranks_every_token() -> None:
    candidates = [candidate(5, 2.0, 0, 0, 0, length=2), candidate(6, 0, 1.0, 0, 0, length=2)]
    engine = ScriptedEngine(*({"a": candidates} for _ in range(3)))
    (found,) = sample(engine, "a", max_tokens=3, chunk_tokens=1)
    assert (found.token_ids, found.finish_reason) == ((5, 6, 5), LENGTH)


def test_rounds_have_seeds_of_their_own_and_keep_the_cache_of_the_first() -> None:
    rounds = [{"a": [candidate(token, 1.0, 0, 0, 0)] * 2} for token in (5, 6, 7)]
    seeds = []
    for seed in (0, 0, 1):
        engine = ScriptedEngine(*rounds)
        sample(engine, "a", max_tokens=6, seed=seed)
        seeds.append([seed for seed, _ in engine.calls])
        assert [keep_cache for _, keep_cache in engine.calls] == [False, True, True]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6


def test_a_response_carries_log_probs_versions_and_the_mean_state_of_its_chunks() -> None:
    """The mean has two states of the first chunk, and of the second the one before its end token, which is not seen."""
    engine = ScriptedEngine(
        {"a": [candidate(5, 3.0, 0, 0, 0, logprob=-0.5)] * 2},
        {"a": [([6, END], (0, 6.0, 0, 0), -0.25)] * 2},
    )
    (found,) = sample(engine, "a", max_tokens=8)
    assert found.logprobs == (-0.5, -0.5, -0.25, -0.25)
    assert (found.version_starts, found.version_values) == ((0,), (3,))
    assert found.state_mean is not None and found.state_mean.tolist() == [2.0, 2.0, 0.0, 0.0]


def test_a_chunk_that_is_only_the_end_adds_no_state() -> None:
    """The engine saw only the state of the token before it, which is in the mean already."""
    end = candidate(END, 7.0, 7.0, 7.0, 7.0, length=1)
    (found,) = sample(ScriptedEngine({"a": [candidate(5, 3.0, 0, 0, 0)] * 2}, {"a": [end] * 2}), "a", max_tokens=8)
    assert found.state_mean is not None and found.state_mean.tolist() == [3.0, 0.0, 0.0, 0.0]
    (found,) = sample(ScriptedEngine({"a": [end] * 2}), "a", max_tokens=8)  # a response of one token has only that
    assert found.state_mean is not None and found.state_mean.tolist() == [7.0, 7.0, 7.0, 7.0]


def test_states_are_compared_by_their_projection() -> None:
    """In one dimension, responses are equally novel if their states differ only in what the projection drops."""
    candidates = [candidate(5, *np.eye(4)[0]), candidate(6, *np.eye(4)[1]), candidate(7, *np.eye(4)[2]), candidate(8, *np.eye(4)[3])]
    kept = {sample(ScriptedEngine({"a": candidates}), "a", max_tokens=2, candidates=4, dim=1, seed=seed)[0].token_ids for seed in range(9)}
    assert len(kept) > 1
    assert sample(ScriptedEngine({"a": candidates}), "a", max_tokens=2, candidates=4, dim=4)[0].token_ids == (5, 5)


def test_an_engine_that_does_not_pool_states_is_refused() -> None:
    with pytest.raises(ValueError, match="novel sampling needs an engine that pools hidden states"):
        sample(ScriptedEngine({"a": [candidate(5), candidate(6)]}), "a", max_tokens=2)


# --- a real model --------------------------------------------------------------------------------------------------

KEYS = [f"0:p/0/0/{index}" for index in range(4)]


def sample_for_real(model: str, *, seed: int = 0, max_tokens: int = 10, pool_states: bool = True, **config: Any) -> list[Sample]:
    def build() -> ReferenceEngine:
        sampling = SamplingConfig(max_response_tokens=max_tokens)
        engine, config = ReferenceEngine(), RolloutConfig(engine="transformers", dtype="float32")
        engine.start(EngineSetup(model=model, config=config, sampling=sampling, seed=0, pool_states=pool_states))
        return engine

    async def main() -> list[Sample]:
        loop = StepLoop(build)
        try:
            return await NovelSampler(loop, make_config(chunk_tokens=4, **config), max_tokens=max_tokens).sample(KEYS, PROMPT, seed=seed)
        finally:
            loop.close()

    return run(main())


def test_a_pool_is_a_function_of_the_seed(tiny_model: str) -> None:
    found, again, other = (sample_for_real(tiny_model, seed=seed) for seed in (0, 0, 1))
    assert again == found
    assert all(mine.token_ids != others.token_ids for mine, others in zip(found, other, strict=True))
    assert len({sample.token_ids for sample in found}) == len(KEYS)


def test_responses_are_the_model_s_own_tokens_with_its_own_log_probs_and_states(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    samples = [sample for seed in range(5) for sample in sample_for_real(tiny_model, seed=seed, max_tokens=22, quality_exponent=1.0)]
    for sample in samples:
        ended = sample.token_ids[-1] == END
        assert END not in sample.token_ids[:-1]
        assert sample.finish_reason is (STOP if ended else LENGTH)
        assert len(sample.token_ids) == 22 or (ended and len(sample.token_ids) < 22)
        assert (sample.version_starts, sample.version_values) == ((0,), (0,))
        with torch.no_grad():
            expected = plain_logprobs(model, PROMPT, sample.token_ids)
            states_TH = plain_hidden_states(model, PROMPT, sample.token_ids)
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, rtol=0.0, atol=1e-5)
        if ended and len(sample.token_ids) > 1:
            states_TH = states_TH[:-1]
        np.testing.assert_allclose(sample.state_mean, states_TH.mean(0).numpy(), rtol=0.0, atol=1e-5)
    assert {sample.finish_reason for sample in samples} == {STOP, LENGTH}


def test_a_plain_engine_is_refused(tiny_model: str) -> None:
    with pytest.raises(ValueError, match="needs an engine that pools hidden states"):
        sample_for_real(tiny_model, pool_states=False)
