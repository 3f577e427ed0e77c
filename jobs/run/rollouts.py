"""The rollout workers of a run while it goes on: started, given groups and weights, watched, let go, replaced.

    requests ──[dispatch]──> [lane] x max_sequences / K ──> sampled groups          one life a worker, one task a lane
                               ^ weights  │ progress
                            [load]      [watch]

| task     | consumes        | produces                      | waits for                              | unblocked by               |
|----------|-----------------|-------------------------------|----------------------------------------|----------------------------|
| dispatch | requests        | a group in a worker's inbox   | a request; a free lane                 | admit; a lane, a joiner    |
| life     | a decision      | a worker that serves          | its process, engine, newest weights    | the worker; drain          |
| lane     | its inbox       | sampled groups                | a group; the engine                    | dispatch; the worker       |
| load     | newest weights  | a worker that holds them      | a publication                          | the publish loop           |
| watch    | -               | what is safe of its groups    | tokens, or the next heartbeat          | the worker                 |

A worker that is lost (its process died, it hangs, its engine failed) is killed. Its groups go back into the queue with
what the last watch brought of them, and go on from there on another worker: same ids, log-probs and versions. A worker
that is to leave is given nothing new, finishes what it can before its deadline and hands over the rest in the same way.
One that refuses weights (they are not what was published, or are gone) goes on under those it has; they are published
again, a few times, or the run ends."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from buffers.records import GroupRequest, GroupUsage, Heartbeat, WeightUpdate
from jobs.processes.failures import FailureKind, PublicationFailed, kind_of, reason
from jobs.processes.handles import DataLost, Deadline, Handle
from jobs.processes.restart_budget import RestartBudget
from jobs.run.components import Run, Sampled
from jobs.run.fleet import Fleet, FleetPlan, WorkerState
from learners.weight_check import WeightsRefused

CLOSE_TIMEOUT_S = 20.0
TIMEOUT, DATA, LOST = "timeout", "data", "lost"
"""Why a group is dropped before it was sampled: it took too long, its problem cannot be used, too many workers were
lost with it."""


@dataclass(slots=True)
class GroupWork:
    """A group on its way to be sampled: how many workers it was given to, and what is safe of it."""

    request: GroupRequest
    tries: int = 0
    resume: Any = None
    """A reference to rows that `RolloutWorker.generate` goes on from, with so many tokens of the group."""
    resumed_tokens: int = 0
    given_at: float = 0.0
    """When it was last given to a worker (monotonic seconds)."""

    def __lt__(self, other: GroupWork) -> bool:
        return self.request.group_id < other.request.group_id


@dataclass(slots=True)
class Worker:
    """One worker's process, from its start to its end."""

    name: str
    handle: Handle
    refusals: RestartBudget
    """Weights it would not take, in a row."""
    groups: dict[int, GroupWork] = field(default_factory=dict)
    progress: Any = None
    """A reference to what the last watch brought: rows of every group in it."""
    beat: Heartbeat | None = None
    """What it said of itself with these."""
    has_started: bool = False
    inbox: asyncio.Queue[GroupWork] = field(default_factory=asyncio.Queue)
    """Of its `groups`, those that no lane has taken up yet: never more than lanes that are free."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    leave_by: float | None = None
    node_id: str | None = None


class Observer(Protocol):
    """Who is told what happens: the controller."""

    def sampled(self, work: GroupWork, sampled: Sampled) -> None: ...
    def dropped(self, work: GroupWork, reason: str, error: Exception | None) -> None: ...
    def dispatched(self, work: GroupWork, worker: str) -> None: ...
    def returned(self, work: GroupWork, worker: str, usage: GroupUsage | None) -> None:
        """The worker is done with the group; without `usage` there is nothing of it."""
        ...

    def beat(self, worker: str, beat: Heartbeat) -> None: ...
    def updated(self, update: WeightUpdate) -> None: ...
    def refused(self, worker: str, version: int, held: int, error: Exception) -> None:
        """It would not take `version` and goes on under the one it holds."""
        ...

    def changed(self, worker: str) -> None:
        """A worker came into another state."""
        ...

    def lost(self, worker: str, groups: list[int], error: Exception) -> None: ...
    def ended(self, worker: str) -> None:
        """Its process is gone, or will not be listened to any more."""
        ...


class Rollouts:
    """rollouts = Rollouts(run, observer)

    rollouts.submit(request)                 # from the admit loop
    await rollouts.run()                     # never returns; raises when workers are lost over and over
    await rollouts.publish(version, snapshot)
    await rollouts.published(version)
    await rollouts.scale(3)
    """

    def __init__(self, run: Run, observer: Observer, *, desired: int) -> None:
        self._run = run
        self._observer = observer
        self._supervision = run.config.supervision
        isolated = run.config.isolates_groups  # then a group is begun again as a whole, as it was begun the first time
        self._can_resume = not isolated and run.config.bonus.feature_source != "policy"  # whose old tokens' states nobody else knows
        self._lanes = 1 if isolated else max(1, run.config.rollout.max_sequences // run.config.responses_per_prompt)
        self.fleet = Fleet("rollout", desired=desired, config=run.config.supervision)
        self.workers: dict[str, Worker] = {}
        self.requests: asyncio.PriorityQueue[GroupWork] = asyncio.PriorityQueue(maxsize=run.admission.capacity)
        self._newest: tuple[int, Any] | None = None
        self._renewing = asyncio.Lock()
        self._room = asyncio.Event()  # some worker may have a free lane
        self._changed = asyncio.Condition()

    @property
    def desired(self) -> int:
        return self.fleet.desired

    async def scale(self, desired: int) -> None:
        """From now on so many workers are wanted."""
        self.fleet.desired = desired
        await self._note_change()

    async def drain(self, name: str, why: str, *, within_s: float) -> None:
        """Have one worker leave within so many seconds; another takes its place."""
        if self.fleet.drain(name, why, time.monotonic()):
            self._let_go(name, within_s)
            await self._note_change(name)

    def submit(self, request: GroupRequest) -> None:
        """Never waits: there are no more requests than slots."""
        self.requests.put_nowait(GroupWork(request=request))

    async def publish(self, version: int, snapshot: Any) -> None:
        """These are the newest weights. Whoever serves loads them between two tokens, whoever joins before it
        serves."""
        self.fleet.publish(version)
        self._newest = (version, snapshot)
        await self._note_change()

    async def published(self, version: int) -> None:
        """Until nobody samples under an older version than `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.fleet.is_published_everywhere(version))

    async def run(self) -> None:
        """Bring the workers to the desired number for ever. On the way out every worker is closed."""
        try:
            async with asyncio.TaskGroup() as lives:
                lives.create_task(self._dispatch_loop())
                while True:
                    plan = await self._next_plan()
                    for name in plan.start:
                        handle = self._run.factory.rollout_worker(self.fleet.members[name].number)
                        self.workers[name] = Worker(name=name, handle=handle, refusals=RestartBudget("publication", self._supervision))
                        lives.create_task(self._life(self.workers[name]), name=name)
                    for name in plan.drain:
                        self._let_go(name, self._supervision.drain_timeout_s)
                        await self._note_change(name)
        finally:
            for worker in self.workers.values():
                worker.handle.kill()

    def lane_idle_share(self) -> float:
        """Share of the lanes of serving workers that wait for a request now."""
        serving = self._serving()
        return 1.0 - sum(len(worker.groups) for worker in serving) / (len(serving) * self._lanes) if serving else 0.0

    def longest_under_way(self, num: int = 3) -> list[str]:
        """The groups that workers have had for longest, in words."""
        under_way = [(work, worker.name) for worker in self.workers.values() for work in worker.groups.values()]
        longest, now = sorted(under_way, key=lambda pair: pair[0].given_at)[:num], time.monotonic()
        return [
            f"group {work.request.group_id} ({work.request.problem.problem_id}) on {name} for {now - work.given_at:.0f} s"
            for work, name in longest
        ]

    # ---- who gets what ----

    async def _dispatch_loop(self) -> None:
        """The lowest id to the worker with the fewest groups."""
        while True:
            work = await self.requests.get()
            while not (free := [worker for worker in self._serving() if len(worker.groups) < self._lanes]):
                self._room.clear()
                await self._room.wait()
                self.requests.put_nowait(work)  # a lower one may have come back meanwhile
                work = self.requests.get_nowait()
            worker = min(free, key=lambda worker: len(worker.groups))
            work.tries += 1
            work.given_at = time.monotonic()
            worker.groups[work.request.group_id] = work
            self._observer.dispatched(work, worker.name)
            worker.inbox.put_nowait(work)

    def _serving(self) -> list[Worker]:
        return [self.workers[member.name] for member in self.fleet.serving if member.name in self.workers]

    # ---- one worker's life ----

    async def _life(self, worker: Worker) -> None:
        name = worker.name
        self._observer.changed(name)
        try:
            await self._until_draining(worker, self._start(worker))
            if worker.groups or not worker.draining.is_set():  # it may have been given some as soon as it could serve
                await self._serve(worker)
            self.fleet.left(name, time.monotonic())
            self._observer.ended(name)
            await self._note_change(name)  # nobody waits for it while it closes
            await self._close(worker)
        except asyncio.CancelledError:
            await self._close(worker)
            raise
        except BaseExceptionGroup as errors:
            self._end(worker, errors)
        except Exception as error:
            self._end(worker, ExceptionGroup("", [error]))
        finally:
            del self.workers[name]
            await self._note_change(name)

    def _end(self, worker: Worker, errors: BaseExceptionGroup[BaseException]) -> None:
        """The worker is lost, or found a bug. The first error that is not its consequence is the one that counts."""
        found = sorted(_leaves(errors), key=lambda error: kind_of(error) is FailureKind.INFRASTRUCTURE)
        error = found[0]
        worker.handle.kill()
        if not isinstance(error, Exception) or (kind_of(error) is FailureKind.BUG and worker.has_started):
            raise error
        groups = list(worker.groups.values())
        self._observer.ended(worker.name)
        self._observer.lost(worker.name, [work.request.group_id for work in groups], error)
        for work in groups:
            self._give_back(work, worker)
        self.fleet.lost(worker.name, error, reason(error), time.monotonic())

    async def _start(self, worker: Worker) -> None:
        worker.node_id = await self._run.placed(worker.handle, "start")
        timeout_s = self._run.config.rollout.start_timeout_s
        with self._run.waits.ending():
            await worker.handle.call("start", timeout_s=timeout_s, waiting_for=f"{worker.name} to start")
        worker.has_started = True
        self.fleet.started(worker.name, time.monotonic())
        await self._note_change(worker.name)
        while self.fleet.members[worker.name].state is WorkerState.STALE:
            await self._load(worker)

    async def _serve(self, worker: Worker) -> None:
        """Until it is to leave and its lanes have come to an end. Raises where it is lost."""
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._load_loop(worker)), tasks.create_task(self._watch_loop(worker))]
            lanes = [tasks.create_task(self._lane(worker)) for _ in range(self._lanes)]
            await worker.draining.wait()
            assert worker.leave_by is not None
            _, busy = await asyncio.wait(lanes, timeout=max(0.0, worker.leave_by - time.monotonic()))
            while busy:  # again, for what it had not begun when it was asked
                await self._hand_over(worker)
                _, busy = await asyncio.wait(busy, timeout=self._supervision.heartbeat_s)
            for task in others:
                task.cancel()

    async def _lane(self, worker: Worker) -> None:
        """One group at a time, until the worker is to leave."""
        while (work := await self._next_group(worker)) is not None:
            group_id = work.request.group_id
            try:
                sampled = await self._run.generate(worker.handle, work.request, work.resume)
            except DataLost:  # what was sampled of it before went with a node; the worker is well
                self._take_back(work, worker, None)
                work.resume, work.resumed_tokens = None, 0
                self._give_back(work, None)
            except Deadline as error:  # dropped if it was the group: a worker that cannot let go of it is lost, and the group is not
                await worker.handle.call(
                    "abort", group_id, timeout_s=self._supervision.hang_timeout_s, waiting_for=f"{worker.name} to abort group {group_id}"
                )
                self._take_back(work, worker, None)
                self._observer.dropped(work, TIMEOUT, error)
            except Exception as error:
                if kind_of(error) is not FailureKind.DATA:
                    raise
                self._take_back(work, worker, None)
                self._observer.dropped(work, DATA, error)
            else:
                self._take_back(work, worker, sampled.usage)
                if sampled.usage.num_aborted:
                    if self._can_resume:
                        work.resume, work.resumed_tokens = sampled.batch, sampled.usage.response_tokens
                    work.tries -= 1  # it was taken away from a worker that was well
                    self.requests.put_nowait(work)
                else:
                    self.fleet.worked()
                    self._observer.sampled(work, sampled)

    def _take_back(self, work: GroupWork, worker: Worker, usage: GroupUsage | None) -> None:
        """The worker is done with the group."""
        del worker.groups[work.request.group_id]
        self._room.set()
        self._observer.returned(work, worker.name, usage)

    async def _next_group(self, worker: Worker) -> GroupWork | None:
        """None once the worker is to leave and has been given nothing more."""
        getting, leaving = asyncio.ensure_future(worker.inbox.get()), asyncio.ensure_future(worker.draining.wait())
        try:
            await asyncio.wait((getting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            return None if worker.inbox.empty() else worker.inbox.get_nowait()  # both may come at once
        finally:
            getting.cancel()
            leaving.cancel()

    async def _load_loop(self, worker: Worker) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.fleet.members[worker.name].version < self.fleet.newest_version)
            await self._load(worker)

    async def _load(self, worker: Worker) -> None:
        """The newest weights into one worker, or a delay before they are offered again. Raises PublicationFailed where
        it takes none."""
        assert self._newest is not None, f"{worker.name} is stale, but nothing was published"
        version, weights = self._newest
        try:
            timeout_s, waiting_for = self._run.config.wait_timeout_s, f"{worker.name} to load version {version}"
            with self._run.waits.ending():
                update: WeightUpdate = await worker.handle.call("update", weights, timeout_s=timeout_s, waiting_for=waiting_for)
        except (WeightsRefused, DataLost) as error:  # damaged on their way, or gone with a node: the worker is well
            held = self.fleet.members[worker.name].version
            self._observer.refused(worker.name, version, held, error)
            times = worker.refusals.in_a_row + 1
            failure = PublicationFailed(
                f"{worker.name} refused weights {times} times in a row and still holds version {held}; the last time: {reason(error)}"
            )
            failure.__cause__ = error
            await asyncio.sleep(worker.refusals.failed(failure))
            await self._renew(version, weights)
            return
        del weights
        worker.refusals.worked()
        self.fleet.holds(worker.name, update.version, time.monotonic())
        self._observer.updated(update)
        await self._note_change(worker.name)

    async def _renew(self, version: int, refused: Any) -> None:
        """Have the learner hand out its weights anew, unless somebody has. They may be newer by now; where that must
        not be, those that were refused are offered again."""
        async with self._renewing:
            if self._newest is None or self._newest[1] is not refused:
                return
            weights, newest = await self._run.weights()
            if newest == version or not self._run.config.deterministic:
                await self.publish(newest, weights)

    async def _watch_loop(self, worker: Worker) -> None:
        """Keeps what is safe of the worker's groups. Raises Deadline where it says nothing, or samples nothing, for too
        long."""
        supervision, cursor, moved_at = self._supervision, 0, time.monotonic()
        while True:
            rows, beat = await worker.handle.call(
                "watch",
                cursor,
                supervision.heartbeat_s,
                returns=2,
                timeout_s=supervision.heartbeat_s + supervision.hang_timeout_s,
                waiting_for=f"a sign of life of {worker.name}, which has groups {sorted(worker.groups)[:5]}",
            )
            worker.progress, worker.beat = rows, beat
            self._observer.beat(worker.name, beat)
            now = time.monotonic()
            if beat.sampled_tokens > cursor or not worker.groups:
                moved_at = now
            elif now - moved_at > supervision.hang_timeout_s:
                raise Deadline(
                    f"{worker.name} has sampled no token of its groups {sorted(worker.groups)[:5]} for {now - moved_at:.0f} s "
                    f"(supervision.hang_timeout_s = {supervision.hang_timeout_s:g})"
                )
            cursor = beat.sampled_tokens

    async def _hand_over(self, worker: Worker) -> None:
        """Time is up: `generate` then returns what there is, and the lane puts it back into the queue."""
        for group_id in list(worker.groups):
            await worker.handle.call(
                "abort", group_id, timeout_s=self._supervision.hang_timeout_s, waiting_for=f"{worker.name} to hand over group {group_id}"
            )

    def _give_back(self, work: GroupWork, worker: Worker | None) -> None:
        """To another worker, from the tokens that are safe; dropped where too many workers were lost with it."""
        if work.tries >= self._supervision.max_group_tries:
            self._observer.dropped(work, LOST, None)
            return
        if self._can_resume and worker is not None and worker.beat is not None and work.request.group_id in worker.beat.tokens_by_group:
            work.resume, work.resumed_tokens = worker.progress, worker.beat.tokens_by_group[work.request.group_id]
        self.requests.put_nowait(work)

    async def _until_draining(self, worker: Worker, starting: Any) -> None:
        """Run `starting`; a worker that is to leave before it has started does not finish it."""
        task, leaving = asyncio.ensure_future(starting), asyncio.ensure_future(worker.draining.wait())
        try:
            await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            leaving.cancel()

    def _let_go(self, name: str, within_s: float) -> None:
        worker = self.workers.get(name)
        if worker is not None:
            worker.leave_by = time.monotonic() + within_s
            worker.draining.set()

    async def _close(self, worker: Worker) -> None:
        """Let the engine end by itself before its process is ended."""
        try:
            await worker.handle.call("close", timeout_s=CLOSE_TIMEOUT_S, waiting_for=f"{worker.name} to close")
        except Exception as error:
            if kind_of(error) is FailureKind.BUG:
                raise
        finally:
            worker.handle.kill()

    async def _next_plan(self) -> FleetPlan:
        """Until there is something to do."""
        async with self._changed:
            while True:
                plan = self.fleet.plan(time.monotonic())
                if plan.start or plan.drain:
                    return plan
                delay_s = None if plan.again_at is None else max(0.0, plan.again_at - time.monotonic())
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._changed.wait()

    async def _note_change(self, name: str | None = None) -> None:
        self._room.set()
        if name is not None:
            self._observer.changed(name)
        async with self._changed:
            self._changed.notify_all()


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
