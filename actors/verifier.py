"""Verification in processes that may hang or die without taking the run with them.

A hung verifier is killed at its deadline, and one that crashed is replaced. Both become verdicts without a score, never
"incorrect". Two facts about pebble shape the code:

* A pool breaks for good when a worker dies while no response is running, and then forgets responses that it had
  accepted. So every wait for a future also looks at the pool, and a broken pool is replaced and its lost responses are
  scheduled again. A worker that dies as it takes a response may be found dead before that is known; the response then
  ends as a timeout, not as an error.
* A pool has one size for life. So another number of workers is another pool: it takes the responses that wait, and the
  old one ends those that it has begun."""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Self

import pyarrow as pa
from pebble import ProcessExpired

from actors.config import VerifierConfig
from actors.final_answers import with_final_answers
from actors.verifier_workers import TICK_S, ResizeError, TaskFactory, Workers, describe, error_verdict
from buffers.records import Problem, Verdict, VerdictStatus
from tasks.config import TaskConfig
from tasks.registry import make_task

__all__ = ["ResizeError", "VerifierPool", "VerifierPoolError", "VerifierStats"]

_MAX_CRASHES = 2  # a response whose worker died is tried once more; the death may have had another cause
_MAX_ROUNDS = 5  # how often one call schedules its responses; a pool that breaks this often cannot start its workers
_KILL_S = 5.0  # pebble gives a worker that ignores SIGTERM three seconds before it kills it


