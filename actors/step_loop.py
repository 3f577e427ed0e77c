"""The thread that drives a StepEngine, and what it keeps about the requests in it.

    engine = await start_engine(setup)        # the engine that the configuration names, as an AsyncEngine

    StepLoop           the thread, and the queue of commands that the event loop sends to it
    RunningRequests    the requests with their tokens and versions so far; used by the thread only
    TokenCounter       how many tokens were sampled, for callers that wait for more

A load happens between two steps. Requests continue under the new weights, and every token carries the version that
sampled it."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from actors.engine import AsyncEngine, EngineError, EngineSetup, PartialSample, Progress, Sample, SampleRequest, StepEngine
from actors.engines import engine_of
from actors.weight_transfer import Weights
from buffers.records import FinishReason
from learners.weight_check import WeightsRefused
from learners.weights import WeightSnapshot

QUEUE_CAP = 4096
CLOSE_TIMEOUT_S = 10.0
Command = Callable[["RunningRequests"], Any]


async def start_engine(setup: EngineSetup) -> AsyncEngine:
    """Start the engine of `setup.config`: in a thread of its own if it works in steps, else in this event loop."""
    engine = engine_of(setup.config)
    if not isinstance(engine, StepEngine):
        await engine.start(setup)
        return engine

    def build() -> StepEngine:
        engine.start(setup)
        return engine

    return await asyncio.to_thread(StepLoop, build)


class TokenCounter:
    """Counts the tokens that an engine has sampled, and wakes callers that wait for a total. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0
        self._waiting: list[tuple[float, Future[None]]] = []
        self._failure: EngineError | None = None

    def advance(self, total: int) -> None:
        with self._lock:
            self.total = total
            due = [waiter for waiter in self._waiting if waiter[0] <= total]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] > total]
        for _, done in due:
            done.set_result(None)

    def fail(self, error: EngineError) -> None:
        """Note that no more tokens will come: every present and future wait raises `error`."""
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
            if self.total >= total:
                return
            self._waiting.append(waiter)
        try:
            await asyncio.wrap_future(waiter[1])
        finally:
            with self._lock, suppress(ValueError):
                self._waiting.remove(waiter)


