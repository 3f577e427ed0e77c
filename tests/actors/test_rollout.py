from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer

import actors.rollout
from actors.config import NovelSamplingConfig, RolloutConfig, SamplingConfig
from actors.engine import EngineError, PartialSample, Sample, SampleRequest, WeightMismatch
from actors.features import Projector
from actors.reference_engine import ReferenceEngine
from actors.rollout import RolloutWorker, request_keys
from bonus.config import BonusConfig
from bonus.projection import sparse_projection
from buffers.records import FinishReason, GroupRequest
from buffers.schema import from_record_batch, validate_groups
from learners.forward import load_causal_lm
from learners.weights import WeightSnapshot, take_snapshot
from tests.actors.coroutines import WAIT_S, begin, run
from tests.learners.samples import make_request, plain_hidden_states, plain_logprobs

GROUP_SIZE = 4
END = 2
MESSAGES = [{"role": "user", "content": "1 + 2?"}]


def make_worker(model: str, *, features: dict[str, Any] | None = None, **sampling: Any) -> RolloutWorker:
    """`features` are the arguments that decide whether a group carries hidden states, and how."""
    return RolloutWorker(
        worker_id="rollout-3",
        run_id="run",
        model=model,
        config=RolloutConfig(engine="transformers", dtype="float32"),
        sampling=SamplingConfig(**{"max_response_tokens": 12, **sampling}),
        seed=0,
        **(features or {}),
    )


def request_of(group_id: int = 5, **settings: int) -> GroupRequest:
    return make_request(group_id, num_responses=GROUP_SIZE, **settings)


def generate(model: str, *requests: GroupRequest, **sampling: Any) -> list[pa.RecordBatch]:
    """The groups of `requests`, all under way at once."""

    async def main() -> list[pa.RecordBatch]:
        worker = make_worker(model, **sampling)
        await worker.start()
        results = await asyncio.gather(*(worker.generate(request, MESSAGES) for request in requests))
        await worker.close()
        return [batch for batch, _ in results]

    return run(main())


def snapshot_of(model: str, *, version: int = 1, noise: float = 0.1) -> WeightSnapshot:
    changed = load_causal_lm(model, dtype="float32")
    torch.manual_seed(version)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    return take_snapshot(changed.named_parameters(), version=version, tied_to="model.embed_tokens.weight")


