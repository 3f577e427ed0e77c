"""What a rollout worker asks of an inference engine, and the thread that drives an engine that works in steps.

Two interfaces, one above the other:

    AsyncEngine   sample / sample_batch / partials / abort / load / close, awaited by the rollout worker  (AsyncLLM implements it)
    StepEngine    add / step / partials / abort / reset / load, called by one thread                      (LLMEngine, the reference engine)

`StepLoop` turns a StepEngine into an AsyncEngine. A load happens between two steps, so requests go on under the new
weights and every token carries the version it was sampled under. A request may begin with tokens that another engine
has sampled."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from actors.weight_transfer import Weights
from buffers.records import FinishReason
from learners.weights import WeightSnapshot

QUEUE_CAP = 4096
CLOSE_TIMEOUT_S = 10.0


class EngineError(RuntimeError):
    """The engine failed; every request in it failed with it."""


class WeightMismatch(EngineError):
    """After a load the engine does not hold the published weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sampled response: T token ids, T log-probs under the sampling distribution, policy versions as runs."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version_starts: tuple[int, ...]
    version_values: tuple[int, ...]
    finish_reason: FinishReason
    state_mean: np.ndarray | None = field(default=None, compare=False)
    """(H,) float32, where the engine pools hidden states (`actors.pooled_states`) and has sampled all of the tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One response to sample: after `prompt_ids`, at most `max_tokens` tokens (None: as many as the sampling config
    allows).

    `sampled` are tokens of the response that were sampled before, fewer than it may have: it goes on after them, and
    they are its first tokens, log-probs and versions."""

    key: str
    prompt_ids: Sequence[int]
    max_tokens: int | None = None
    sampled: Sample | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where an engine is between two steps: running requests' tokens so far, and how many tokens it has sampled since
    it was built."""

    samples: Mapping[str, Sample]
    sampled_tokens: int


@dataclass(slots=True)
class PartialSample:
    """Grows by a token at a time while an engine samples; its first `num_resumed` tokens were sampled before."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    version_starts: list[int] = field(default_factory=list)
    version_values: list[int] = field(default_factory=list)
    num_resumed: int = 0

    @classmethod
    def after(cls, sampled: Sample | None) -> PartialSample:
        """What goes on after `sampled`; empty without it."""
        if sampled is None:
            return cls()
        return cls(
            token_ids=list(sampled.token_ids),
            logprobs=list(sampled.logprobs),
            version_starts=list(sampled.version_starts),
            version_values=list(sampled.version_values),
            num_resumed=len(sampled.token_ids),
        )

    def append(self, token_id: int, logprob: float, version: int) -> None:
        if not self.version_values or self.version_values[-1] != version:
            self.version_starts.append(len(self.token_ids))
            self.version_values.append(version)
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)

    def finish(self, reason: FinishReason, state_mean: np.ndarray | None = None) -> Sample:
        """The tokens so far. `state_mean`, of the tokens sampled here, is kept where those are all."""
        return Sample(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            version_starts=tuple(self.version_starts),
            version_values=tuple(self.version_values),
            finish_reason=reason,
            state_mean=None if self.num_resumed else state_mean,
        )


class StepEngine(Protocol):
    """An engine that samples in steps. Not thread-safe: one thread calls everything."""

    version: int
    sampled_tokens: int
    """Tokens sampled since it was built."""

    def add(self, key: str, prompt_ids: Sequence[int], max_tokens: int | None = None, sampled: Sample | None = None) -> None:
        """See `SampleRequest`."""
        ...

    def step(self) -> list[tuple[str, Sample]]:
        """Sample about one token for every running request; return those that finished."""
        ...

    def abort(self, keys: Sequence[str]) -> list[tuple[str, Sample]]:
        """Stop requests and return their tokens so far, with finish_reason ABORTED."""
        ...

    def partials(self, keys: Sequence[str]) -> dict[str, Sample]:
        """Of those that run, the tokens so far with finish_reason ABORTED and without a state mean. They go on
        undisturbed."""
        ...

    def load(self, snapshot: WeightSnapshot) -> None:
        """Take new weights, keep running requests, prove the weights. Raises WeightMismatch."""
        ...

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        """Only without running requests: seed the sampler and forget cached prefixes, so that what is sampled next is a
        function of the seed, the weights and the requests (with `keep_cache`, of what was sampled since the cache was
        last forgotten too)."""
        ...

    @property
    def has_unfinished(self) -> bool: ...


