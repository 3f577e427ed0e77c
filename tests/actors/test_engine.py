from __future__ import annotations

import asyncio
import gc
import itertools
import math
import queue
import threading
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import actors.step_loop
from actors.engine import EngineError, NewTokens, PartialSample, Progress, Sample, SampleRequest, WeightMismatch
from actors.step_loop import StepLoop
from actors.weight_transfer import DeviceWeights
from buffers.records import FinishReason
from learners.weights import WeightSnapshot, take_snapshot
from tests.actors.coroutines import WAIT_S, begin, run


class FakeEngine:
    """Samples 100, 101, … for a request. A prompt (n,) wants n tokens, those sampled before included.

    It checks its arguments, and that one thread makes all calls. `calls` lists the resets and requests in order. When
    `throttled`, a step waits for a permit, so that a test decides how far sampling gets.
    """

    def __init__(self, *, throttled: bool = False) -> None:
        self.version = 0
        self.step_error: BaseException | None = None
        self.load_error: Exception | None = None
        self.num_steps = 0
        self.calls: list[tuple[Any, ...]] = []
        self._throttled = throttled
        self._permits = threading.Semaphore(0)
        self._stepped = threading.Condition()
        self._thread = threading.current_thread()
        self._running: dict[str, tuple[int, int]] = {}
        """The number of tokens that each request wants, and the number that it has."""

    # called by the test

    def permit(self, num_steps: int = 1) -> None:
        self._permits.release(num_steps)

    def block_until_steps(self, num_steps: int) -> None:
        with self._stepped:
            stepped = self._stepped.wait_for(lambda: self.num_steps >= num_steps, WAIT_S)
        assert stepped, f"{self.num_steps} steps within {WAIT_S} s, not {num_steps}"

    async def wait_for_steps(self, num_steps: int) -> None:
        await asyncio.to_thread(self.block_until_steps, num_steps)

    # called by the loop

    def _check_thread(self) -> None:
        assert threading.current_thread() is self._thread, "an engine is used by the thread that built it only"

    def add(self, request: SampleRequest) -> None:
        self._check_thread()
        assert request.key not in self._running, f"{request.key} runs already"
        self.calls.append(("add", request.key, request.max_tokens))
        (wanted,) = request.prompt_ids
        if wanted < 1:
            raise ValueError(f"prompt of {request.key} refused")
        limit = wanted if request.max_tokens is None else min(wanted, request.max_tokens)
        self._running[request.key] = (limit, len(request.context_ids) - 1)

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        self._check_thread()
        assert not self._running, "a reset with requests under way"
        self.calls.append(("reset", seed, keep_cache))

    def step(self) -> list[NewTokens]:
        self._check_thread()
        assert self._running, "step without a request"
        if self._throttled:
            assert self._permits.acquire(timeout=WAIT_S), "no permit"
        if self.step_error is not None:
            raise self.step_error
        new = []
        for key, (wanted, num_tokens) in list(self._running.items()):
            reason = FinishReason.STOP if num_tokens + 1 == wanted else None
            new.append(NewTokens(key=key, token_ids=[100 + num_tokens], logprobs=[-0.5], finish_reason=reason))
            self._running[key] = (wanted, num_tokens + 1)
            if reason:
                del self._running[key]
        with self._stepped:
            self.num_steps += 1
            self._stepped.notify_all()
        return new

    def abort(self, keys: Sequence[str]) -> None:
        self._check_thread()
        for key in keys:
            del self._running[key]

    def load(self, snapshot: WeightSnapshot) -> None:
        self._check_thread()
        assert isinstance(snapshot, WeightSnapshot)
        if self.load_error is not None:
            raise self.load_error
        self.version = snapshot.version


def make_loop(**settings: Any) -> tuple[StepLoop, FakeEngine]:
    built: list[FakeEngine] = []

    def build() -> FakeEngine:
        built.append(FakeEngine(**settings))
        return built[0]

    loop = StepLoop(build)
    return loop, built[0]