class Gate:
    """Holds the engine before its step number `step` until the test opens it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()
        self._count = 0
        original = ReferenceEngine.step

        def gated(engine: ReferenceEngine) -> list[tuple[str, Sample]]:
            self._count += 1
            if self._count == step:
                self._reached.set()
                assert self._opened.wait(WAIT_S), "the gate was never opened"
            return original(engine)

        monkeypatch.setattr(ReferenceEngine, "step", gated)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, WAIT_S), "the engine never got to the gate"

    def open(self) -> None:
        self._opened.set()


def test_a_group_comes_back_whole_and_valid(tiny_model: str) -> None:
    async def main() -> None:
        worker = make_worker(tiny_model)
        assert await worker.start() == "rollout-3"
        batch, usage = await worker.generate(request_of(5, admitted_version=2, attempt=1), MESSAGES)
        await worker.close()
        validate_groups(batch, GROUP_SIZE)
        (group,) = from_record_batch(batch)
        assert (group.run_id, group.worker_id) == ("run", "rollout-3")
        assert group.request == request_of(5, admitted_version=2, attempt=1)
        prompt_ids = AutoTokenizer.from_pretrained(tiny_model).apply_chat_template(
            MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert [list(rollout.prompt_ids) for rollout in group.rollouts] == [prompt_ids] * GROUP_SIZE
        assert len({rollout.response_ids for rollout in group.rollouts}) == GROUP_SIZE
        assert usage.worker_id == "rollout-3"
        assert usage.prompt_tokens == len(prompt_ids)
        assert usage.response_tokens == sum(len(rollout.response_ids) for rollout in group.rollouts)
        assert usage.generate_s > 0

    run(main())


def test_the_text_is_decoded_without_special_tokens_while_the_ids_keep_them(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    batches = generate(tiny_model, *(request_of(group_id) for group_id in range(4)), max_response_tokens=25)
    rollouts = [rollout for batch in batches for group in from_record_batch(batch) for rollout in group.rollouts]
    ended = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert ended and len(ended) < len(rollouts)
    for rollout in ended:
        assert rollout.response_ids[-1] == END
        assert tokenizer.decode(rollout.response_ids).endswith("</s>")
    for rollout in rollouts:
        assert rollout.response_text == tokenizer.decode(rollout.response_ids, skip_special_tokens=True)
        assert "</s>" not in rollout.response_text


def test_behaviour_log_probs_are_those_of_the_model(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    (batch,) = generate(tiny_model, request_of(), temperature=0.9)
    (group,) = from_record_batch(batch)
    for rollout in group.rollouts:
        with torch.no_grad():
            expected = plain_logprobs(model, rollout.prompt_ids, rollout.response_ids, temperature=0.9)
        torch.testing.assert_close(torch.tensor(rollout.behavior_logprobs), expected, rtol=0.0, atol=1e-5)


def test_a_group_does_not_depend_on_its_company(tiny_model: str) -> None:
    together = generate(tiny_model, *(request_of(group_id) for group_id in range(4)))
    (alone,) = generate(tiny_model, request_of(2))
    sampled = ["response_ids", "behavior_logprobs", "finish_reason"]
    assert alone.select(sampled).equals(together[2].select(sampled))


def test_engine_keys_are_unique_by_group_and_seeded_by_problem_version_and_attempt() -> None:
    keys = request_keys(request_of(5))
    assert keys == [f"5:p5/0/0/{index}" for index in range(GROUP_SIZE)]
    again = request_keys(replace(request_of(5), group_id=9))  # after a resume the same group has another id
    assert [key.partition(":")[2] for key in again] == [key.partition(":")[2] for key in keys]
    for other in (request_of(5, attempt=1), request_of(5, admitted_version=1), request_of(6)):
        assert not {key.partition(":")[2] for key in request_keys(other)} & {key.partition(":")[2] for key in keys}


def test_a_prompt_that_is_too_long_names_the_problem_and_both_numbers(tiny_model: str) -> None:
    async def main() -> None:
        worker = make_worker(tiny_model, max_prompt_tokens=5)
        await worker.start()
        with pytest.raises(ValueError, match=r"problem p7 has \d\d tokens, more than sampling\.max_prompt_tokens = 5"):
            await worker.generate(request_of(7), MESSAGES)
        await worker.close()

    run(main())


def test_a_worker_that_was_not_started_says_so(tiny_model: str) -> None:
    with pytest.raises(RuntimeError, match="rollout-3 has not been started"):
        run(make_worker(tiny_model).generate(request_of(), MESSAGES))


def test_an_update_reaches_groups_under_way_and_those_after(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, step=3)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        await gate.reached()
        updating = await begin(worker.update(snapshot_of(tiny_model, version=6)))
        gate.open()
        update = await updating
        assert (update.worker_id, update.version) == ("rollout-3", 6)
        assert update.load_s > 0 and update.idle_s >= 0
        batch, _ = await under_way
        validate_groups(batch, GROUP_SIZE)
        runs = batch.select(["version_starts", "version_values"]).to_pylist()
        assert runs[0] == {"version_starts": [0, 3], "version_values": [0, 6]}  # the first was in every step so far
        assert all(row["version_values"] == [0, 6] for row in runs)
        later, _ = await worker.generate(request_of(1), MESSAGES)
        assert later.column("version_values").to_pylist() == [[6]] * GROUP_SIZE
        await worker.close()

    run(main())


def test_altered_weights_stop_the_worker_and_name_the_tensor(tiny_model: str) -> None:
    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        snapshot = snapshot_of(tiny_model)
        dict(snapshot.tensors())["model.norm.weight"][3] += 1
        with pytest.raises(WeightMismatch, match=r"version 1 .* tensor model\.norm\.weight"):
            await worker.update(snapshot)
        with pytest.raises(EngineError, match=r"model\.norm\.weight"):
            await worker.generate(request_of(), MESSAGES)
        await worker.close()

    run(main())


def test_an_aborted_group_returns_what_was_sampled(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    gate = Gate(monkeypatch, step=4)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        await worker.abort(0)  # unknown: nothing happens
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        await gate.reached()
        abort = await begin(worker.abort(0))
        gate.open()
        await abort
        batch, usage = await under_way
        validate_groups(batch, GROUP_SIZE)
        assert set(batch.column("finish_reason").to_pylist()) == {"aborted"}
        responses, all_of_them = batch.column("response_ids").to_pylist(), whole.column("response_ids").to_pylist()
        assert len(responses[0]) == 4
        assert usage.response_tokens == sum(map(len, responses))
        assert all(response == expected[: len(response)] for response, expected in zip(responses, all_of_them, strict=True))
        await worker.abort(0)  # has ended: nothing happens
        await worker.close()

    run(main())


# --- pools and features ------------------------------------------------------------------------------------------------

DIM = 6
RAW: dict[str, Any] = {"pool_states": True}
PROJECTED: dict[str, Any] = {"pool_states": True, "bonus": BonusConfig(dim=DIM), "projection_seed": 11}


def in_worker(worker: RolloutWorker, *calls: Coroutine[Any, Any, tuple[pa.RecordBatch, Any]]) -> list[pa.RecordBatch]:
    """Start the worker, make the calls one after another, close it."""

    async def main() -> list[pa.RecordBatch]:
        await worker.start()
        batches = [(await call)[0] for call in calls]
        await worker.close()
        return batches

    return run(main())


def pool(model: str, *, seed: int = 7, features: dict[str, Any] | None = None, **sampling: Any) -> pa.RecordBatch:
    worker = make_worker(model, features=features, **sampling)
    return in_worker(worker, worker.sample_pool(request_of(), MESSAGES, seed))[0]


def state_means(model_path: str, batch: pa.RecordBatch) -> np.ndarray:
    """The mean own state of all tokens but the last, of a single token the prompt's last state, by plain forwards, (K, H)."""
    model = load_causal_lm(model_path, dtype="float32")
    means = []
    for row in batch.select(["prompt_ids", "response_ids"]).to_pylist():
        prompt, response = row["prompt_ids"], row["response_ids"]
        with torch.no_grad():
            states_TH = plain_hidden_states(model, prompt, response)[:-1]
            before_1H = plain_hidden_states(model, prompt[:-1], prompt[-1:])
        means.append((states_TH if len(states_TH) else before_1H).double().mean(0))
    return torch.stack(means).numpy()


