"""AsyncVllmEngine around a load, with a stand-in for vLLM's AsyncLLM: requests that arrive while weights are replaced,
and the file that holds the weights meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import vllm_engine
from actors.engine import EngineError, PartialSample, WeightMismatch
from actors.step_loop import TokenCounter
from actors.vllm_engine import WEIGHTS_PREFIX, AsyncVllmEngine
from buffers.records import FinishReason
from tests.actors.coroutines import begin, run


class FakeLLM:
    """Samples one token for each request. A request that arrives during a pause is queued, as in vLLM."""

    errored = False

    def __init__(self) -> None:
        self.version = 0
        self.running = asyncio.Event()
        self.running.set()
        self.may_load = asyncio.Event()
        self.sampled: list[tuple[str, str, int]] = []
        """The requests, each with the salt of its prompt and the version it was computed with."""
        self.aborted: list[str] = []

    async def pause_generation(self, **_: Any) -> None:
        self.running.clear()

    async def resume_generation(self) -> None:
        self.running.set()

    async def collective_rpc(self, method: str, **_: Any) -> list[dict[str, str]]:
        return [{}]

    async def abort(self, keys: list[str]) -> None:
        self.aborted += keys

    async def generate(self, prompt: dict[str, str], params: None, request_id: str) -> AsyncIterator[Any]:
        await self.running.wait()
        self.sampled.append((request_id, prompt["cache_salt"], self.version))
        token = SimpleNamespace(token_ids=[7], logprobs=[{7: SimpleNamespace(logprob=-1.0)}], finish_reason="stop")
        yield SimpleNamespace(request_id=request_id, outputs=[token], finished=True)

    async def load(self) -> None:
        await self.may_load.wait()
        self.version = 1


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_prompt", lambda request, version: {"cache_salt": str(version)})
    monkeypatch.setattr(vllm_engine, "_sampling_params", lambda *_: None)
    monkeypatch.setattr(vllm_engine, "_to_be_held", lambda weights: ())
    monkeypatch.setattr(vllm_engine, "_require_match", lambda *_: None)
    monkeypatch.setattr(AsyncVllmEngine, "_noting_failures", lambda engine: contextlib.nullcontext())


def engine_around(llm: FakeLLM, *, hold_timeout_s: float = 30.0) -> Any:
    """Return an engine as `start` leaves it, without vLLM."""
    engine: Any = AsyncVllmEngine()
    engine._engine, engine._sampling, engine._partials, engine._pools_states = llm, None, dict[str, PartialSample](), False
    engine._sampled, engine._version, engine._idle_s, engine._idle_since = TokenCounter(), 0, 0.0, None
    engine._is_replacing, engine._load_error, engine._held, engine._hold_timeout_s = False, None, {}, hold_timeout_s
    return engine


async def beginning_to_load(engine: Any, llm: FakeLLM) -> asyncio.Task[float]:
    """Start a load, and return it when it waits for `may_load`."""
    loading = await begin(engine._replace(SimpleNamespace(version=1), llm.load))
    while llm.running.is_set():
        await asyncio.sleep(0)
    return loading


def test_a_request_that_comes_while_weights_are_replaced_has_the_salt_of_the_new_ones() -> None:
    async def main() -> None:
        llm = FakeLLM()
        engine = engine_around(llm)
        loading = await beginning_to_load(engine, llm)
        sampling = await begin(engine.sample("new", [1]))
        llm.may_load.set()
        sample = await sampling
        await loading
        assert llm.sampled == [("new", "1", 1)] and sample.version_values == (1,)
        assert engine._held == {} and engine._partials == {}

    run(main())


def test_a_request_that_waits_for_new_weights_can_be_aborted() -> None:
    async def main() -> None:
        llm = FakeLLM()
        engine = engine_around(llm)
        loading = await beginning_to_load(engine, llm)
        sampling = await begin(engine.sample("new", [1]))
        await engine.abort(["new"])
        sample = await sampling
        assert sample.finish_reason is FinishReason.ABORTED and sample.token_ids == ()
        llm.may_load.set()
        await loading
        assert llm.sampled == [] and llm.aborted == []

    run(main())


def test_a_load_that_fails_fails_those_that_wait_for_it_and_all_that_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch(*_: Any) -> None:
        raise WeightMismatch("the engine does not hold tensor norm")

    monkeypatch.setattr(vllm_engine, "_require_match", mismatch)

    async def main() -> None:
        llm = FakeLLM()
        engine = engine_around(llm)
        loading = await beginning_to_load(engine, llm)
        sampling = await begin(engine.sample("new", [1]))
        llm.may_load.set()
        with pytest.raises(WeightMismatch):
            await loading
        for refused in (sampling, engine.sample("later", [1])):
            with pytest.raises(EngineError, match="samples no more: the engine does not hold tensor norm"):
                await refused
        assert llm.sampled == [] and engine._partials == {}

    run(main())


def test_a_wait_for_new_weights_has_an_end_and_a_name() -> None:
    async def main() -> None:
        llm = FakeLLM()
        engine = engine_around(llm, hold_timeout_s=0.01)
        loading = await beginning_to_load(engine, llm)
        with pytest.raises(EngineError, match=r"request new has waited 0\.01 s for the engine to take new weights"):
            await engine.sample("new", [1])
        llm.may_load.set()
        await loading

    run(main())


def test_weights_in_shared_memory_are_named_after_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "SHARED_MEMORY", tmp_path)
    seen: list[str] = []

    async def main() -> None:
        engine = engine_around(FakeLLM())
        engine._engine.may_load.set()
        weights = SimpleNamespace(version=1, save=lambda path: seen.append(path.parent.name))
        await engine.load(weights)

    run(main())
    assert [name.startswith(f"{WEIGHTS_PREFIX}{os.getpid()}-") for name in seen] == [True] and list(tmp_path.iterdir()) == []
