from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from transformers import AutoTokenizer

import actors.rollout
from actors.config import NovelSamplingConfig, RolloutConfig, SamplingConfig
from actors.engine import EngineError, EngineSetup, NewTokens, PartialSample, Sample, SampleRequest, WeightMismatch
from actors.features import Projector
from actors.progress import PROGRESS_SCHEMA
from actors.reference_engine import ReferenceEngine
from actors.rollout import DataError, PooledFeatures, RolloutWorker, request_keys
from actors.step_loop import RunningRequests
from bonus.config import BonusConfig
from bonus.projection import sparse_projection
from buffers.records import FinishReason, GroupRequest, Heartbeat
from buffers.schema import from_record_batch, list_column_arrays, validate_groups
from learners.forward import load_causal_lm
from learners.weight_check import WeightsRefused
from learners.weights import WeightSnapshot, take_snapshot
from tests.actors.coroutines import WAIT_S, begin, run
from tests.learners.samples import make_request, plain_hidden_states, plain_logprobs

GROUP_SIZE = 4
END = 2
AT_ONCE = -(10**6)
"""A cursor with which a watch does not wait."""
MESSAGES = [{"role": "user", "content": "1 + 2?"}]


def make_worker(model: str, *, features: dict[str, Any] | None = None, progress_tokens: int = 32, **sampling: Any) -> RolloutWorker:
    """Return a worker. `features` holds its optional arguments."""
    return RolloutWorker(
        worker_id="rollout-3",
        run_id="run",
        model=model,
        config=RolloutConfig(engine="transformers", dtype="float32", progress_tokens=progress_tokens),
        sampling=SamplingConfig(**{"max_response_tokens": 12, **sampling}),
        seed=0,
        **(features or {}),
    )


def request_of(group_id: int = 5, **settings: int) -> GroupRequest:
    return make_request(group_id, num_responses=GROUP_SIZE, **settings)


def generate(model: str, *requests: GroupRequest, **sampling: Any) -> list[pa.RecordBatch]:
    """Return the groups of `requests`, which are sampled at the same time."""

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

        def gated(engine: ReferenceEngine) -> list[NewTokens]:
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


class Throttle:
    """Lets steps sample nothing until the test permits some. Meanwhile the engine answers calls.

    `error` is raised by the next permitted step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self._condition = threading.Condition()
        self._num_permits = 0
        original = ReferenceEngine.step

        def throttled(engine: ReferenceEngine) -> list[NewTokens]:
            with self._condition:
                if not self._condition.wait_for(lambda: self._num_permits > 0, timeout=0.002):
                    return []
            if self.error is not None:
                raise self.error
            finished = original(engine)
            with self._condition:
                self._num_permits -= 1
                self._condition.notify_all()
            return finished

        monkeypatch.setattr(ReferenceEngine, "step", throttled)

    def permit(self, num_steps: int) -> None:
        with self._condition:
            self._num_permits = num_steps
            self._condition.notify_all()

    async def used_up(self) -> None:
        """Wait until all permitted steps have been made."""

        def wait() -> bool:
            with self._condition:
                return self._condition.wait_for(lambda: self._num_permits == 0, WAIT_S)

        assert await asyncio.to_thread(wait), f"{self._num_permits} steps were not made within {WAIT_S} s"


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
        assert (usage.resumed_tokens, usage.num_aborted) == (0, 0)

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


def test_behavior_log_probs_are_those_of_the_model(tiny_model: str) -> None:
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
        with pytest.raises(DataError, match=r"problem p7 has \d\d tokens, more than sampling\.max_prompt_tokens = 5"):
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
        snapshot = snapshot_of(tiny_model, version=6)
        queued = noting_loads(worker, monkeypatch)
        updating = await begin(worker.update(snapshot))
        await queued.wait()
        gate.open()
        update = await updating
        assert (update.worker_id, update.version, update.nbytes) == ("rollout-3", 6, snapshot.nbytes)
        assert update.load_s > 0 and update.check_s > 0 and update.idle_s >= 0
        batch, _ = await under_way
        validate_groups(batch, GROUP_SIZE)
        runs = batch.select(["version_starts", "version_values"]).to_pylist()
        assert runs[0] == {"version_starts": [0, 3], "version_values": [0, 6]}  # the first was in every step so far
        assert all(row["version_values"] == [0, 6] for row in runs)
        later, _ = await worker.generate(request_of(1), MESSAGES)
        assert later.column("version_values").to_pylist() == [[6]] * GROUP_SIZE
        await worker.close()

    run(main())


def noting_loads(worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set once the engine has been asked to load."""
    engine, queued = worker._engine, asyncio.Event()
    assert engine is not None
    load = engine.load

    async def noted(weights: Any) -> float:
        loading = await begin(load(weights))
        queued.set()
        return await loading

    monkeypatch.setattr(engine, "load", noted)
    return queued


