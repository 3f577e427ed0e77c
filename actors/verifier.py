"""Verification in processes that may hang or die without taking the run with them.

A hung verifier is killed at its deadline and a crashed one replaced; both become verdicts without a score, never
"incorrect". Two facts about the machinery shape the code:

* Linux sends a process its parent-death signal when the *thread* that started it ends, so the workers are started from a thread that
  lives as long as they do, never from whichever thread happens to call `verify` first.
* A pebble pool breaks for good when a worker dies while no response is running, and then forgets responses it had accepted. So futures
  are never waited for without looking at the pool, and a broken pool is replaced and what it lost is scheduled again. A worker that
  dies as it takes a response may be found dead before that is known: the response then ends as a timeout, not an error.

A pebble pool has one size for life. So another number of workers is another pool: it takes the responses that wait, the
old one ends those it has begun."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from pebble import ProcessExpired, ProcessPool

from actors.config import VerifierConfig
from actors.final_answers import with_final_answers
from buffers.records import Problem, Verdict, VerdictStatus
from tasks.base import NeedsWarmUp, Task
from tasks.config import TaskConfig
from tasks.registry import make_task

__all__ = ["ResizeError", "VerifierPool", "VerifierPoolError", "VerifierStats"]

TaskFactory = Callable[[], Task]

_MAX_CRASHES = 2  # a response whose worker died is tried once more; the death may have had another cause
_MAX_ROUNDS = 5  # schedulings of one call's responses; a pool that breaks this often cannot start its workers
_TICK_S = 0.2
_KILL_S = 5.0  # pebble gives a worker that ignores SIGTERM three seconds before it kills it
_PR_SET_PDEATHSIG = 1
_MAX_DETAIL_CHARS = 500


class VerifierPoolError(RuntimeError):
    """The pool itself failed: it is stuck, cannot start workers, or was closed. No verdict on any response."""


class ResizeError(RuntimeError):
    """The workers of another size did not start. The pool goes on as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierStats:
    """Verdicts returned since the pool was made, and pools that broke and were replaced."""

    num_correct: int
    num_incorrect: int
    num_no_answer: int
    num_malformed: int
    num_timeout: int
    num_error: int
    num_rebuilds: int

    @property
    def num_verdicts(self) -> int:
        return self.num_scored + self.num_timeout + self.num_error

    @property
    def num_scored(self) -> int:
        return self.num_correct + self.num_incorrect + self.num_no_answer + self.num_malformed

    @property
    def error_rate(self) -> float:
        """Share of verdicts without a score; 0 before the first verdict."""
        return (self.num_timeout + self.num_error) / max(1, self.num_verdicts)