def make_snapshot(version: int) -> WeightSnapshot:
    return take_snapshot([("w", torch.ones(2, 2))], version=version)


async def error_of(awaitable: Awaitable[Any]) -> Exception:
    try:
        found = await awaitable
    except Exception as error:
        return error
    pytest.fail(f"{found} instead of an error")


def requests_of(**wanted: int | tuple[int, int]) -> list[SampleRequest]:
    """Return requests: `key=n` wants n tokens, `key=(n, limit)` at most `limit` of them."""
    limits = {key: value if isinstance(value, tuple) else (value, None) for key, value in wanted.items()}
    return [SampleRequest(key=key, prompt_ids=(number,), max_tokens=limit) for key, (number, limit) in limits.items()]


def sample_of(num_tokens: int, reason: FinishReason = FinishReason.STOP, *, starts: tuple[int, ...] = (0,), values: Any = (0,)) -> Sample:
    return Sample(
        token_ids=tuple(range(100, 100 + num_tokens)),
        logprobs=(-0.5,) * num_tokens,
        version_starts=starts,
        version_values=values,
        finish_reason=reason,
    )


def test_every_caller_gets_its_own_result() -> None:
    async def main() -> None:
        loop, _ = make_loop()
        found = await asyncio.gather(*(loop.sample(f"k{n}", (n,)) for n in (3, 1, 7, 2, 20)))
        assert found == [sample_of(n) for n in (3, 1, 7, 2, 20)]
        assert await loop.sample("k3", (4,)) == sample_of(4)  # a key may be used again once it is done
        loop.close()

    run(main())


def test_a_load_happens_between_two_steps_and_requests_go_on_under_the_new_version() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        long, short = await begin(loop.sample("long", (5,))), await begin(loop.sample("short", (3,)))
        engine.permit(2)
        await engine.wait_for_steps(2)
        load = await begin(loop.load(make_snapshot(7)))  # while the third step is under way
        assert not load.done()
        engine.permit(1)
        await load
        assert engine.num_steps == 3
        engine.permit(100)
        tokens_before = {"long": 3, "short": len((await short).token_ids)}
        assert await long == sample_of(5, starts=(0, tokens_before["long"]), values=(0, 7))
        assert await loop.sample("later", (2,)) == sample_of(2, values=(7,))
        loop.close()

    run(main())


def test_a_batch_begins_together_after_a_reset_and_comes_back_in_the_order_asked_for() -> None:
    async def main() -> None:
        loop, engine = make_loop()
        found = await loop.sample_batch(requests_of(long=9, short=1, limited=(9, 4)), seed=7)
        assert found == [sample_of(9), sample_of(1), sample_of(4)]
        assert engine.calls == [("reset", 7, False), ("add", "long", None), ("add", "short", None), ("add", "limited", 4)]
        assert engine.num_steps == 9
        assert await loop.sample_batch(requests_of(long=2), seed=8, keep_cache=True) == [sample_of(2)]
        assert engine.calls[4:] == [("reset", 8, True), ("add", "long", None)]
        assert await loop.sample_batch([], seed=9) == []
        loop.close()

    run(main())


def test_a_batch_is_refused_while_others_run_and_does_not_disturb_them() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        running = await begin(loop.sample("running", (3,)))
        engine.permit(1)
        await engine.wait_for_steps(1)
        refused = await begin(loop.sample_batch(requests_of(a=2, b=2), seed=7))
        engine.permit(10)
        error = await error_of(refused)
        assert isinstance(error, RuntimeError) and not isinstance(error, EngineError)
        assert str(error) == "2 responses were to be sampled alone, but the engine has others under way"
        assert await running == sample_of(3)
        assert engine.calls == [("add", "running", None)]
        assert await loop.sample_batch(requests_of(a=2, b=2), seed=7) == [sample_of(2), sample_of(2)]
        loop.close()

    run(main())