def without_timing(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select([name for name in batch.schema.names if name != "generate_s"])


def test_a_pool_is_a_whole_group_that_is_the_same_whatever_was_sampled_before_it(tiny_model: str) -> None:
    worker = make_worker(tiny_model)
    first, _, again, other = in_worker(
        worker,
        worker.sample_pool(request_of(5), MESSAGES, 7),
        worker.generate(request_of(8), MESSAGES),
        worker.sample_pool(request_of(5), MESSAGES, 7),
        worker.sample_pool(request_of(5), MESSAGES, 8),
    )
    validate_groups(first, GROUP_SIZE)
    (group,) = from_record_batch(first)
    assert group.request == request_of(5)
    assert len({rollout.response_ids for rollout in group.rollouts}) == GROUP_SIZE
    assert without_timing(again).equals(without_timing(first))
    assert without_timing(pool(tiny_model)).equals(without_timing(first))
    pairs = zip(first.column("response_ids").to_pylist(), other.column("response_ids").to_pylist(), strict=True)
    assert all(mine != others for mine, others in pairs)
    assert first.column("feature").null_count == GROUP_SIZE


def test_a_pool_is_refused_while_the_engine_has_other_requests(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, step=2)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        await gate.reached()
        refused = await begin(worker.sample_pool(request_of(1), MESSAGES, 7))
        gate.open()
        with pytest.raises(RuntimeError, match="4 responses were to be sampled alone, but the engine has others under way"):
            await refused
        validate_groups((await under_way)[0], GROUP_SIZE)
        await worker.close()

    run(main())


@pytest.mark.parametrize("method", ["generate", "sample_pool"])
@pytest.mark.parametrize("max_response_tokens", [1, 12])
def test_features_are_the_engine_s_mean_states(tiny_model: str, method: str, max_response_tokens: int) -> None:
    worker = make_worker(tiny_model, features=RAW, max_response_tokens=max_response_tokens)
    arguments = (7,) if method == "sample_pool" else ()
    (batch,) = in_worker(worker, getattr(worker, method)(request_of(), MESSAGES, *arguments))
    assert batch.schema.field("feature").type == pa.list_(pa.float32())
    np.testing.assert_allclose(batch.column("feature").to_pylist(), state_means(tiny_model, batch), rtol=0.0, atol=1e-5)


def test_with_a_bonus_config_features_are_projected(tiny_model: str) -> None:
    raw, projected = pool(tiny_model, features=RAW), pool(tiny_model, features=PROJECTED)
    kept = [name for name in raw.schema.names if name not in ("feature", "generate_s")]
    assert projected.select(kept).equals(raw.select(kept))
    means = state_means(tiny_model, raw)
    expected = means @ sparse_projection(means.shape[1], DIM, seed=11).numpy()
    np.testing.assert_allclose(projected.column("feature").to_pylist(), expected, rtol=0.0, atol=2e-5)


def test_a_redrawn_projection_is_that_of_the_problem_and_the_version_it_was_admitted_under(tiny_model: str) -> None:
    redrawn = {**PROJECTED, "bonus": BonusConfig(dim=DIM, redraw_projection=True)}
    for version in (0, 3):
        worker = make_worker(tiny_model, features=redrawn)
        (batch,) = in_worker(worker, worker.sample_pool(request_of(5, admitted_version=version), MESSAGES, 7))
        means = torch.from_numpy(state_means(tiny_model, batch))
        expected = Projector(redrawn["bonus"], hidden_size=means.shape[1], seed=11)(means, "p5", version)
        np.testing.assert_allclose(batch.column("feature").to_pylist(), expected.numpy(), rtol=0.0, atol=2e-5)


class OneTokenEach:
    """An engine whose responses have a token and a state each, but for the second, which was ended before its first."""

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        samples = []
        for number in range(len(requests)):
            partial = PartialSample()
            if number == 1:
                samples.append(partial.finish(FinishReason.ABORTED))
                continue
            partial.append(5, -1.0, 0)
            samples.append(partial.finish(FinishReason.LENGTH, np.full(32, number, np.float32)))
        return samples

    def close(self) -> None:
        pass


@pytest.mark.parametrize("features", [RAW, PROJECTED], ids=["raw", "projected"])
def test_only_a_response_without_a_token_has_no_feature(tiny_model: str, features: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.rollout, "build_engine", lambda *args, **options: OneTokenEach())
    batch = pool(tiny_model, features=features)
    projection_HD = sparse_projection(32, DIM, seed=11).numpy() if features is PROJECTED else np.eye(32)
    found = batch.column("feature").to_pylist()
    assert [feature is None for feature in found] == [False, True, False, False]
    for number in (0, 2, 3):
        np.testing.assert_allclose(found[number], np.full(32, number) @ projection_HD, rtol=1e-6, atol=1e-6)


def test_a_group_ended_before_its_first_token_has_no_features(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests and their end wait behind a step that belongs to another group."""
    gate = Gate(monkeypatch, step=1)

    async def main() -> None:
        worker = make_worker(tiny_model, features=PROJECTED)
        await worker.start()
        other = await begin(worker.generate(request_of(9), MESSAGES))
        await gate.reached()
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        abort = await begin(worker.abort(0))
        gate.open()
        await abort
        batch, usage = await under_way
        validate_groups(batch, GROUP_SIZE)
        assert (usage.response_tokens, batch.column("feature").null_count) == (0, GROUP_SIZE)
        assert (await other)[0].column("feature").null_count == 0
        await worker.close()

    run(main())


def novel(model: str, *, seed: int = 7, features: dict[str, Any] | None = None) -> tuple[pa.RecordBatch, Any]:
    config = NovelSamplingConfig(enabled=True, chunk_tokens=4, candidates=3)

    async def main() -> tuple[pa.RecordBatch, Any]:
        worker = make_worker(model, features=features)
        await worker.start()
        try:
            return await worker.sample_novel_pool(request_of(), MESSAGES, seed, config)
        finally:
            await worker.close()

    return run(main())


def test_a_novel_pool_is_a_whole_group_with_features_and_a_function_of_the_seed(tiny_model: str) -> None:
    (found, usage), (again, _), (other, _) = (novel(tiny_model, seed=seed, features=PROJECTED) for seed in (7, 7, 8))
    validate_groups(found, GROUP_SIZE)
    assert from_record_batch(found)[0].request == request_of()
    responses = found.column("response_ids").to_pylist()
    assert all(1 <= len(response) <= 12 for response in responses)
    assert usage.response_tokens == sum(map(len, responses))
    assert [len(feature) for feature in found.column("feature").to_pylist()] == [DIM] * GROUP_SIZE
    assert without_timing(again).equals(without_timing(found))
    assert other.column("response_ids").to_pylist() != responses


def test_a_novel_pool_needs_an_engine_that_pools_states(tiny_model: str) -> None:
    with pytest.raises(ValueError, match="novel sampling needs an engine that pools hidden states"):
        novel(tiny_model)


@pytest.mark.parametrize("method", ["sample_pool", "sample_novel_pool"])
def test_a_pool_of_a_prompt_that_is_too_long_names_the_problem(tiny_model: str, method: str) -> None:
    worker = make_worker(tiny_model, max_prompt_tokens=5)
    arguments = (NovelSamplingConfig(),) if method == "sample_novel_pool" else ()
    with pytest.raises(ValueError, match=r"problem p5 has \d\d tokens, more than sampling\.max_prompt_tokens = 5"):
        run(getattr(worker, method)(request_of(), MESSAGES, 7, *arguments))
