"""The rollout workers of a run: started, given groups and weights, let go, replaced.

    requests ──[dispatch]──> a worker's inbox          one task a worker, see `jobs.run.worker`

A worker that is lost (its process died, it hangs, its engine failed) is killed. Its groups return to the queue with
what the last watch brought of them, and continue from there on another worker: same ids, log-probs and versions. A
worker that is to leave is given nothing new, finishes what it can before its deadline, and hands over the rest in the
same way. A group may take as long as it grows; one that does not is handed over, too. A worker that refuses weights
(they are not what was published, or are gone) continues under those it has. They are published again, a few times, or
the run ends."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, Protocol

from buffers.records import GroupRequest, WeightUpdate
from jobs.directory.events import EventKind
from jobs.processes.failures import reason
from jobs.processes.handles import Deadline
from jobs.run.books import DropReason
from jobs.run.components import Run, Sampled
from jobs.run.fleet import Fleet, FleetPlan, WorkerState
from jobs.run.worker import GroupWork, Worker


class Observer(Protocol):
    """The controller, which is told what becomes of groups and weights."""

    def sampled(self, sampled: Sampled) -> None: ...
    def dropped(self, work: GroupWork, reason: DropReason, error: Exception | None) -> None: ...
    def updated(self, update: WeightUpdate) -> None: ...


class Rollouts:
    """The workers, and the queue of requests before them.

    rollouts = Rollouts(run, observer, desired=2)
    rollouts.submit(request)                 # from the admit loop
    await rollouts.run_loop()                # never returns; raises when workers are lost over and over
    await rollouts.publish(version, snapshot)
    await rollouts.published(version)
    await rollouts.scale(3)
    """

    def __init__(self, run: Run, observer: Observer, *, desired: int) -> None:
        self.run = run
        self.observer = observer
        config = run.config
        isolated = config.isolates_groups  # then a group that is begun again is begun as a whole, as it was the first time
        from_policy = config.feature_source == "policy"  # the old tokens' states are known nowhere else
        self._can_resume = not isolated and not from_policy
        self.lanes = 1 if isolated else max(1, config.rollout.max_sequences // config.responses_per_prompt)
        """Groups that a worker samples at once."""
        self.fleet = Fleet("rollout", desired=desired, config=config.supervision)
        self.workers: dict[str, Worker] = {}
        self.requests: asyncio.PriorityQueue[GroupWork] = asyncio.PriorityQueue(maxsize=run.books.admission.capacity)
        self.num_refused = 0
        self.has_room = asyncio.Event()
        """Set when some worker may have a free lane."""
        self._newest: tuple[int, Any] | None = None
        self._renewing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._offered = asyncio.Condition()  # that there are newer weights; apart, or every load would wake every worker
        self._noted_states: dict[str, WorkerState] = {}

    # ---- what the controller asks for ----

    @property
    def desired(self) -> int:
        return self.fleet.desired

    async def scale(self, desired: int) -> None:
        """Change the number of workers that are wanted."""
        self.fleet.desired = desired
        await self.note_change()

    async def drain(self, name: str, why: str, *, within_s: float) -> None:
        """Have one worker leave within `within_s` seconds; another takes its place."""
        if self.fleet.drain(name, why, time.monotonic()):
            self.workers[name].let_go(within_s)
            await self.note_change(name)

    def submit(self, request: GroupRequest) -> None:
        """Queue a group. Never waits: there are no more requests than slots."""
        self.requests.put_nowait(GroupWork(request=request))

    async def publish(self, version: int, snapshot: Any) -> None:
        """Make these the newest weights. A worker that serves loads them between two tokens, a new one before it
        serves. Nothing is done where newer ones were published, in place of some that were refused."""
        if version < self.fleet.newest_version:
            return
        self.fleet.publish(version)
        self._newest = (version, snapshot)
        async with self._offered:
            self._offered.notify_all()
        await self.note_change()

    async def published(self, version: int) -> None:
        """Wait until no worker samples under a version older than `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.fleet.is_published_everywhere(version))

    async def run_loop(self) -> None:
        """Bring the workers to the desired number, for ever. On the way out every worker is closed."""
        try:
            async with asyncio.TaskGroup() as lives:
                lives.create_task(self._dispatch_loop())
                while True:
                    plan = await self._next_plan()
                    for name in plan.start:
                        component = self.run.components.rollout_worker(self.fleet.members[name].number)
                        self.workers[name] = Worker(name, self.run.launch(component), self)
                        lives.create_task(self.workers[name].live(), name=name)
                    for name in plan.drain:
                        if name in self.workers:
                            self.workers[name].let_go(self.run.config.supervision.drain_timeout_s)
                        await self.note_change(name)
        finally:
            for worker in self.workers.values():
                worker.handle.kill()

    async def _next_plan(self) -> FleetPlan:
        async with self._changed:
            while True:
                plan = self.fleet.plan(time.monotonic())
                if plan.start or plan.drain:
                    return plan
                delay_s = None if plan.again_at is None else max(0.0, plan.again_at - time.monotonic())
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._changed.wait()

    def lane_idle_share(self) -> float:
        """Return the share of the lanes of serving workers that have no group now."""
        serving = self._serving()
        return 1.0 - sum(len(worker.groups) for worker in serving) / (len(serving) * self.lanes) if serving else 0.0

    def longest_under_way(self, num: int = 3) -> list[str]:
        """Return the groups that workers have had for longest, in words."""
        under_way = [(work, worker.name) for worker in self.workers.values() for work in worker.groups.values()]
        longest, now = sorted(under_way, key=lambda pair: pair[0].given_at)[:num], time.monotonic()
        return [
            f"group {work.request.group_id} ({work.request.problem.problem_id}) on {name} for {now - work.given_at:.0f} s"
            for work, name in longest
        ]

    # ---- which worker gets what ----

    async def _dispatch_loop(self) -> None:
        """Give the lowest id to the worker with the fewest groups; a worker that had it before is the last choice."""
        while True:
            work = await self.requests.get()
            while not (free := [worker for worker in self._serving() if len(worker.groups) < self.lanes]):
                self.has_room.clear()
                await self.has_room.wait()
                self.requests.put_nowait(work)  # a lower one may have come back meanwhile
                work = self.requests.get_nowait()
            worker = min(free, key=lambda worker: (worker.name == work.given_to, len(worker.groups)))
            work.tries += 1
            work.given_to = worker.name
            work.given_at = time.monotonic()
            self.run.books.dispatched(work.request, worker.name, tries=work.tries, resumed_tokens=work.resumed_tokens)
            worker.give(work)

    def _serving(self) -> list[Worker]:
        return [self.workers[member.name] for member in self.fleet.serving if member.name in self.workers]

    # ---- what workers tell ----

    def finished(self, work: GroupWork, sampled: Sampled) -> None:
        """A worker has given a group back: whole, or what it had when it was to leave."""
        if not sampled.usage.num_aborted:
            self.fleet.worked()
            self.observer.sampled(sampled)
            return
        work.tries -= 1  # it was taken away from a worker that was well
        self._go_on(work, sampled.batch, sampled.usage.response_tokens)

    def stalled(self, work: GroupWork, sampled: Sampled, worker: str) -> None:
        """A worker has given back a group of which it has sampled nothing for too long. The worker stays. Tries are
        counted from the last worker that sampled some of it."""
        group_id, limit_s = work.request.group_id, self.run.config.rollout.group_timeout_s
        error = Deadline(f"{worker} has sampled nothing of group {group_id} for {limit_s:g} s (rollout.group_timeout_s)")
        if self._can_resume and sampled.usage.response_tokens > work.resumed_tokens:  # else it begins again, and gets no further
            work.tries = 0
        if work.tries >= self.run.config.supervision.max_group_tries:
            self.observer.dropped(work, DropReason.TIMEOUT, error)
            return
        self.run.faults.note("group", str(group_id), error)
        self._go_on(work, sampled.batch, sampled.usage.response_tokens)

    def give_back(self, work: GroupWork, progress: Any, tokens: int) -> None:
        """Give a group to another worker, from the tokens that are safe (`progress` refers to them). Drop it where too
        many workers were lost with it."""
        if work.tries >= self.run.config.supervision.max_group_tries:
            self.observer.dropped(work, DropReason.LOST, None)
            return
        self._go_on(work, progress, tokens)

    def _go_on(self, work: GroupWork, rows: Any, tokens: int) -> None:
        """Have a worker continue the group after `tokens` tokens of it in `rows` (a reference)."""
        if self._can_resume and tokens >= max(1, work.resumed_tokens):
            work.resume, work.resumed_tokens = rows, tokens
        self.requests.put_nowait(work)

    def refused(self, worker: str, version: int, held: int, error: Exception) -> None:
        """A worker would not take `version`, and continues under the version that it holds."""
        self.num_refused += 1
        self.run.faults.note("publication", worker, error)
        consequence = f"continues under version {held}; it is published again"
        self.run.listener.warn(f"{worker} refuses version {version} and {consequence}: {reason(error)}")

    @property
    def newest(self) -> tuple[int, Any]:
        """The newest version and its weights (a reference)."""
        assert self._newest is not None, "nothing was published"
        return self._newest

    async def until_stale(self, name: str) -> None:
        """Wait until there are newer weights than the worker holds."""
        async with self._offered:
            await self._offered.wait_for(lambda: self.fleet.members[name].version < self.fleet.newest_version)

    async def renew(self, version: int, refused: Any) -> None:
        """Have the learner hand out its weights again, unless that is done already. They may be newer by now; where
        they must not be, those that were refused are offered again."""
        async with self._renewing:
            if self._newest is None or self._newest[1] is not refused:
                return
            weights, newest = await asyncio.shield(self.run.weights())  # the caller may leave; the learner's call goes on
            if newest == version or not self.run.config.deterministic:
                await self.publish(newest, weights)

    async def note_change(self, name: str | None = None) -> None:
        """Wake what waits for the workers. `name`: the worker that came into another state."""
        self.has_room.set()
        if name is not None:
            self.note_state(name)
        async with self._changed:
            self._changed.notify_all()

    def note_state(self, name: str) -> None:
        """Write down a worker's state where it is another one."""
        members = self.fleet.members
        member = members.get(name)
        if member is None or self._noted_states.get(name) == member.state:
            return
        self._noted_states = {known: state for known, state in self._noted_states.items() if known in members}
        self._noted_states[name] = member.state
        self.run.listener.note(EventKind.WORKER, worker=name, role="rollout", state=member.state.value, reason=member.detail)