class VerifierPool:
    """Judges responses in `num_workers` processes, each response under a hard deadline.

        pool = VerifierPool(task_config, VerifierConfig(num_workers=2))
        for problem, responses in groups:                      # from any number of threads
            verdicts = pool.verify(problem, responses)         # one a response, in order
            if pool.stats().error_rate > config.max_error_rate: ...
        pool.resize(4)                                         # meanwhile, from any thread
        pool.close()

    Each worker builds the task once, when it starts, and warms it up. Responses of all calls share one queue, in order
    of arrival. The workers die with this process, however it ends, and ignore Ctrl-C. A pool that is not closed is
    closed at interpreter exit."""

    def __init__(
        self, task_config: TaskConfig, config: VerifierConfig, *, task_factory: TaskFactory | None = None, final_answers: bool = False
    ) -> None:
        """`task_factory`, if given, makes the task in place of `task_config`; it is pickled into the workers.
        With `final_answers`, verdicts carry the final answers too (`actors.final_answers`).

        Without `timeout_s`, the task is made here too, for its deadline; what that raises is raised.
        """
        self._config = config
        self._task_factory: TaskFactory = task_factory or partial(make_task, task_config)
        if final_answers:
            self._task_factory = partial(with_final_answers, self._task_factory)
        self._deadline_s = config.timeout_s if config.timeout_s is not None else self._task_factory().deadline_s
        self._lock = threading.Lock()  # guards everything below
        self._counts: Counter[VerdictStatus] = Counter()
        self._num_rebuilds = 0
        self._last_progress = time.monotonic()
        self._closed = False
        self._workers = _Workers(config.num_workers, self._task_factory)
        self._others: set[_Workers] = set()  # those of a resize: yet to take over, or ending what they have begun
        self._resizing = threading.Lock()  # one at a time; taken before the other lock
        atexit.register(self.close)

    @property
    def deadline_s(self) -> float:
        """Seconds that one response may take."""
        return self._deadline_s

    @property
    def num_workers(self) -> int:
        """Processes that take new responses."""
        with self._lock:
            return self._workers.num_workers

    def verify(self, problem: Problem, responses: Sequence[str]) -> list[Verdict]:
        """One verdict a response, in order. TIMEOUT and ERROR verdicts carry no reward.

        Raises VerifierPoolError where the pool finishes nothing for deadline_s + start_timeout_s, cannot keep its
        workers alive, or is closed. As some response of the pool finishes in every such window, the wait is bounded by
        the window times the responses in the queue.

        A call changes nothing but the counts of `stats`, so it may be made again by whoever lost its result, also while
        the first is still under way."""
        jobs = [_Job(response[-self._config.max_response_chars :]) for response in responses]
        num_rounds = 0
        while num_rounds < _MAX_ROUNDS and (open_jobs := [job for job in jobs if job.verdict is None]):
            workers = self._live_workers()
            self._run_round(workers, problem, open_jobs)
            num_rounds += not workers.has_successor  # a resize is nobody's fault
        verdicts = [job.verdict for job in jobs if job.verdict is not None]
        if len(verdicts) < len(jobs):
            raise VerifierPoolError(
                f"the verifier pool broke {_MAX_ROUNDS} times with {len(jobs) - len(verdicts)} of {len(jobs)} responses to "
                f"'{problem.problem_id}' open: its workers die before they take a response; their standard error says why"
            )
        with self._lock:
            self._counts.update(verdict.status for verdict in verdicts)
        return verdicts

    def verify_batch(self, problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        """`verify` for the rows of a rollout batch: what an actor is sent, so that texts travel as a reference."""
        return self.verify(problem, batch.column("response_text").to_pylist())

    def stats(self) -> VerifierStats:
        with self._lock:
            counts = {f"num_{status}": self._counts[status] for status in VerdictStatus}
            return VerifierStats(**counts, num_rebuilds=self._num_rebuilds)

    def resize(self, num_workers: int) -> None:
        """Verify in so many processes from now on, while calls of `verify` go on.

        Returns once one of the new processes has answered, all responses that nobody had begun are with them, and the
        old processes are gone. These had deadline_s, and a little for being killed, to end what they had begun; what
        they did not end is judged again. Until then both lots of processes live. The pool is as before where this
        raises: ValueError for less than one worker, ResizeError where the new workers do not start within
        start_timeout_s, VerifierPoolError where the pool is closed."""
        if num_workers < 1:
            raise ValueError(f"a verifier pool needs at least one worker, not {num_workers}")
        with self._resizing:
            if num_workers == self.num_workers and not self._closed:
                return
            fresh = self._start_others(num_workers)
            try:
                fresh.wait_until_started(self._config.start_timeout_s)
                with self._lock:
                    self._raise_if_closed()
                    old, self._workers = self._workers, fresh
                    self._others.remove(fresh)
                    self._others.add(old)
            except BaseException:
                self._stop_others(fresh)
                raise
            self._last_progress = time.monotonic()
            try:
                old.hand_over(self._deadline_s + _KILL_S)
            finally:
                self._stop_others(old)

    def close(self) -> None:
        """Kill the workers, those of a resize under way too; idempotent. Calls in other threads raise."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for workers in (self._workers, *self._others):
                workers.stop()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run_round(self, workers: _Workers, problem: Problem, jobs: list[_Job]) -> None:
        """Schedule each of `jobs` once and settle those that came to an end."""
        futures = [workers.schedule(problem, job.text, self._deadline_s) for job in jobs]
        for future in futures:
            future.add_done_callback(self._note_progress)
        self._wait(workers, futures, problem)
        for job, future in zip(jobs, futures, strict=True):
            job.settle(future, self._deadline_s)

    def _wait(self, workers: _Workers, futures: list[Future[Verdict]], problem: Problem) -> None:
        """Until all futures that `workers` will end are done, or these are broken; raises where the whole pool makes no
        progress."""
        started = time.monotonic()
        window_s = self._deadline_s + self._config.start_timeout_s
        while (pending := workers.will_end(wait(futures, timeout=_TICK_S).not_done)) and workers.are_live():
            is_stuck = time.monotonic() - max(started, self._last_progress) > window_s
            if is_stuck and not workers.has_successor:  # `resize` has an eye on those that have one
                self._replace(workers)
                raise VerifierPoolError(
                    f"no verifier finished anything for {window_s:.1f} s (a deadline of {self._deadline_s:g} s + start_timeout_s "
                    f"{self._config.start_timeout_s}) while waiting for {len(pending)} of {len(futures)} responses to "
                    f"'{problem.problem_id}' on {workers.num_workers} workers; the workers were replaced"
                )

    def _note_progress(self, _: Future[Verdict]) -> None:
        self._last_progress = time.monotonic()

    def _live_workers(self) -> _Workers:
        workers = self._workers
        if not workers.are_live():
            self._replace(workers)
        return self._workers

    def _replace(self, broken: _Workers) -> None:
        """Put fresh workers in the place of `broken`, unless another thread has done so."""
        with self._lock:
            self._raise_if_closed()
            if self._workers is broken:
                broken.stop()
                self._workers = _Workers(broken.num_workers, self._task_factory)
                self._num_rebuilds += 1

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise VerifierPoolError("the verifier pool is closed")

    def _start_others(self, num_workers: int) -> _Workers:
        """Workers that `close` knows of and that take no responses yet."""
        with self._lock:
            self._raise_if_closed()
            fresh = _Workers(num_workers, self._task_factory)
            self._others.add(fresh)
            return fresh

    def _stop_others(self, workers: _Workers) -> None:
        workers.stop()
        with self._lock:
            self._others.discard(workers)


@dataclass(slots=True)
class _Job:
    """One response on its way to a verdict."""

    text: str
    verdict: Verdict | None = None
    num_crashes: int = 0

    def settle(self, future: Future[Verdict], deadline_s: float) -> None:
        """Read the verdict out of `future`; leave it open where the pool lost the response or another try is due."""
        if not future.done() or isinstance(error := future.exception(), BrokenProcessPool):
            return
        if error is None:
            self.verdict = future.result()
        elif isinstance(error, TimeoutError):
            detail = f"killed after {deadline_s:g} s (verifier.timeout_s, or the task's deadline)"
            self.verdict = Verdict(status=VerdictStatus.TIMEOUT, reward=None, detail=detail, elapsed_s=deadline_s)
        elif isinstance(error, ProcessExpired):
            self.num_crashes += 1
            if self.num_crashes == _MAX_CRASHES:
                self.verdict = _error_verdict(f"the verifier process died {_MAX_CRASHES} times, last with exit code {error.exitcode}")
        else:
            self.verdict = _error_verdict(f"the response could not be sent to or from its worker: {_describe(error)}")


class _Workers:
    """One pebble pool, and the thread that its workers are children of."""

    def __init__(self, num_workers: int, task_factory: TaskFactory) -> None:
        """Returns once the processes are started, not once they are ready. Raises where `task_factory` cannot be
        pickled."""
        self.num_workers = num_workers
        self._pool = ProcessPool(
            max_workers=num_workers,
            initializer=_initialize_worker,
            initargs=(os.getpid(), task_factory),
            context=multiprocessing.get_context("spawn"),  # a fork would inherit the locks of threads that it does not have
        )
        self._lock = threading.Lock()  # guards the next two
        self._open: set[Future[Any]] = set()
        self._begun: set[Future[Any]] | None = None  # when these workers were handed over
        self._stopping = threading.Event()
        self._stop_lock = threading.Lock()
        started: Future[bool] = Future()
        self._thread = threading.Thread(target=self._hold, args=(started,), name="verifier-parent", daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self.stop()
            raise

    def schedule(self, problem: Problem, text: str, timeout_s: float) -> Future[Verdict]:
        """The verdict to be; never done where the pool is no longer live, which `are_live` tells, or has a
        successor."""
        return self._schedule(_verify_in_worker, problem, text, timeout_s=timeout_s)

    def _schedule(self, function: Callable[..., Any], *args: Any, timeout_s: float) -> Future[Any]:
        with self._lock:
            if self._begun is not None:
                return Future()
            try:
                future: Future[Any] = self._pool.schedule(function, args=args, timeout=timeout_s)
            except RuntimeError:
                return Future()
            self._open.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.discard(future)

    def wait_until_started(self, timeout_s: float) -> None:
        """Until a worker answers. Raises ResizeError where none does so in time."""
        deadline = time.monotonic() + timeout_s
        answer = self._schedule(os.getpid, timeout_s=timeout_s)
        while wait([answer], timeout=_TICK_S).not_done and self.are_live() and time.monotonic() < deadline:
            pass
        if not answer.done() or answer.exception() is not None:
            raise ResizeError(
                f"none of {self.num_workers} new verifier workers was ready within start_timeout_s = {timeout_s:g} s: they are killed, "
                "or die when they start, and their standard error says why"
            )

    @property
    def has_successor(self) -> bool:
        return self._begun is not None

    def will_end(self, futures: Collection[Future[Any]]) -> list[Future[Any]]:
        """Those that will be done as long as the pool is live: all, or the ones it had begun when it was handed
        over."""
        begun = self._begun
        return [future for future in futures if begun is None or future in begun]

    def hand_over(self, timeout_s: float) -> None:
        """Leave what no worker has begun to others, and wait for what one has."""
        with self._lock:
            self._begun = {future for future in self._open if future.running()}
        deadline = time.monotonic() + timeout_s
        while wait(self._begun, timeout=_TICK_S).not_done and self.are_live() and time.monotonic() < deadline:
            pass

    def are_live(self) -> bool:
        return self._pool.active

    def stop(self) -> None:
        """Kill the processes and wait for their end; idempotent."""
        with self._stop_lock:
            if self._stopping.is_set():
                return
            self._pool.stop()
            self._pool.join()
            self._stopping.set()
            self._thread.join()

    def _hold(self, started: Future[bool]) -> None:
        """Start the pool, then stay until it is stopped. Threads and processes born here inherit the blocked SIGINT, so
        that Ctrl-C does not hit a worker before it can ignore it. Starting the resource tracker unblocks the signal,
        hence goes first."""
        try:
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            started.set_result(self._pool.active)
        except BaseException as error:
            started.set_exception(error)
        self._stopping.wait()


# ---- inside a worker process ----

_worker_task: Task | str = "the worker was not initialised"  # the task, or why there is none


def _initialize_worker(owner_pid: int, task_factory: TaskFactory) -> None:
    """Tie the worker's life to its owner's and build the task. A task that cannot be built fails each response, with
    the reason."""
    global _worker_task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for C code that never returns
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:  # the owner died before the line above
        os._exit(1)
    try:
        task = task_factory()
        if isinstance(task, NeedsWarmUp):
            task.warm_up()
        _worker_task = task
    except Exception as error:
        _worker_task = f"the task could not be built: {_describe(error)}"


def _verify_in_worker(problem: Problem, text: str) -> Verdict:
    """The seam where whatever a verifier raises becomes a value."""
    if isinstance(_worker_task, str):
        return _error_verdict(_worker_task)
    started = time.perf_counter()
    try:
        verdict = _worker_task.verify(problem, text)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"verify returned a {type(verdict).__name__}, not a Verdict")
    except (Exception, SystemExit) as error:
        verdict = _error_verdict(f"the verifier raised {_describe(error)}")
    return replace(verdict, elapsed_s=time.perf_counter() - started)


def _error_verdict(detail: str) -> Verdict:
    return Verdict(status=VerdictStatus.ERROR, reward=None, detail=detail[:_MAX_DETAIL_CHARS])


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
