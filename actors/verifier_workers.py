"""The processes of a verifier pool: a pebble pool, the thread that its processes are children of, and what runs inside.

    workers = Workers(num_workers, task_factory)
    future = workers.schedule(problem, text, timeout_s)     # a Verdict; never done if the workers die or are replaced
    workers.are_live()                                      # so look here while waiting
    workers.stop()

Linux sends a process its parent-death signal when the *thread* that started it ends. So a thread of their own starts
the processes and lives as long as they do, not whichever thread happens to call `verify` first."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import Any

from pebble import ProcessPool

from buffers.records import Problem, Verdict, VerdictStatus
from tasks.base import NeedsWarmUp, Task

TaskFactory = Callable[[], Task]

TICK_S = 0.2  # how often a wait looks whether the pool is still live
_PR_SET_PDEATHSIG = 1
_MAX_DETAIL_CHARS = 500


class ResizeError(RuntimeError):
    """The workers of another size did not start. The pool is as it was."""


class Workers:
    """One pebble pool, whose size is fixed, and the thread that started its processes."""

    def __init__(self, num_workers: int, task_factory: TaskFactory) -> None:
        """Returns once the processes are started, before they are ready. Raises if `task_factory` cannot be pickled."""
        self.num_workers = num_workers
        self._pool = ProcessPool(
            max_workers=num_workers,
            initializer=_initialize_worker,
            initargs=(os.getpid(), task_factory),
            context=multiprocessing.get_context("spawn"),  # a fork would inherit locks whose threads do not exist in it
        )
        self._lock = threading.Lock()  # guards the next two
        self._open: set[Future[Any]] = set()
        self._begun: set[Future[Any]] | None = None  # set by `hand_over`
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
        """Return the future verdict. It is never done if the pool is not live (`are_live`) or has a successor."""
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
        """Wait until a worker answers. Raises ResizeError if none does so in time."""
        deadline = time.monotonic() + timeout_s
        answer = self._schedule(os.getpid, timeout_s=timeout_s)
        while wait([answer], timeout=TICK_S).not_done and self.are_live() and time.monotonic() < deadline:
            pass
        if not answer.done() or answer.exception() is not None:
            reason = "they are killed, or die when they start, and their standard error says why"
            late = f"none of {self.num_workers} new verifier workers was ready within start_timeout_s = {timeout_s:g} s"
            raise ResizeError(f"{late}: {reason}")

    @property
    def has_successor(self) -> bool:
        return self._begun is not None

    def will_end(self, futures: Collection[Future[Any]]) -> list[Future[Any]]:
        """Return those of `futures` that a live pool will end: all, or after `hand_over` those that it had begun."""
        begun = self._begun
        return [future for future in futures if begun is None or future in begun]

    def hand_over(self, timeout_s: float) -> None:
        """Leave what no worker has begun to the successor, and wait for the rest."""
        with self._lock:
            self._begun = {future for future in self._open if future.running()}
        deadline = time.monotonic() + timeout_s
        while wait(self._begun, timeout=TICK_S).not_done and self.are_live() and time.monotonic() < deadline:
            pass

    def are_live(self) -> bool:
        return self._pool.active

    def stop(self) -> None:
        """Kill the processes and wait for their end. A second call does nothing."""
        with self._stop_lock:
            if self._stopping.is_set():
                return
            self._pool.stop()
            self._pool.join()
            self._stopping.set()
            self._thread.join()

    def _hold(self, started: Future[bool]) -> None:
        """Start the pool, then stay until it is stopped. What starts here inherits the blocked SIGINT, so that Ctrl-C
        does not hit a worker before it can ignore it. Starting the resource tracker unblocks the signal, so that comes
        first."""
        try:
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            started.set_result(self._pool.active)
        except BaseException as error:
            started.set_exception(error)
        self._stopping.wait()


# ---- inside a worker process ----
_make_task: TaskFactory
_worker_task: Task | str = "the worker was not initialized"  # the task, or the reason why there is none


def _initialize_worker(owner_pid: int, task_factory: TaskFactory) -> None:
    """Tie the worker's life to its owner's and make the task."""
    global _make_task, _worker_task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for C code that never returns
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:  # the owner died before the line above
        os._exit(1)
    _make_task = task_factory
    _worker_task = _new_task()


def _new_task() -> Task | str:
    """Return a task, or the reason why there is none."""
    try:
        task = _make_task()
        if isinstance(task, NeedsWarmUp):
            task.warm_up()
        return task
    except Exception as error:
        return f"the task could not be built: {describe(error)}"


def _verify_in_worker(problem: Problem, text: str) -> Verdict:
    """Verify one response. This is the seam where an exception of a verifier becomes a value. Where there is no task
    yet, try again to make it: a disk may have been full just then."""
    global _worker_task
    if isinstance(_worker_task, str) and isinstance(_worker_task := _new_task(), str):
        return error_verdict(_worker_task)
    started = time.perf_counter()
    try:
        verdict = _worker_task.verify(problem, text)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"verify returned a {type(verdict).__name__}, not a Verdict")
    except (Exception, SystemExit) as error:
        verdict = error_verdict(f"the verifier raised {describe(error)}")
    return replace(verdict, elapsed_s=time.perf_counter() - started)


def error_verdict(detail: str) -> Verdict:
    return Verdict(status=VerdictStatus.ERROR, reward=None, detail=detail[:_MAX_DETAIL_CHARS])


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