def test_a_batch_of_which_a_request_is_refused_leaves_nothing_behind() -> None:
    async def main() -> None:
        loop, engine = make_loop()
        assert str(await error_of(loop.sample_batch(requests_of(a=2, bad=0, c=2), seed=7))) == "prompt of bad refused"
        assert engine.num_steps == 0
        assert await loop.sample_batch(requests_of(a=2, c=3), seed=7) == [sample_of(2), sample_of(3)]
        loop.close()

    run(main())


def test_a_failing_engine_fails_the_batch() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waiting = await begin(loop.sample_batch(requests_of(a=50, b=50), seed=7))
        engine.permit(1)
        await engine.wait_for_steps(1)
        engine.step_error = MemoryError("out of memory")
        engine.permit(1)
        error = await error_of(waiting)
        assert isinstance(error, EngineError) and "out of memory" in str(error)
        assert isinstance(await error_of(loop.sample_batch(requests_of(a=1), seed=7)), EngineError)

    run(main())


def test_a_request_goes_on_after_tokens_that_were_sampled_before() -> None:
    async def main() -> None:
        loop, _ = make_loop()
        before = sample_of(2, FinishReason.ABORTED, values=(3,))
        assert await loop.sample("a", (5,), before) == sample_of(5, starts=(0, 2), values=(3, 0))
        resumed = SampleRequest(key="b", prompt_ids=(9,), max_tokens=4, sampled=before)
        assert await loop.sample_batch([resumed], seed=7) == [sample_of(4, starts=(0, 2), values=(3, 0))]
        assert loop.sampled_tokens == 3 + 2
        loop.close()

    run(main())


def test_a_key_that_runs_is_refused_and_its_request_goes_on() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        running, refused = await begin(loop.sample("a", (3,))), await begin(loop.sample("a", (5,)))
        engine.permit(10)
        assert str(await error_of(refused)) == "request a runs already"
        assert await running == sample_of(3)
        loop.close()

    run(main())


def test_partials_are_taken_between_two_steps_and_disturb_no_request() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        before = sample_of(1, FinishReason.ABORTED, values=(0,))
        running = [await begin(loop.sample("a", (5,))), await begin(loop.sample("resumed", (6,), before))]
        engine.permit(2)
        await engine.wait_for_steps(2)
        asking = await begin(loop.partials(["a", "resumed", "never heard of"]))
        engine.permit(1)
        found = await asking
        assert found.samples.keys() == {"a", "resumed"}
        num_tokens, num_resumed = (len(found.samples[key].token_ids) for key in ("a", "resumed"))
        assert found.samples["a"] == sample_of(num_tokens, FinishReason.ABORTED) and 2 <= num_tokens <= 3
        assert found.samples["resumed"] == sample_of(num_resumed, FinishReason.ABORTED)
        assert num_resumed - 1 in (num_tokens - 1, num_tokens)  # the first step may have begun before it came
        assert found.sampled_tokens == num_tokens + num_resumed - 1
        engine.permit(10)
        assert [await task for task in running] == [sample_of(5), sample_of(6)]
        assert await loop.partials(["a", "resumed"]) == Progress(samples={}, sampled_tokens=10)
        loop.close()

    run(main())


def test_who_is_told_of_progress_has_been_told_before_of_all_that_ended_by_then() -> None:
    """The request is added and sampled to its end while the event loop is busy, and only then asked for."""

    async def main() -> None:
        loop, engine = make_loop()
        told: list[str] = []

        async def tell(name: str, call: Awaitable[Any]) -> None:
            await call
            told.append(name)

        ended = await begin(tell("ended", loop.sample("a", (1,))))
        engine.block_until_steps(1)
        asked = asyncio.create_task(tell("progress", loop.partials(["a"])))
        last: Future[None] = Future()
        asyncio.get_running_loop().call_soon(lambda: (loop._commands.put_nowait((lambda _: None, last)), last.result(WAIT_S)))
        await asyncio.gather(ended, asked)
        assert told == ["ended", "progress"]
        loop.close()

    run(main())


