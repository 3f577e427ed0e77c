"""Evaluations of the policy while it is trained: one at a time, each of one version, on a worker of its own.

    offer ──(step, weights)──> [worker starts, loads them, samples, ends] ──metrics──> report

The rollout workers continue with newer weights meanwhile. An evaluation that is due while another is under way is left
out with a warning. So is one whose worker is lost, whose verifiers fail, or whose results cannot be written. A run
never fails because of an evaluation, unless that finds a bug."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from jobs.processes.failures import FailureKind, kind_of, reason
from jobs.processes.handles import CLOSE_TIMEOUT_S, Deadline, Handle
from jobs.processes.verdict_counter import VerifierFailure
from jobs.run.components import Run

TOLD = (OSError, VerifierFailure)
"""These are not bugs of an evaluation: a full disk, too many responses without a verdict."""


class Evaluation(Protocol):
    """An evaluation of a policy (`jobs.sampling.training_evaluation`)."""

    def is_due(self, step: int) -> bool: ...
    async def run(self, step: int, workers: Sequence[Handle[RolloutWorker]], verifier: Handle[VerifierPool]) -> dict[str, float]: ...


class Evaluations:
    """Runs evaluations beside the loops of a run.

    evaluations = Evaluations(run, evaluation)
    evaluations.offer(step, snapshot)      # from the learn loop; never waits
    await evaluations.run_loop()           # beside the other loops
    await evaluations.finished()           # before the end: nothing is under way
    """

    def __init__(self, run: Run, evaluation: Evaluation | None, *, done: Collection[int] = ()) -> None:
        """`done`: the steps that an earlier start has evaluated."""
        self._run = run
        self._done = frozenset(done)
        self._evaluation = evaluation
        self._next: tuple[int, Any] | None = None
        self._under_way: int | None = None
        self._changed = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int | None:
        """The step whose policy is being evaluated."""
        return self._under_way

    def offer(self, step: int, snapshot: Any) -> None:
        """Take the weights of `step`, to which `snapshot` refers, if an evaluation is due."""
        if self._evaluation is None or step in self._done or not self._evaluation.is_due(step):
            return
        busy = self._under_way if self._next is None else self._next[0]
        if busy is not None:
            self._run.listener.warn(f"the evaluation of step {step} is left out: that of step {busy} is still under way")
            return
        self._next = (step, snapshot)
        task = asyncio.ensure_future(self._notify())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def run_loop(self) -> None:
        """Evaluate what is offered, for ever. Raise what is a bug."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._next is not None)
            assert self._next is not None
            (step, snapshot), self._next = self._next, None
            self._under_way = step
            try:
                with self._run.waits.ending():
                    metrics = await self._evaluate(step, snapshot)
            except asyncio.CancelledError:
                self._run.listener.warn(f"the evaluation of step {step} is cut off, as the run ends")
                raise
            except Exception as error:
                if kind_of(error) is FailureKind.BUG and not isinstance(error, TOLD):
                    raise
                self._run.listener.warn(f"the evaluation of step {step} is left out: {reason(error)}")
            else:
                self._run.listener.evaluated(step, metrics)
            finally:
                del snapshot
                self._under_way = None
            await self._notify()

    async def finished(self) -> None:
        """Wait until no evaluation is under way."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._next is None and self._under_way is None)

    async def _evaluate(self, step: int, snapshot: Any) -> dict[str, float]:
        assert self._evaluation is not None
        config = self._run.config
        worker = self._run.launch(self._run.components.evaluation_worker())
        try:
            await self._placed(worker)
            timeout_s = config.rollout.start_timeout_s
            await worker.call(RolloutWorker.start, timeout_s=timeout_s, waiting_for=f"{worker.name} to start")
            await self._run.call(worker, RolloutWorker.update, snapshot, waiting_for=f"{worker.name} to load version {step}")
            metrics = await self._evaluation.run(step, [worker], self._run.verifier)
            await worker.call(RolloutWorker.close, timeout_s=CLOSE_TIMEOUT_S, waiting_for=f"{worker.name} to close")
            return metrics
        finally:
            worker.kill()

    async def _placed(self, worker: Handle[RolloutWorker]) -> None:
        """Wait for the worker's resources. Raise Deadline: a cluster that is full of the run's own workers does not
        grow for an evaluation."""
        timeout_s = self._run.config.wait_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._run.placed(worker, "evaluate")
        except TimeoutError:
            raise Deadline(f"{worker.name} waited over {timeout_s:g} s for {worker.needs}") from None

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