class AsyncEngine(Protocol):
    """What the rollout worker awaits."""

    async def sample(self, key: str, prompt_ids: Sequence[int], sampled: Sample | None = None) -> Sample:
        """See `SampleRequest`. Raises RuntimeError for a key that runs already."""
        ...

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        """All of `requests`, alone in the engine and begun together after `reset`: the same samples whatever was
        sampled before. Raises RuntimeError while other requests run."""
        ...

    async def abort(self, keys: Sequence[str]) -> None:
        """The aborted requests' `sample` calls return their tokens so far."""
        ...

    async def partials(self, keys: Sequence[str]) -> Progress:
        """As `StepEngine.partials`, after what was asked for before. Every request that has ended by then returns to
        its caller first."""
        ...

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since it was built, as of the last step; never waits."""
        ...

    async def wait_for_tokens(self, total: float) -> None:
        """Until so many tokens have been sampled since it was built (math.inf: for good). Raises EngineError once the
        engine has failed."""
        ...

    async def load(self, weights: Weights) -> float:
        """As `StepEngine.load`, between two steps; returns the seconds in which nothing was sampled. Raises
        WeightsRefused where nothing has changed; what fails half-way is an EngineError, after which the engine samples
        nothing any more."""
        ...

    def take_idle_s(self) -> float:
        """Seconds without any request since the last call."""
        ...

    def close(self) -> None: ...


class TokenCounter:
    """Tokens an engine has sampled, counted by its thread, and whoever waits for more of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._waiting: list[tuple[float, Future[None]]] = []
        self._failure: EngineError | None = None

    @property
    def total(self) -> int:
        return self._total

    def advance(self, total: int) -> None:
        with self._lock:
            self._total = total
            due = [waiter for waiter in self._waiting if waiter[0] <= total]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] > total]
        for _, done in due:
            done.set_result(None)

    def fail(self, error: EngineError) -> None:
        """Nothing will be sampled any more: every wait, present and future, raises `error`."""
        with self._lock:
            self._failure = error
            waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done.set_exception(error)

    async def wait_for(self, total: float) -> None:
        waiter: tuple[float, Future[None]] = (total, _uncancellable())
        with self._lock:
            if self._failure is not None:
                raise EngineError(str(self._failure)) from self._failure
            if self._total >= total:
                return
            self._waiting.append(waiter)
        try:
            await asyncio.wrap_future(waiter[1])
        finally:
            with self._lock, suppress(ValueError):
                self._waiting.remove(waiter)