async def is_over(task: asyncio.Task[Any], loop: StepLoop) -> bool:
    """Return whether the task has ended after a further call to the engine and back."""
    await loop.partials([])
    await asyncio.sleep(0)
    return task.done()


def test_a_wait_for_tokens_ends_when_they_are_sampled_and_not_before() -> None:
    async def main() -> None:
        loop, _ = make_loop()
        await loop.wait_for_tokens(0)
        waits = [await begin(loop.wait_for_tokens(total)) for total in (6, 7, math.inf)]
        await loop.sample("a", (4,))
        assert [await is_over(wait, loop) for wait in waits] == [False, False, False]
        await loop.sample("b", (2,))
        assert [await is_over(wait, loop) for wait in waits] == [True, False, False]
        assert loop.sampled_tokens == 6
        await loop.wait_for_tokens(6)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        assert not loop._sampled._waiting, "who gives up waiting is forgotten"
        loop.close()

    run(main())


def test_a_wait_for_tokens_ends_with_the_engine_s_failure() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waiting, forever = await begin(loop.sample("a", (50,))), await begin(loop.wait_for_tokens(math.inf))
        engine.step_error = MemoryError("out of memory")
        engine.permit(1)
        for wait in (forever, waiting, loop.wait_for_tokens(1), loop.partials(["a"])):
            error = await error_of(wait)
            assert isinstance(error, EngineError) and "out of memory" in str(error)

    run(main())


def test_a_load_without_requests_is_immediate() -> None:
    async def main() -> None:
        loop, engine = make_loop()
        await loop.load(make_snapshot(3))
        assert (engine.version, engine.num_steps) == (3, 0)
        loop.close()

    run(main())


def test_abort_returns_the_tokens_so_far_and_leaves_the_others() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        aborted, other = await begin(loop.sample("aborted", (50,))), await begin(loop.sample("other", (4,)))
        engine.permit(2)
        await engine.wait_for_steps(2)
        abort = await begin(loop.abort(["aborted", "never heard of"]))
        engine.permit(1)
        await abort
        found = await aborted
        assert found.finish_reason is FinishReason.ABORTED
        assert found == sample_of(3, FinishReason.ABORTED)
        engine.permit(10)
        assert await other == sample_of(4)
        await loop.abort(["aborted", "other"])  # both have ended, so this does nothing
        loop.close()

    run(main())


def test_an_exception_in_a_step_fails_every_request_and_every_later_call_with_its_cause() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waiting = [await begin(loop.sample(key, (50,))) for key in "abc"]
        engine.permit(2)
        await engine.wait_for_steps(2)
        engine.step_error = MemoryError("out of memory")
        engine.permit(1)
        for task in waiting:
            error = await error_of(task)
            assert isinstance(error, EngineError) and "out of memory" in str(error)
        for call in (loop.sample("d", (1,)), loop.load(make_snapshot(1)), loop.abort(["a"])):
            error = await error_of(call)
            assert isinstance(error, EngineError) and "out of memory" in str(error)
            assert error.__cause__ is engine.step_error
        loop.close()

    run(main())


def test_commands_queued_behind_a_failing_step_fail_too() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waiting = await begin(loop.sample("a", (50,)))
        engine.permit(1)
        await engine.wait_for_steps(1)
        behind = [await begin(call) for call in (loop.sample("b", (1,)), loop.load(make_snapshot(1)))]
        engine.step_error = RuntimeError("broken")
        engine.permit(1)
        assert [type(await error_of(task)) for task in (waiting, *behind)] == [EngineError] * 3

    run(main())


