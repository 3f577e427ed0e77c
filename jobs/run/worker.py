"""One rollout worker's process, from its start to its end.

    dispatch ──> [inbox] ──> [lane] x max_sequences / K ──> sampled groups
                                ^ weights   │ progress
                             [load]      [watch]

| task  | consumes       | produces                       | waits for              | unblocked by          |
|-------|----------------|--------------------------------|------------------------|-----------------------|
| life  | a decision     | a worker that serves           | its process, weights   | the worker; drain     |
| lane  | its inbox      | sampled groups                 | a group; the engine    | dispatch; the worker  |
| load  | newest weights | a worker that holds them       | a publication          | the publish loop      |
| watch | -              | what is safe of its groups     | tokens, or a heartbeat | the worker            |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.rollout import RolloutWorker
from buffers.records import GroupRequest, GroupUsage, Heartbeat
from jobs.processes.failures import FailureKind, PublicationFailed, kind_of, reason
from jobs.processes.handles import CLOSE_TIMEOUT_S, DataLost, Deadline, Handle
from jobs.processes.restart_budget import RestartBudget
from jobs.run.books import DropReason
from jobs.run.components import Sampled
from jobs.run.fleet import WorkerState
from learners.weight_check import WeightsRefused

if TYPE_CHECKING:
    from jobs.run.rollouts import Rollouts


@dataclass(slots=True)
class GroupWork:
    """A group on its way to be sampled: how many workers it was given to, and what is safe of it."""

    request: GroupRequest
    tries: int = 0
    resume: Any = None
    """A reference to rows that `RolloutWorker.generate` continues from, with `resumed_tokens` tokens of the group."""
    resumed_tokens: int = 0
    given_to: str = ""
    given_at: float = 0.0
    """When it was last given to a worker (monotonic seconds)."""

    def __lt__(self, other: GroupWork) -> bool:
        return self.request.group_id < other.request.group_id


class Worker:
    """A worker of `rollouts`, which decides what it is given and when it leaves."""

    def __init__(self, name: str, handle: Handle[RolloutWorker], rollouts: Rollouts) -> None:
        self.name = name
        self.handle = handle
        self.groups: dict[int, GroupWork] = {}
        self.inbox: asyncio.Queue[GroupWork] = asyncio.Queue()
        """Those of its `groups` that no lane has taken up yet: never more than the lanes that are free."""
        self.beat: Heartbeat | None = None
        """What it said of itself last."""
        self._beat_at = 0.0
        self.node_id: str | None = None
        self._progress: Any = None  # a reference to what came with the last beat: rows of every group in it
        self._rollouts = rollouts
        self._run = rollouts.run
        self._supervision = rollouts.run.config.supervision
        self._refusals = RestartBudget("publication", self._supervision)  # weights that it would not take, in a row
        self._has_started = False
        self._draining = asyncio.Event()
        self._leave_by = 0.0

    def let_go(self, within_s: float) -> None:
        """Have it leave: it is given nothing more, and hands over after `within_s` seconds what it has not finished."""
        self._leave_by = time.monotonic() + within_s
        self._draining.set()

    def give(self, work: GroupWork) -> None:
        """Have it sample a group; it has a free lane."""
        self.groups[work.request.group_id] = work
        self.inbox.put_nowait(work)

    # ---- life ----

    async def live(self) -> None:
        """Start it, let it serve, close it. Return when its process is gone, lost or not; raise what is a bug."""
        rollouts, name = self._rollouts, self.name
        rollouts.note_state(name)
        try:
            await self._until_draining(self._start())
            if self.groups or not self._draining.is_set():  # it may have been given some as soon as it could serve
                await self._serve()
            rollouts.fleet.left(name, time.monotonic())
            self._run.books.worker_ended(name)
            await rollouts.note_change(name)  # nothing waits for it while it closes
            await self._close()
        except asyncio.CancelledError:
            await self._close()
            raise
        except BaseExceptionGroup as errors:
            self._end(errors)
        except Exception as error:
            self._end(ExceptionGroup("", [error]))
        finally:
            del rollouts.workers[name]
            await rollouts.note_change(name)

    async def _start(self) -> None:
        rollouts = self._rollouts
        self.node_id = await self._run.placed(self.handle, "start")
        timeout_s = self._run.config.rollout.start_timeout_s
        with self._run.waits.ending():
            await self.handle.call(RolloutWorker.start, timeout_s=timeout_s, waiting_for=f"{self.name} to start")
        self._has_started = True
        rollouts.fleet.started(self.name, time.monotonic())
        await rollouts.note_change(self.name)
        while rollouts.fleet.members[self.name].state is WorkerState.STALE:
            await self._load()

    async def _until_draining(self, starting: Coroutine[Any, Any, None]) -> None:
        """Run `starting`. A worker that is to leave before it has started does not finish it."""
        task, leaving = asyncio.ensure_future(starting), asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            leaving.cancel()

    async def _serve(self) -> None:
        """Serve until it is to leave and its lanes have ended. Raise where it is lost."""
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._load_loop()), tasks.create_task(self._watch_loop())]
            lanes = [tasks.create_task(self._lane()) for _ in range(self._rollouts.lanes)]
            await self._draining.wait()
            _, busy = await asyncio.wait(lanes, timeout=max(0.0, self._leave_by - time.monotonic()))
            while busy:  # again, for groups that it had not begun when it was asked
                await self._hand_over()
                _, busy = await asyncio.wait(busy, timeout=self._supervision.heartbeat_s)
            for task in others:
                task.cancel()

    def _end(self, errors: BaseExceptionGroup[BaseException]) -> None:
        """The worker is lost, or found a bug, or one problem too many that cannot be used. What counts is the first
        error that is not a consequence of another."""
        error = sorted(_leaves(errors), key=lambda error: kind_of(error) is FailureKind.INFRASTRUCTURE)[0]
        self.handle.kill()
        if not isinstance(error, Exception) or (kind_of(error) is not FailureKind.INFRASTRUCTURE and self._has_started):
            raise error
        self._run.books.worker_ended(self.name)
        self._run.faults.process_lost(self.name, error)
        for work in list(self.groups.values()):
            self._rollouts.give_back(work, *self._safe(work))
        self._rollouts.fleet.lost(self.name, error, reason(error), time.monotonic())

    def _safe(self, work: GroupWork) -> tuple[Any, int]:
        """Return what is safe of a group since the last beat, and its number of tokens; (None, 0) where nothing is. A
        beat from before the group was given to it tells of an earlier stay, whose tokens may be lost by now."""
        if self.beat is None or self._beat_at < work.given_at:
            return None, 0
        tokens = self.beat.tokens_by_group.get(work.request.group_id, 0)
        return (self._progress, tokens) if tokens else (None, 0)

    async def _close(self) -> None:
        """Let the engine end by itself before its process is ended."""
        try:
            await self.handle.call(RolloutWorker.close, timeout_s=CLOSE_TIMEOUT_S, waiting_for=f"{self.name} to close")
        except Exception as error:
            if kind_of(error) is FailureKind.BUG:
                raise
        finally:
            self.handle.kill()

    # ---- groups ----

    async def _lane(self) -> None:
        rollouts = self._rollouts
        while (work := await self._next_group()) is not None:
            try:
                sampled = await self._sample(work)
            except DataLost:  # what was sampled of it before went with a node; the worker is well
                self._take_back(work, None)
                work.resume, work.resumed_tokens = None, 0
                rollouts.give_back(work, None, 0)
            except Exception as error:
                if kind_of(error) is not FailureKind.DATA:
                    raise
                self._take_back(work, None)
                rollouts.observer.dropped(work, DropReason.DATA, error)
            else:
                self._take_back(work, sampled.usage)
                if sampled.usage.num_aborted and not self._draining.is_set():
                    rollouts.stalled(work, sampled, self.name)
                else:
                    rollouts.finished(work, sampled)

    async def _sample(self, work: GroupWork) -> Sampled:
        """Sample a group, however long it takes, for as long as it grows. Once it has not grown for `group_timeout_s`,
        have the worker give back what there is. Raise Deadline where it does not: it is lost then."""
        group_id, config = work.request.group_id, self._run.config
        limit_s = config.rollout.group_timeout_s
        longest_s = limit_s * (1 + config.sampling.max_response_tokens)  # one token in every `limit_s`
        sampling = asyncio.ensure_future(self._run.generate(self.handle, work.request, work.resume, timeout_s=longest_s))
        sampling.add_done_callback(lambda done: done.cancelled() or done.exception())  # what ends after a cancellation is of no interest
        try:
            tokens, grew_at = work.resumed_tokens, time.monotonic()
            while not (await asyncio.wait((sampling,), timeout=limit_s))[0]:
                before, tokens = tokens, max(tokens, self._safe(work)[1])
                if tokens > before:
                    grew_at = self._beat_at
                if self._beat_at - grew_at < limit_s:  # whether the worker still says something is seen by `_watch_loop`
                    continue
                await self._abort(group_id, "give back")
                await asyncio.wait((sampling,), timeout=self._supervision.hang_timeout_s)
                if not sampling.done():
                    raise Deadline(f"{self.name} has not given back group {group_id}, of which it samples nothing")
            return sampling.result()
        finally:
            sampling.cancel()

    async def _next_group(self) -> GroupWork | None:
        """Return None once the worker is to leave and has been given nothing more."""
        getting, leaving = asyncio.ensure_future(self.inbox.get()), asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((getting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            return None if self.inbox.empty() else self.inbox.get_nowait()  # both may come at once
        finally:
            getting.cancel()
            leaving.cancel()

    def _take_back(self, work: GroupWork, usage: GroupUsage | None) -> None:
        del self.groups[work.request.group_id]
        self._rollouts.has_room.set()
        self._run.books.returned(work.request, self.name, usage)

    async def _abort(self, group_id: int, verb: str) -> None:
        waiting_for, timeout_s = f"{self.name} to {verb} group {group_id}", self._supervision.hang_timeout_s
        await self.handle.call(RolloutWorker.abort, group_id, timeout_s=timeout_s, waiting_for=waiting_for)

    async def _hand_over(self) -> None:
        """Time is up: `generate` then returns what there is, and the lane puts it back into the queue."""
        for group_id in list(self.groups):
            await self._abort(group_id, "hand over")

    # ---- weights ----

    async def _load_loop(self) -> None:
        while True:
            await self._rollouts.until_stale(self.name)
            await self._load()

    async def _load(self) -> None:
        """Load the newest weights, or wait before they are offered again."""
        rollouts = self._rollouts
        version, weights = rollouts.newest
        waiting_for = f"{self.name} to load version {version}"
        try:
            update = await self._run.call(self.handle, RolloutWorker.update, weights, waiting_for=waiting_for)
        except (WeightsRefused, DataLost) as error:  # damaged on their way, or gone with a node: the worker is well
            held = rollouts.fleet.members[self.name].version
            rollouts.refused(self.name, version, held, error)
            times = self._refusals.in_a_row + 1
            failure = PublicationFailed(
                f"{self.name} refused weights {times} times in a row and still holds version {held}; the last time: {reason(error)}"
            )
            failure.__cause__ = error
            await asyncio.sleep(self._refusals.failed(failure))
            await rollouts.renew(version, weights)
            return
        del weights
        self._refusals.worked()
        rollouts.fleet.holds(self.name, update.version, time.monotonic())
        rollouts.observer.updated(update)
        await rollouts.note_change(self.name)

    # ---- signs of life ----

    async def _watch_loop(self) -> None:
        """Keep what is safe of the worker's groups. Raise Deadline where it is silent, or samples nothing, too long."""
        supervision, cursor, moved_at = self._supervision, 0, time.monotonic()
        while True:
            self._progress, beat = await self.handle.call(
                RolloutWorker.watch,
                cursor,
                supervision.heartbeat_s,
                returns=2,
                timeout_s=supervision.heartbeat_s + supervision.hang_timeout_s,
                waiting_for=f"a sign of life of {self.name}, which has groups {sorted(self.groups)[:5]}",
            )
            self.beat, self._beat_at = beat, time.monotonic()
            self._run.books.beat(self.name, beat)
            now = time.monotonic()
            if beat.sampled_tokens > cursor:
                self._run.waits.progressed()
            if beat.sampled_tokens > cursor or not self.groups:
                moved_at = now
            elif now - moved_at > supervision.hang_timeout_s:
                raise Deadline(
                    f"{self.name} has sampled no token of its groups {sorted(self.groups)[:5]} for {now - moved_at:.0f} s "
                    f"(supervision.hang_timeout_s = {supervision.hang_timeout_s:g})"
                )
            cursor = beat.sampled_tokens


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