class StepLoop:
    """Drives a StepEngine from one thread: drain the commands, then step, until closed.

    An exception of the engine fails every waiting request and every later call with the same cause.
    """

    def __init__(self, build: Callable[[], StepEngine]) -> None:
        """`build` runs in the new thread (engines bind to the thread that made them); its failure is raised here."""
        self._commands: queue.Queue[tuple[Callable[[StepEngine], Any], Future[Any]] | None] = queue.Queue(maxsize=QUEUE_CAP)
        self._waiting: dict[str, Future[Sample]] = {}
        self._sampled = TokenCounter()
        self._failure: BaseException | None = None
        self._idle_s = 0.0
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, started), name="engine", daemon=True)
        self._thread.start()
        started.result()  # bounded by the caller's start timeout: the actor's constructor is awaited with a deadline

    async def sample(self, key: str, prompt_ids: Sequence[int], sampled: Sample | None = None) -> Sample:
        done: Future[Sample] = _uncancellable()
        ended = asyncio.wrap_future(done)  # before anything else is asked, so that it is told in its order

        def add(engine: StepEngine) -> None:
            if key in self._waiting:
                raise RuntimeError(f"request {key} runs already")
            engine.add(key, prompt_ids, sampled=sampled)
            self._waiting[key] = done

        await self._call(add)
        return await ended

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        done: dict[str, Future[Sample]] = {request.key: _uncancellable() for request in requests}

        def add_all(engine: StepEngine) -> None:
            if engine.has_unfinished:
                raise RuntimeError(f"{len(requests)} responses were to be sampled alone, but the engine has others under way")
            engine.reset(seed, keep_cache=keep_cache)
            added: list[str] = []
            try:
                for request in requests:
                    engine.add(request.key, request.prompt_ids, request.max_tokens, request.sampled)
                    added.append(request.key)
            except Exception:
                engine.abort(added)
                raise
            self._waiting.update(done)

        await self._call(add_all)
        return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in done.values())))

    async def abort(self, keys: Sequence[str]) -> None:
        await self._call(lambda engine: self._resolve(engine.abort([key for key in keys if key in self._waiting])))

    async def partials(self, keys: Sequence[str]) -> Progress:
        progress: Progress = await self._call(lambda engine: Progress(samples=engine.partials(keys), sampled_tokens=engine.sampled_tokens))
        return progress

    @property
    def sampled_tokens(self) -> int:
        return self._sampled.total

    async def wait_for_tokens(self, total: float) -> None:
        await self._sampled.wait_for(total)

    async def load(self, weights: Weights) -> float:
        if not isinstance(weights, WeightSnapshot):
            raise TypeError("an engine in this process takes weights from host memory only (rollout.weight_transfer)")

        def load(engine: StepEngine) -> float:
            started = time.monotonic()
            try:
                engine.load(weights)
            except EngineError:
                raise
            except Exception as error:  # half loaded: what it would sample is of no version, so it must not go on
                raise EngineError(f"loading version {weights.version} failed: {error!r}") from error
            return time.monotonic() - started

        load_s: float = await self._call(load)
        return load_s

    def take_idle_s(self) -> float:
        idle_s, self._idle_s = self._idle_s, 0.0
        return idle_s

    def close(self) -> None:
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)

    async def _call(self, command: Callable[[StepEngine], Any]) -> Any:
        if self._failure is not None:
            raise EngineError(f"the engine has failed: {self._failure!r}") from self._failure
        done: Future[Any] = _uncancellable()
        self._commands.put_nowait((command, done))
        if self._failure is not None:  # failed meanwhile: nobody drains the queue any more
            self._refuse_commands(self._failure)
        return await asyncio.wrap_future(done)

    def _run(self, build: Callable[[], StepEngine], started: Future[None]) -> None:
        try:
            engine = build()
        except BaseException as error:  # a seam: handed to the constructor
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while self._drain(engine):
                if engine.has_unfinished:
                    finished = engine.step()
                    self._sampled.advance(engine.sampled_tokens)  # first: who gets a sample finds its tokens counted
                    self._resolve(finished)
        except BaseException as error:  # a seam: handed to every caller
            self._fail(error)

    def _drain(self, engine: StepEngine) -> bool:
        """Run all queued commands; wait for one when there is nothing to step. False when closed."""
        while True:
            wait = not engine.has_unfinished and self._commands.empty()
            since = time.monotonic()
            try:
                item = self._commands.get(timeout=1.0 if wait else 0)
            except queue.Empty:
                if wait:
                    self._idle_s += time.monotonic() - since
                    continue
                return True
            if wait:
                self._idle_s += time.monotonic() - since
            if item is None:
                self._fail(EngineError("the engine was closed"))
                return False
            command, done = item
            try:
                done.set_result(command(engine))
            except Exception as error:  # a seam: handed to the caller, who decides
                done.set_exception(error)
                if isinstance(error, EngineError):
                    raise

    def _resolve(self, finished: Sequence[tuple[str, Sample]]) -> None:
        for key, sample in finished:
            self._waiting.pop(key).set_result(sample)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        for done in self._waiting.values():
            if not done.done():
                done.set_exception(EngineError(f"the engine failed: {error!r}"))
        self._waiting.clear()
        self._sampled.fail(EngineError(f"the engine failed: {error!r}"))
        self._refuse_commands(error)

    def _refuse_commands(self, error: BaseException) -> None:
        with suppress(queue.Empty):
            while True:
                item = self._commands.get_nowait()
                if item is not None:
                    item[1].set_exception(EngineError(f"the engine failed: {error!r}"))


def _uncancellable() -> Future[Any]:
    """A future that outlives its waiter: a cancelled call is finished and discarded, and the engine goes on."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
