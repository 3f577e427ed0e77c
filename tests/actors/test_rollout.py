from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineError, Sample, WeightMismatch
from actors.reference_engine import ReferenceEngine
from actors.rollout import RolloutWorker, request_keys
from buffers.records import GroupRequest
from buffers.schema import from_record_batch, validate_groups
from learners.forward import load_causal_lm
from learners.weights import WeightSnapshot, take_snapshot
from tests.learners.samples import make_request, plain_logprobs

WAIT_S = 30.0  # bound of every wait
GROUP_SIZE = 4
END = 2
MESSAGES = [{"role": "user", "content": "1 + 2?"}]
T = TypeVar("T")


def make_worker(model: str, **sampling: Any) -> RolloutWorker:
    return RolloutWorker(
        worker_id="rollout-3",
        run_id="run",
        model=model,
        config=RolloutConfig(engine="transformers", dtype="float32"),
        sampling=SamplingConfig(**{"max_response_tokens": 12, **sampling}),
        seed=0,
    )


def request_of(group_id: int = 5, **settings: int) -> GroupRequest:
    return make_request(group_id, num_responses=GROUP_SIZE, **settings)


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, WAIT_S))


async def begin(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The task, run up to its first wait: its command is then queued."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


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