def test_a_call_that_races_with_the_failure_is_not_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fails after the call has checked for a failure, and before its command is queued."""

    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waiting = await begin(loop.sample("a", (50,)))
        engine.step_error = RuntimeError("broken")
        put = loop._commands.put_nowait

        def late(item: Any) -> None:
            engine.permit(1)
            loop._thread.join(WAIT_S)
            assert not loop._thread.is_alive()
            put(item)

        monkeypatch.setattr(loop._commands, "put_nowait", late)
        assert isinstance(await error_of(loop.sample("b", (1,))), EngineError)
        assert isinstance(await error_of(waiting), EngineError)

    run(main())


def test_a_weight_mismatch_reaches_the_loader_and_stops_the_loop() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waiting = await begin(loop.sample("a", (50,)))
        engine.load_error = WeightMismatch("does not hold tensor w")
        load = await begin(loop.load(make_snapshot(1)))
        engine.permit(2)
        assert await error_of(load) is engine.load_error
        assert "does not hold tensor w" in str(await error_of(waiting))
        error = await error_of(loop.sample("b", (1,)))
        assert isinstance(error, EngineError) and error.__cause__ is engine.load_error
        loop._thread.join(WAIT_S)
        assert not loop._thread.is_alive()

    run(main())


def test_a_load_that_fails_half_way_stops_the_loop_for_its_weights_are_of_no_version() -> None:
    async def main() -> None:
        loop, engine = make_loop()
        engine.load_error = KeyError("model.unknown.weight")
        error = await error_of(loop.load(make_snapshot(4)))
        assert isinstance(error, EngineError) and "version 4" in str(error) and "model.unknown.weight" in str(error)
        assert error.__cause__ is engine.load_error
        assert isinstance(await error_of(loop.sample("b", (1,))), EngineError)

    run(main())


def test_a_load_says_for_how_long_nothing_was_sampled_and_that_it_takes_bytes_only() -> None:
    async def main() -> None:
        loop, engine = make_loop()
        assert 0 <= await loop.load(make_snapshot(1)) < WAIT_S
        elsewhere = DeviceWeights(version=2, index=(), fingerprint={}, address=("127.0.0.1", 1), key=b"")
        with pytest.raises(TypeError, match=r"from host memory only \(rollout\.weight_transfer\)"):
            await loop.load(elsewhere)
        assert engine.version == 1
        loop.close()

    run(main())


def test_an_ordinary_error_of_a_command_reaches_its_caller_alone() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        running = await begin(loop.sample("a", (3,)))
        refused = await begin(loop.sample("bad", (0,)))
        engine.permit(10)
        assert str(await error_of(refused)) == "prompt of bad refused"
        assert await running == sample_of(3)
        assert await loop.sample("b", (2,)) == sample_of(2)
        loop.close()

    run(main())


def test_a_caller_that_gives_up_does_not_stop_the_engine() -> None:
    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        running, given_up = await begin(loop.sample("a", (4,))), await begin(loop.sample("b", (2,)))
        engine.permit(1)
        await engine.wait_for_steps(1)
        queued = await begin(loop.sample("c", (1,)))
        for task in (given_up, queued):
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        engine.permit(10)
        assert await running == sample_of(4)
        assert await loop.sample("d", (2,)) == sample_of(2)
        loop.close()

    run(main())


def test_the_failure_of_a_request_whose_caller_gave_up_is_not_reported_by_asyncio() -> None:
    reports: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        loop, engine = make_loop(throttled=True)
        waiting = await begin(loop.sample("a", (10,)))
        engine.permit(1)
        await engine.wait_for_steps(1)
        given_up = await begin(loop.sample("b", (10,)))
        given_up.cancel()
        await asyncio.wait([given_up])
        engine.permit(1)
        await engine.wait_for_steps(2)
        engine.step_error = ValueError("broken")
        engine.permit(1)
        assert "broken" in str(await error_of(waiting))

    run(main())
    gc.collect()
    assert reports == []


def test_close_fails_the_waiting_and_ends_the_thread() -> None:
    async def main() -> None:
        loop, engine = make_loop()
        waiting = [await begin(loop.sample(key, (10**9,))) for key in "ab"]
        await engine.wait_for_steps(1)
        await asyncio.to_thread(loop.close)
        assert not loop._thread.is_alive()
        for task in waiting:
            assert "the engine was closed" in str(await error_of(task))
        assert isinstance(await error_of(loop.sample("c", (1,))), EngineError)
        loop.close()  # a second call does nothing

    run(main())


def test_an_engine_that_cannot_be_built_raises_in_the_constructor() -> None:
    failure = OSError("no such model")

    def build() -> FakeEngine:
        raise failure

    with pytest.raises(OSError, match="no such model") as caught:
        StepLoop(build)
    assert caught.value is failure


class WatchedQueue(queue.Queue[Any]):
    """Sets `waited_for` when a caller waits for an item, but not when it only looks for one."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.waited_for = threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if timeout:
            self.waited_for.set()
        return super().get(block, timeout)