class VerifierPoolError(RuntimeError):
    """The pool itself failed: it is stuck, cannot start workers, or was closed. This says nothing about a response."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierStats:
    """How many verdicts were returned since the pool was made, and how many pools broke and were replaced."""

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
    """Verifies responses in `num_workers` processes, each response under a hard deadline.

        pool = VerifierPool(task_config, VerifierConfig(num_workers=2))
        for problem, responses in groups:                      # from any number of threads
            verdicts = pool.verify(problem, responses)         # one for each response, in order
        pool.resize(4)                                         # at any time, from any thread
        pool.close()

    Each worker makes the task once, when it starts, and warms it up. Responses of all calls share one queue, in order
    of arrival. The workers die with this process, however it ends, and ignore Ctrl-C. A pool that is still open when
    the interpreter exits is closed then."""

    def __init__(
        self, task_config: TaskConfig, config: VerifierConfig, *, task_factory: TaskFactory | None = None, final_answers: bool = False
    ) -> None:
        """`task_factory`, if given, makes the task in place of `task_config`. It is pickled into the workers. With
        `final_answers`, verdicts carry the final answers too (`actors.final_answers`). Without `timeout_s` the task is
        made here too, because it knows its deadline. What that raises is raised here."""
        self._config = config
        self._task_factory: TaskFactory = task_factory or partial(make_task, task_config, config)
        if final_answers:
            self._task_factory = partial(with_final_answers, self._task_factory)
        # Seconds that one response may take:
        self.deadline_s = config.timeout_s if config.timeout_s is not None else self._task_factory().deadline_s
        self._lock = threading.Lock()  # guards everything below
        self._counts: Counter[VerdictStatus] = Counter()
        self._num_rebuilds = 0
        self._last_progress = time.monotonic()
        self._closed = False
        self._workers = Workers(config.num_workers, self._task_factory)
        self._others: set[Workers] = set()  # of a resize: not yet in use, or ending what they have begun
        self._resizing = threading.Lock()  # one resize at a time; acquired before the other lock
        atexit.register(self.close)

    @property
    def num_workers(self) -> int:
        """Processes that take new responses."""
        with self._lock:
            return self._workers.num_workers

    def verify(self, problem: Problem, responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each response, in order. TIMEOUT and ERROR verdicts carry no reward. Raises
        VerifierPoolError if the pool finishes nothing for deadline_s + start_timeout_s, cannot keep its workers alive,
        or is closed. Some response of the pool finishes in every such window, so the wait is bounded by the window
        times the responses in the queue. A call changes nothing but the counts of `stats`. So a caller that lost the
        result may call again, even while the first call is still running."""
        jobs = [_Job(self._config.shortened(response, self._config.max_response_chars)) for response in responses]
        num_rounds = 0
        while num_rounds < _MAX_ROUNDS and (open_jobs := [job for job in jobs if job.verdict is None]):
            if not (workers := self._workers).are_live():
                self._replace(workers)
                workers = self._workers
            self._run_round(workers, problem, open_jobs)
            num_rounds += not workers.has_successor  # a resize is not a failure
        verdicts = [job.verdict for job in jobs if job.verdict is not None]
        if len(verdicts) < len(jobs):
            lost = f"{len(jobs) - len(verdicts)} of {len(jobs)} responses to '{problem.problem_id}'"
            reason = "its workers die before they take a response; their standard error says why"
            raise VerifierPoolError(f"the verifier pool broke {_MAX_ROUNDS} times with {lost} open: {reason}")
        with self._lock:
            self._counts.update(verdict.status for verdict in verdicts)
        return verdicts

    def verify_batch(self, problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        """Call `verify` for the rows of a rollout batch, which reaches an actor as a reference."""
        return self.verify(problem, batch.column("response_text").to_pylist())

    def stats(self) -> VerifierStats:
        with self._lock:
            counts = {f"num_{status}": self._counts[status] for status in VerdictStatus}
            return VerifierStats(**counts, num_rebuilds=self._num_rebuilds)

    def resize(self, num_workers: int) -> None:
        """Use `num_workers` processes from now on. Calls of `verify` continue meanwhile. Returns once a new process has
        answered, the new ones have all responses that were not begun, and the old ones are gone. These get deadline_s,
        and the time it takes to kill them, to end what they had begun; the rest is verified again. Until then both
        exist. Raises ValueError for less than one worker, ResizeError if the new workers do not start within
        start_timeout_s, and VerifierPoolError if the pool is closed. The pool is then as before."""
        if num_workers < 1:
            raise ValueError(f"a verifier pool needs at least one worker, not {num_workers}")
        with self._resizing:
            if num_workers == self.num_workers and not self._closed:
                return
            with self._lock:
                self._raise_if_closed()
                fresh = Workers(num_workers, self._task_factory)
                self._others.add(fresh)  # so that `close` knows about them
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
                old.hand_over(self.deadline_s + _KILL_S)
            finally:
                self._stop_others(old)

    def close(self) -> None:
        """Kill the workers, also those of a resize in progress; calls in other threads raise. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for workers in (self._workers, *self._others):
                workers.stop()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_round(self, workers: Workers, problem: Problem, jobs: list[_Job]) -> None:
        futures = [workers.schedule(problem, job.text, self.deadline_s) for job in jobs]
        for future in futures:
            future.add_done_callback(self._note_progress)
        self._wait(workers, futures, problem)
        for job, future in zip(jobs, futures, strict=True):
            job.settle(future, self.deadline_s)

    def _wait(self, workers: Workers, futures: list[Future[Verdict]], problem: Problem) -> None:
        """Wait until what `workers` will end is done, or they break. Raises VerifierPoolError without progress."""
        started = time.monotonic()
        window_s = self.deadline_s + self._config.start_timeout_s
        while (pending := workers.will_end(wait(futures, timeout=TICK_S).not_done)) and workers.are_live():
            is_stuck = time.monotonic() - max(started, self._last_progress) > window_s
            if is_stuck and not workers.has_successor:  # `resize` has a deadline for those that have one
                self._replace(workers)
                window = f"{window_s:.1f} s (a deadline of {self.deadline_s:g} s + start_timeout_s {self._config.start_timeout_s})"
                open_ = f"{len(pending)} of {len(futures)} responses to '{problem.problem_id}' on {workers.num_workers} workers"
                raise VerifierPoolError(f"no verifier finished anything for {window} while waiting for {open_}; the workers were replaced")

    def _note_progress(self, _: Future[Verdict]) -> None:
        self._last_progress = time.monotonic()

    def _replace(self, broken: Workers) -> None:
        """Replace the workers `broken`, unless another thread has done so."""
        with self._lock:
            self._raise_if_closed()
            if self._workers is broken:
                broken.stop()
                self._workers = Workers(broken.num_workers, self._task_factory)
                self._num_rebuilds += 1

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise VerifierPoolError("the verifier pool is closed")

    def _stop_others(self, workers: Workers) -> None:
        workers.stop()
        with self._lock:
            self._others.discard(workers)


@dataclass(slots=True)
class _Job:
    text: str
    verdict: Verdict | None = None
    num_crashes: int = 0

    def settle(self, future: Future[Verdict], deadline_s: float) -> None:
        """Take the verdict from `future`. It stays open if the pool lost the response, or if another try is due."""
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
                self.verdict = error_verdict(f"the verifier process died {_MAX_CRASHES} times, last with exit code {error.exitcode}")
        else:
            self.verdict = error_verdict(f"the response could not be sent to or from its worker: {describe(error)}")