def altered(snapshot: WeightSnapshot) -> WeightSnapshot:
    dict(snapshot.tensors())["model.norm.weight"][3] += 1
    return snapshot


def test_altered_weights_are_refused_by_name_and_nothing_of_them_is_sampled_from(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is in a step meanwhile and does not notice."""
    (undisturbed,) = generate(tiny_model, request_of(0))
    gate = Gate(monkeypatch, step=3)

    async def main() -> pa.RecordBatch:
        worker = make_worker(tiny_model)
        await worker.start()
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        await gate.reached()
        with pytest.raises(WeightsRefused, match=r"^version 1: tensor model\.norm\.weight is not as it was published"):
            await worker.update(altered(snapshot_of(tiny_model)))
        gate.open()
        batch, _ = await under_way
        assert batch.column("version_values").to_pylist() == [[0]] * GROUP_SIZE
        _, heartbeat = await worker.watch(0, 0.1)
        assert heartbeat.version == 0
        assert (await worker.update(snapshot_of(tiny_model))).version == 1
        later, _ = await worker.generate(request_of(1), MESSAGES)
        assert later.column("version_values").to_pylist() == [[1]] * GROUP_SIZE
        await worker.close()
        return batch

    assert run(main()).column("response_ids").equals(undisturbed.column("response_ids"))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights pass every check before the load."""
    monkeypatch.setattr("actors.rollout.check_weights", lambda *_, **__: None)


def test_weights_that_an_engine_was_given_and_does_not_hold_stop_the_worker_and_name_the_tensor(tiny_model: str, unchecked: None) -> None:
    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        with pytest.raises(WeightMismatch, match=r"version 1 .* tensor model\.norm\.weight"):
            await worker.update(altered(snapshot_of(tiny_model)))
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
        await worker.abort(0)  # unknown, so this does nothing
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
        assert (usage.resumed_tokens, usage.num_aborted) == (0, GROUP_SIZE)
        assert all(response == expected[: len(response)] for response, expected in zip(responses, all_of_them, strict=True))
        await worker.abort(0)  # has ended, so this does nothing
        await worker.close()

    run(main())


def test_a_group_that_is_in_the_worker_already_is_refused_and_undisturbed(tiny_model: str) -> None:
    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        with pytest.raises(RuntimeError, match="group 0 is in rollout-3 already"):
            await worker.generate(request_of(0), MESSAGES)
        validate_groups((await under_way)[0], GROUP_SIZE)
        await worker.generate(request_of(0), MESSAGES)  # it has left
        await worker.close()

    run(main())


def test_a_group_that_is_cancelled_leaves_the_engine_and_may_come_again(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        for _ in range(2):
            given_up = await begin(worker.generate(request_of(0), MESSAGES))
            throttle.permit(2)
            await throttle.used_up()
            given_up.cancel()
            await asyncio.wait([given_up])
            assert given_up.cancelled()
            assert not (await worker._serving().partials(request_keys(request_of(0)))).samples
        throttle.permit(100)
        batch, _ = await worker.generate(request_of(0), MESSAGES)
        assert without_timing(batch).equals(without_timing(whole))
        await worker.close()

    run(main())


def test_a_group_of_which_a_response_is_refused_leaves_the_engine(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    throttle = Throttle(monkeypatch)
    add = ReferenceEngine.add

    def refuse_the_third(engine: ReferenceEngine, request: SampleRequest) -> None:
        if request.key.endswith("/2"):
            raise KeyError("refused")
        add(engine, request)

    monkeypatch.setattr(ReferenceEngine, "add", refuse_the_third)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        with pytest.raises(KeyError, match="refused"):
            await worker.generate(request_of(0), MESSAGES)
        assert not (await worker._serving().partials(request_keys(request_of(0)))).samples
        throttle.permit(1)
        await worker.close()

    run(main())


# --- going on where another worker stopped -------------------------------------------------------------------------


def cut(batch: pa.RecordBatch, *lengths: int | None) -> pa.RecordBatch:
    """Return a progress batch that cuts each row after a number of tokens, as "aborted".

    A row whose number is None, or more than it has, stays as it ended.
    """
    rows = batch.select(PROGRESS_SCHEMA.names).to_pylist()
    for row, length in zip(rows, lengths, strict=True):
        if length is not None and length < len(row["response_ids"]):
            assert row["version_starts"] == [0]
            row |= {name: row[name][:length] for name in ("response_ids", "behavior_logprobs")} | {"finish_reason": "aborted"}
            row |= {name: row[name] if length else [] for name in ("version_starts", "version_values")}
    return pa.RecordBatch.from_pylist(rows, schema=PROGRESS_SCHEMA)


def num_tokens(batch: pa.RecordBatch) -> int:
    return len(list_column_arrays(batch, "response_ids")[0])


def resumed(
    model: str, request: GroupRequest, resume: pa.RecordBatch | pa.Table, *, load: WeightSnapshot | None = None, **settings: Any
) -> tuple[pa.RecordBatch, Any]:
    """Return the group as a fresh worker samples it after `resume`, and its usage."""

    async def main() -> tuple[pa.RecordBatch, Any]:
        worker = make_worker(model, **settings)
        await worker.start()
        try:
            if load is not None:
                await worker.update(load)
            return await worker.generate(request, MESSAGES, resume)
        finally:
            await worker.close()

    return run(main())


@pytest.mark.parametrize("length", range(13))
def test_a_group_cut_anywhere_goes_on_in_another_worker_as_if_it_had_not_been(tiny_model: str, length: int) -> None:
    (whole,) = generate(tiny_model, request_of(3))
    resume = cut(whole, *[length] * GROUP_SIZE)
    batch, usage = resumed(tiny_model, request_of(3), resume)
    assert without_timing(batch).equals(without_timing(whole))
    assert usage.resumed_tokens == num_tokens(resume)
    assert (usage.response_tokens, usage.num_aborted) == (num_tokens(whole), 0)
    assert usage.sampled_tokens == usage.response_tokens - usage.resumed_tokens


def test_under_other_weights_the_old_tokens_stay_and_the_new_ones_are_a_version_run_of_their_own(tiny_model: str) -> None:
    (whole,) = generate(tiny_model, request_of(3))
    lengths = (5, 1, 0, None)
    batch, usage = resumed(tiny_model, request_of(3), cut(whole, *lengths), load=snapshot_of(tiny_model, version=6))
    validate_groups(batch, GROUP_SIZE)
    sampled = ["response_ids", "behavior_logprobs", "version_starts", "version_values", "finish_reason"]
    before, after = whole.select(sampled).to_pylist(), batch.select(sampled).to_pylist()
    for old, new, length in zip(before[:2], after[:2], lengths[:2], strict=True):
        assert (new["version_starts"], new["version_values"]) == ([0, length], [0, 6])
        for name in ("response_ids", "behavior_logprobs"):
            assert new[name][:length] == old[name][:length]
        assert new["response_ids"] != old["response_ids"]
    assert (after[2]["version_starts"], after[2]["version_values"]) == ([0], [6])
    assert after[3] == before[3]
    assert usage.resumed_tokens == 5 + 1 + len(before[3]["response_ids"])


@pytest.mark.parametrize("kind", [pa.Table, pa.RecordBatch])
def test_what_has_ended_is_kept_what_has_begun_goes_on_and_the_rest_begins(tiny_model: str, kind: type) -> None:
    """The rows come in any order, and beside rows of other groups with other tokens."""
    whole, other = generate(tiny_model, request_of(3), request_of(4))
    own = cut(whole, None, 4, 0, 7).filter(pa.array([True, True, False, True]))
    rows = pa.Table.from_batches([other.select(PROGRESS_SCHEMA.names), own.take([2, 0, 1])])
    batch, usage = resumed(tiny_model, request_of(3), rows if kind is pa.Table else rows.combine_chunks().to_batches()[0])
    assert without_timing(batch).equals(without_timing(whole))
    assert usage.resumed_tokens == num_tokens(own)


def test_a_response_that_was_cut_at_its_limit_ends_there_and_asks_nothing_of_the_engine(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    assert min(map(len, whole.column("response_ids").to_pylist())) > 5
    resume = cut(whole, *[5] * GROUP_SIZE)
    monkeypatch.setattr(ReferenceEngine, "add", lambda *args, **options: pytest.fail("the engine was asked"))
    batch, usage = resumed(tiny_model, request_of(0), resume, max_response_tokens=5)
    assert set(batch.column("finish_reason").to_pylist()) == {"length"}
    assert batch.column("response_ids").equals(resume.column("response_ids"))
    assert (usage.resumed_tokens, usage.response_tokens, usage.num_aborted) == (20, 20, 0)


def test_an_aborted_group_goes_on_from_its_own_batch_and_may_be_aborted_again(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        batch = None
        for steps in (2, 3, 100):
            worker = make_worker(tiny_model)
            await worker.start()
            under_way = await begin(worker.generate(request_of(0), MESSAGES, batch))
            throttle.permit(steps)
            if steps < 100:
                await throttle.used_up()
                await worker.abort(0)
            before, (batch, usage) = batch, await under_way
            assert usage.resumed_tokens == (0 if before is None else num_tokens(before))
            assert usage.num_aborted == batch.column("finish_reason").to_pylist().count("aborted")
            assert batch.select(PROGRESS_SCHEMA.names).equals(cut(whole, *[{2: 2, 3: 5, 100: None}[steps]] * GROUP_SIZE))
            await worker.close()
        assert without_timing(batch).equals(without_timing(whole))

    run(main())


def test_a_group_aborted_before_it_asks_the_engine_keeps_what_it_came_with(tiny_model: str) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    resume = cut(whole, 3, 0, None, 1)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        under_way = await begin(worker.generate(request_of(0), MESSAGES, resume))
        await worker.abort(0)
        batch, usage = await under_way
        assert batch.select(PROGRESS_SCHEMA.names).equals(resume)
        assert usage.response_tokens == usage.resumed_tokens == num_tokens(resume)
        assert usage.num_aborted == resume.column("finish_reason").to_pylist().count("aborted") == 3
        await worker.close()

    run(main())


def test_where_states_are_pooled_a_group_begins_again_because_those_of_its_old_tokens_are_unknown(tiny_model: str) -> None:
    worker = make_worker(tiny_model, features=RAW)
    (whole,) = in_worker(worker, worker.generate(request_of(3), MESSAGES))
    batch, usage = resumed(tiny_model, request_of(3), cut(whole, 3, None, 5, 0), features=RAW)
    assert without_timing(batch).equals(without_timing(whole))
    assert usage.resumed_tokens == 0 and batch.column("feature").null_count == 0


@pytest.mark.parametrize("indices", [[0, 0], [4], [-1]])
def test_rows_that_are_not_one_for_each_response_at_most_are_refused(tiny_model: str, indices: list[int]) -> None:
    (whole,) = generate(tiny_model, request_of(3))
    row = cut(whole, *[2] * GROUP_SIZE).to_pylist()[0]
    rows = pa.RecordBatch.from_pylist([row | {"index": index} for index in indices], schema=PROGRESS_SCHEMA)
    with pytest.raises(ValueError, match=rf"group 3 of 4 responses cannot be resumed from a row of index {indices[-1]}"):
        resumed(tiny_model, request_of(3), rows)


# --- watching ------------------------------------------------------------------------------------------------------


def check_report(report: tuple[pa.RecordBatch, Heartbeat]) -> tuple[pa.RecordBatch, Heartbeat]:
    """Check that the heartbeat counts the tokens of its batch, and return the report."""
    batch, heartbeat = report
    assert batch.schema.equals(PROGRESS_SCHEMA)
    counted: dict[int, int] = {}
    for row in batch.to_pylist():
        assert len(row["response_ids"]) == len(row["behavior_logprobs"]) > 0
        assert row["version_starts"][0] == 0 and len(row["version_starts"]) == len(row["version_values"])
        counted[row["group_id"]] = counted.get(row["group_id"], 0) + len(row["response_ids"])
    assert heartbeat.tokens_by_group == counted
    assert (heartbeat.worker_id, heartbeat.rss_bytes > 0) == ("rollout-3", True)
    return batch, heartbeat


async def started(worker: RolloutWorker, *requests: GroupRequest) -> list[asyncio.Task[Any]]:
    """Start the groups, and return once a report has covered them."""
    await worker.start()
    tasks = [await begin(worker.generate(request, MESSAGES)) for request in requests]
    _, heartbeat = check_report(await worker.watch(AT_ONCE, WAIT_S))
    assert heartbeat.sampled_tokens == 0
    return tasks


def test_a_watch_ends_when_running_responses_have_grown_by_so_many_tokens_on_average(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model, progress_tokens=3)
        (under_way,) = await started(worker, request_of(0))
        cursor = 0
        for length in (3, 6):
            watching = await begin(worker.watch(cursor, WAIT_S))
            throttle.permit(2)
            await throttle.used_up()
            await worker._serving().partials([])  # to the engine and back
            assert not watching.done()
            throttle.permit(1)
            batch, heartbeat = check_report(await watching)
            assert batch.equals(cut(whole, *[length] * GROUP_SIZE))
            cursor = heartbeat.sampled_tokens
            assert cursor == length * GROUP_SIZE
        throttle.permit(100)
        assert without_timing((await under_way)[0]).equals(without_timing(whole))
        await worker.close()

    run(main())


def test_a_report_has_responses_that_have_ended_and_not_groups_that_have_left(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = generate(tiny_model, request_of(0), max_response_tokens=2)
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model, progress_tokens=1000, max_response_tokens=2)
        resume = cut(whole, 1, None, None, 0)
        await worker.start()
        under_way = await begin(worker.generate(request_of(0), MESSAGES, resume))
        batch, heartbeat = check_report(await worker.watch(AT_ONCE, WAIT_S))
        assert batch.equals(resume.slice(0, 3)) and heartbeat.sampled_tokens == 0  # a row without a token says nothing
        throttle.permit(1)
        await throttle.used_up()
        batch, heartbeat = check_report(await worker.watch(AT_ONCE, WAIT_S))
        assert batch.equals(cut(whole, None, None, None, 1)) and heartbeat.sampled_tokens == 2
        throttle.permit(1)
        assert without_timing((await under_way)[0]).equals(without_timing(whole))
        batch, heartbeat = check_report(await worker.watch(AT_ONCE, WAIT_S))
        assert batch.num_rows == 0 and heartbeat.sampled_tokens == 3
        await worker.close()

    run(main())


def test_a_watch_waits_for_as_many_tokens_as_the_responses_that_run_by_then_ask_for(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins while the worker is idle. That a group comes or leaves ends no watch: tokens alone bound the calls."""
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model, progress_tokens=3)
        await worker.start()
        watching = await begin(worker.watch(0, WAIT_S))
        leaving = await begin(worker.generate(request_of(0), MESSAGES))
        leaving.cancel()
        under_way = await begin(worker.generate(request_of(1), MESSAGES))
        throttle.permit(2)
        await throttle.used_up()
        await worker._serving().partials([])  # to the engine and back
        assert not watching.done()
        throttle.permit(1)
        assert check_report(await watching)[1].sampled_tokens == 3 * GROUP_SIZE
        under_way.cancel()
        throttle.permit(100)
        await worker.close()

    run(main())


def test_a_watch_ends_with_its_time_and_tells_all_there_is(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        batch, heartbeat = check_report(await worker.watch(0, 0.05))
        assert (batch.num_rows, heartbeat.sampled_tokens, heartbeat.version) == (0, 0, 0)
        await worker.update(snapshot_of(tiny_model, version=6))
        await worker.update(snapshot_of(tiny_model, version=7, noise=0.0))
        under_way = await begin(worker.generate(request_of(0), MESSAGES))
        throttle.permit(2)
        await throttle.used_up()
        batch, heartbeat = check_report(await worker.watch(0, 0.8))
        assert batch.select(["response_ids"]).equals(cut(whole, 2, 2, 2, 2).select(["response_ids"]))
        assert set(map(tuple, batch.column("version_values").to_pylist())) == {(7,)}
        assert (heartbeat.sampled_tokens, heartbeat.version) == (8, 7)
        throttle.permit(100)
        await under_way
        await worker.close()

    run(main())


def test_while_the_engine_is_stuck_in_a_step_a_watch_tells_what_is_known_and_the_count_stands_still(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = generate(tiny_model, request_of(0))
    gate, throttle = Gate(monkeypatch, step=3), Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model, progress_tokens=1000)
        (under_way,) = await started(worker, request_of(0))
        throttle.permit(2)
        await throttle.used_up()
        known, heartbeat = check_report(await worker.watch(AT_ONCE, WAIT_S))
        assert known.equals(cut(whole, 2, 2, 2, 2)) and heartbeat.sampled_tokens == 8
        throttle.permit(1)
        await gate.reached()
        for _ in range(2):
            since = time.monotonic()
            batch, heartbeat = check_report(await worker.watch(8, 0.1))
            assert 0.09 < time.monotonic() - since < 5
            assert batch.equals(known) and heartbeat.sampled_tokens == 8
        watching = await begin(worker.watch(8, WAIT_S))  # what was left out is reported as soon as the engine answers
        gate.open()
        batch, heartbeat = check_report(await asyncio.wait_for(watching, WAIT_S / 3))
        assert batch.equals(cut(whole, 3, 3, 3, 3)) and heartbeat.sampled_tokens == 12
        throttle.permit(100)
        assert without_timing((await under_way)[0]).equals(without_timing(whole))
        await worker.close()

    run(main())


def test_a_watch_of_a_failed_engine_raises_at_once(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    throttle = Throttle(monkeypatch)

    async def main() -> None:
        worker = make_worker(tiny_model)
        (under_way,) = await started(worker, request_of(0))
        watching = await begin(worker.watch(0, WAIT_S))
        throttle.error = MemoryError("out of memory")
        throttle.permit(1)
        for call in (watching, under_way, worker.watch(0, WAIT_S), worker.watch(5, WAIT_S)):
            with pytest.raises(EngineError, match="out of memory"):
                await call
        await worker.close()

    run(main())


def test_a_watch_of_an_idle_worker_raises_when_a_load_fails(tiny_model: str, unchecked: None) -> None:
    async def main() -> None:
        worker = make_worker(tiny_model)
        await worker.start()
        watching = await begin(worker.watch(0, WAIT_S))
        with pytest.raises(WeightMismatch):
            await worker.update(altered(snapshot_of(tiny_model)))
        with pytest.raises(EngineError, match=r"model\.norm\.weight"):
            await watching
        await worker.close()

    run(main())


def test_reports_and_groups_that_came_back_add_up_to_all_the_tokens_sampled(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups come at any time, one is resumed and one aborted. Each report asks the engine once."""
    (whole,) = generate(tiny_model, request_of(1), max_response_tokens=25)
    resume = cut(whole, 4, 9, 0, None)
    looks = []
    partials = RunningRequests.partials
    monkeypatch.setattr(RunningRequests, "partials", lambda requests, keys: looks.append(keys) or partials(requests, keys))

    async def main() -> pa.RecordBatch:
        worker = make_worker(tiny_model, progress_tokens=2, max_response_tokens=25)
        await worker.start()
        tasks: dict[int, asyncio.Task[Any]] = {}
        cursor = num_reports = 0
        rows_of_2: pa.RecordBatch | None = None
        while len(tasks) < 4 or not all(task.done() for task in tasks.values()):
            if len(tasks) < 4:
                group_id = len(tasks)
                tasks[group_id] = await begin(worker.generate(request_of(group_id), MESSAGES, resume if group_id == 1 else None))
            batch, heartbeat = check_report(await worker.watch(cursor, 0.5))
            num_reports += 1
            left = [group_id for group_id in tasks if group_id not in worker._groups]
            assert not set(left) & heartbeat.tokens_by_group.keys()
            usages = [tasks[group_id].result()[1] for group_id in left]
            came_back = sum(usage.response_tokens - usage.resumed_tokens for usage in usages)
            taken_over = num_tokens(resume) if 1 in heartbeat.tokens_by_group else 0
            assert came_back + sum(heartbeat.tokens_by_group.values()) - taken_over == heartbeat.sampled_tokens >= cursor
            cursor = heartbeat.sampled_tokens
            own = batch.filter(pc.equal(batch["group_id"], 2))
            if own.num_rows == GROUP_SIZE and rows_of_2 is None and "aborted" in own.column("finish_reason").to_pylist():
                rows_of_2 = own
                await worker.abort(2)
        await worker.close()
        assert len(looks) == num_reports > 10
        assert without_timing(tasks[1].result()[0]).equals(without_timing(whole))
        assert tasks[2].result()[1].num_aborted > 0 and rows_of_2 is not None
        return rows_of_2

    found, usage = resumed(tiny_model, request_of(2), run(main()), max_response_tokens=25)  # as if the worker had died then
    (expected,) = generate(tiny_model, request_of(2), max_response_tokens=25)
    assert usage.resumed_tokens > 0 and without_timing(found).equals(without_timing(expected))


# --- pools and features --------------------------------------------------------------------------------------------

DIM = 6
RAW: dict[str, Any] = {"features": PooledFeatures()}
PROJECTED: dict[str, Any] = {"features": PooledFeatures(bonus=BonusConfig(dim=DIM), projection_seed=11)}


def in_worker(worker: RolloutWorker, *calls: Coroutine[Any, Any, tuple[pa.RecordBatch, Any]]) -> list[pa.RecordBatch]:
    """Start the worker, make the calls one after another, close it, and return the batches."""

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
    """Return (K, H) mean states over all tokens but the last, by plain forward passes.

    A response of one token has the state at the prompt's last token.
    """
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


def test_an_isolated_worker_samples_a_group_alike_whatever_it_has_sampled_before(tiny_model: str) -> None:
    first, other = (request_of(group_id, admitted_version=group_id) for group_id in (5, 6))

    def sampled(*requests: GroupRequest) -> pa.RecordBatch:
        worker = make_worker(tiny_model, features={"isolated": True})
        return without_timing(in_worker(worker, *(worker.generate(request, MESSAGES) for request in requests))[-1])

    alone = sampled(first)
    assert sampled(other, first).equals(alone)
    assert not sampled(other).column("response_ids").equals(alone.column("response_ids"))


def test_groups_of_one_problem_and_version_that_are_sampled_alone_differ_by_their_place(tiny_model: str) -> None:
    """This happens if there are fewer problems than groups in flight."""
    worker = make_worker(tiny_model, features={"isolated": True})
    requests = [replace(request_of(5), group_id=group_id, place=place) for group_id, place in ((5, 0), (9, 1), (11, 0))]
    batches = in_worker(worker, *(worker.generate(request, MESSAGES) for request in requests))
    sampled = [batch.column("response_ids") for batch in batches]
    assert not sampled[0].equals(sampled[1]) and sampled[0].equals(sampled[2])


def test_an_isolated_group_that_is_aborted_returns_what_was_sampled_and_leaves_the_engine(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        gate = Gate(monkeypatch, step=4)
        worker = make_worker(tiny_model, features={"isolated": True})
        await worker.start()
        generating = asyncio.create_task(worker.generate(request_of(0), MESSAGES))
        await gate.reached()
        aborting = asyncio.create_task(worker.abort(0))
        gate.open()
        await aborting
        batch, usage = await generating
        assert usage.num_aborted == GROUP_SIZE and num_tokens(batch) < 12 * GROUP_SIZE
        _, usage = await worker.generate(request_of(6), MESSAGES)
        assert usage.num_aborted == 0
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
    redrawn = BonusConfig(dim=DIM, redraw_projection=True)
    for version in (0, 3):
        worker = make_worker(tiny_model, features={"features": PooledFeatures(bonus=redrawn, projection_seed=11)})
        (batch,) = in_worker(worker, worker.sample_pool(request_of(5, admitted_version=version), MESSAGES, 7))
        means = torch.from_numpy(state_means(tiny_model, batch))
        expected = Projector(redrawn, hidden_size=means.shape[1], seed=11)(means, "p5", version)
        np.testing.assert_allclose(batch.column("feature").to_pylist(), expected.numpy(), rtol=0.0, atol=2e-5)


class OneTokenEach:
    """An engine whose responses have one token and one state each. The second was aborted before its first token."""

    sampled_tokens = 3

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
    async def start_engine(setup: EngineSetup) -> OneTokenEach:
        return OneTokenEach()

    monkeypatch.setattr(actors.rollout, "start_engine", start_engine)
    batch = pool(tiny_model, features=features)
    projection_HD = sparse_projection(32, DIM, seed=11).numpy() if features is PROJECTED else np.eye(32)
    found = batch.column("feature").to_pylist()
    assert [feature is None for feature in found] == [False, True, False, False]
    for number in (0, 2, 3):
        np.testing.assert_allclose(found[number], np.full(32, number) @ projection_HD, rtol=1e-6, atol=1e-6)


def test_a_group_ended_before_its_first_token_has_no_features(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests and their abort wait behind a step of another group."""
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
    with pytest.raises(DataError, match=r"problem p5 has \d\d tokens, more than sampling\.max_prompt_tokens = 5"):
        run(getattr(worker, method)(request_of(), MESSAGES, 7, *arguments))