class RunningRequests:
    """The requests in a StepEngine with their tokens so far. Not thread-safe."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine  # started
        self._partials: dict[str, PartialSample] = {}
        self.version = 0
        self.sampled_tokens = 0  # tokens sampled here; those that a request came with do not count

    @property
    def has_unfinished(self) -> bool:
        return bool(self._partials)

    def add(self, request: SampleRequest) -> None:
        self._engine.add(request)
        self._partials[request.key] = PartialSample.after(request.sampled)

    def step(self) -> list[tuple[str, Sample]]:
        """Step the engine and return the responses that have ended."""
        ended: dict[str, FinishReason] = {}
        for new in self._engine.step():
            self._partials[new.key].extend(new, self.version)
            self.sampled_tokens += len(new.token_ids)
            if new.finish_reason is not None:
                ended[new.key] = new.finish_reason
        return self._finish(ended)

    def abort(self, keys: Sequence[str]) -> list[tuple[str, Sample]]:
        """End requests early and return their tokens so far."""
        self._engine.abort(keys)
        return self._finish(dict.fromkeys(keys, FinishReason.ABORTED))

    def partials(self, keys: Sequence[str]) -> dict[str, Sample]:
        """Return the tokens so far of those requests that run, without a state mean."""
        return {key: self._partials[key].finish(FinishReason.ABORTED) for key in keys if key in self._partials}

    def load(self, snapshot: WeightSnapshot) -> None:
        self._engine.load(snapshot)
        self.version = snapshot.version

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        self._engine.reset(seed, keep_cache=keep_cache)

    def _finish(self, ended: Mapping[str, FinishReason]) -> list[tuple[str, Sample]]:
        take_states = getattr(self._engine, "take_states", None)
        states = take_states(list(ended)) if take_states is not None and ended else {}
        return [(key, self._partials.pop(key).finish(reason, states.get(key))) for key, reason in ended.items()]


class StepLoop:
    """Makes a StepEngine an AsyncEngine: one thread runs the queued commands, then steps the engine, until closed. If
    the engine raises, every waiting request and every later call fails with the same cause."""

    def __init__(self, build: Callable[[], StepEngine]) -> None:
        """`build` runs in the new thread, to which engines bind, and returns a started engine. Its error is raised
        here."""
        self._commands: queue.Queue[tuple[Command, Future[Any]] | None] = queue.Queue(maxsize=QUEUE_CAP)
        self._waiting: dict[str, Future[Sample]] = {}
        self._sampled = TokenCounter()
        self._failure: BaseException | None = None
        self._idle_s = 0.0
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, started), name="engine", daemon=True)
        self._thread.start()
        started.result()  # bounded by the caller, who awaits the start of the worker with a deadline

    async def sample(self, key: str, prompt_ids: Sequence[int], sampled: Sample | None = None) -> Sample:
        done: Future[Sample] = _uncancellable()
        ended = asyncio.wrap_future(done)  # before the command is queued, so that results arrive in the engine's order

        def add(requests: RunningRequests) -> None:
            if key in self._waiting:
                raise RuntimeError(f"request {key} runs already")
            requests.add(SampleRequest(key=key, prompt_ids=prompt_ids, sampled=sampled))
            self._waiting[key] = done

        try:
            await self._call(add)
            return await ended
        finally:
            ended.cancel()  # of a caller that gave up before its request was read: no failure is told to it

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        done: dict[str, Future[Sample]] = {request.key: _uncancellable() for request in requests}

        def add_all(running: RunningRequests) -> None:
            if running.has_unfinished:
                raise RuntimeError(f"{len(requests)} responses were to be sampled alone, but the engine has others under way")
            running.reset(seed, keep_cache=keep_cache)
            added: list[str] = []
            try:
                for request in requests:
                    running.add(request)
                    added.append(request.key)
            except Exception:
                running.abort(added)
                raise
            self._waiting.update(done)

        await self._call(add_all)
        return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in done.values())))

    async def abort(self, keys: Sequence[str]) -> None:
        await self._call(lambda requests: self._resolve(requests.abort([key for key in keys if key in self._waiting])))

    async def partials(self, keys: Sequence[str]) -> Progress:
        return await self._call(lambda requests: Progress(samples=requests.partials(keys), sampled_tokens=requests.sampled_tokens))

    @property
    def sampled_tokens(self) -> int:
        return self._sampled.total

    async def wait_for_tokens(self, total: float) -> None:
        await self._sampled.wait_for(total)

    async def load(self, weights: Weights) -> float:
        if not isinstance(weights, WeightSnapshot):
            raise TypeError("an engine in this process takes weights from host memory only (rollout.weight_transfer)")

        def load(requests: RunningRequests) -> float:
            started = time.monotonic()
            try:
                requests.load(weights)
            except (EngineError, WeightsRefused):
                raise
            except Exception as error:  # the weights are half loaded, so samples would belong to no version
                raise EngineError(f"loading version {weights.version} failed: {error!r}") from error
            return time.monotonic() - started

        return await self._call(load)

    def take_idle_s(self) -> float:
        idle_s, self._idle_s = self._idle_s, 0.0
        return idle_s

    def close(self) -> None:
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)

    async def _call(self, command: Command) -> Any:
        if self._failure is not None:
            raise EngineError(f"the engine has failed: {self._failure!r}") from self._failure
        done: Future[Any] = _uncancellable()
        self._commands.put_nowait((command, done))
        if self._failure is not None:  # the thread ended in between, so it will not read the queue
            self._refuse_commands(self._failure)
        return await asyncio.wrap_future(done)

    def _run(self, build: Callable[[], StepEngine], started: Future[None]) -> None:
        try:
            requests = RunningRequests(build())
        except BaseException as error:  # a seam: raised by the constructor
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while self._run_commands(requests):
                if requests.has_unfinished:
                    finished = requests.step()
                    self._sampled.advance(requests.sampled_tokens)  # before any caller gets a sample of this step
                    self._resolve(finished)
        except BaseException as error:  # a seam: raised in every caller
            self._fail(error)

    def _run_commands(self, requests: RunningRequests) -> bool:
        """Run all queued commands, and wait for one if there is nothing to step. Return False once closed."""
        while True:
            wait = not requests.has_unfinished and self._commands.empty()
            since = time.monotonic()
            try:
                item = self._commands.get(timeout=1.0 if wait else 0)
            except queue.Empty:
                if wait:
                    continue
                return True
            finally:
                self._idle_s += time.monotonic() - since if wait else 0.0
            if item is None:
                self._fail(EngineError("the engine was closed"))
                return False
            command, done = item
            try:
                done.set_result(command(requests))
            except Exception as error:  # a seam: raised in the caller, who decides
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
    """Return a future that outlives its waiter: the engine completes a cancelled call, and its result is dropped."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