def test_only_time_without_any_request_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by 1 each time it is read, so every wait for a command lasts 1."""
    reads = itertools.count()
    monkeypatch.setattr(actors.step_loop, "time", SimpleNamespace(monotonic=lambda: float(next(reads))))
    monkeypatch.setattr(actors.step_loop, "queue", SimpleNamespace(Queue=WatchedQueue, Empty=queue.Empty))

    async def main() -> None:
        loop, engine = make_loop(throttled=True)
        waited_for = loop._commands.waited_for  # type: ignore[attr-defined]

        async def until_idle() -> None:
            assert await asyncio.to_thread(waited_for.wait, WAIT_S), "the loop does not wait for a command"

        await until_idle()
        running = await begin(loop.sample("a", (30,)))
        engine.permit(1)
        await engine.wait_for_steps(1)
        assert loop.take_idle_s() >= 1.0  # until the first command came
        engine.permit(19)
        await engine.wait_for_steps(20)
        waited_for.clear()
        assert loop.take_idle_s() == 0.0
        engine.permit(10)
        await running
        await until_idle()
        await loop.load(make_snapshot(2))
        assert loop.take_idle_s() >= 1.0  # between the end of the request and the load
        loop.close()

    run(main())
    assert next(reads) > 20


def test_versions_of_a_partial_sample_are_runs() -> None:
    partial = PartialSample()
    for token, version in ((5, 0), (6, 0), (7, 2), (8, 2), (9, 3)):
        partial.append(token, -1.0, version)
    found = partial.finish(FinishReason.LENGTH)
    assert (found.version_starts, found.version_values) == ((0, 2, 4), (0, 2, 3))
    assert found.token_ids == (5, 6, 7, 8, 9)


@pytest.mark.parametrize(("version", "starts", "values"), [(2, (0, 2), (0, 2)), (3, (0, 2, 3), (0, 2, 3))])
def test_tokens_after_those_sampled_before_begin_a_version_run_only_where_the_version_differs(
    version: int, starts: tuple[int, ...], values: tuple[int, ...]
) -> None:
    before = Sample(
        token_ids=(5, 6, 7), logprobs=(-1.0, -2.0, -3.0), version_starts=(0, 2), version_values=(0, 2), finish_reason=FinishReason.ABORTED
    )
    partial = PartialSample.after(before)
    assert partial.finish(FinishReason.ABORTED) == before
    partial.append(8, -4.0, version)
    found = partial.finish(FinishReason.LENGTH, np.ones(4, np.float32))
    assert (found.token_ids, found.logprobs) == ((5, 6, 7, 8), (-1.0, -2.0, -3.0, -4.0))
    assert (found.version_starts, found.version_values) == (starts, values)
    assert found.state_mean is None, "the states of the first three are not known"


def test_a_sample_without_tokens_has_no_versions() -> None:
    found = PartialSample().finish(FinishReason.ABORTED)
    assert (found.token_ids, found.version_starts, found.version_values) == ((), (), ())
