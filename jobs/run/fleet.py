"""The workers of one role, desired and observed: which to start, which leave, which may serve. A pure state machine.

    STARTING ──started──> STALE ──holds the newest weights──> SERVING ──left out──> DRAINING
        │                   │                                    │                     │
        └───────────────────┴───────────── lost ─────────────────┴──────── left ───────┴──> DEAD

`desired` may change at any time; `plan` says what brings the observed workers there. A lost worker is replaced after a
delay that doubles with each loss in a row. `RestartBudget` ends a run whose workers are lost over and over with nothing
done in between. Workers that are lost together, as with their node, count as one loss. No name is used twice. There is
no clock and no asyncio: the caller says what time it is, in seconds of any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jobs.config import SupervisionConfig
from jobs.processes.restart_budget import RestartBudget


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"  # its process, engine or model is being made
    STALE = "stale"  # ready, but without the newest weights: it is given no group
    SERVING = "serving"
    DRAINING = "draining"  # finishes what it has; is given nothing
    DEAD = "dead"


LIVING = (WorkerState.STARTING, WorkerState.STALE, WorkerState.SERVING)


@dataclass(slots=True)
class Member:
    """One worker, known from the decision to start it."""

    name: str
    number: int
    state: WorkerState
    since: float
    made_at: float
    version: int = -1
    detail: str = ""
    was_lost: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetPlan:
    """What to do now, and when to ask again even if nothing happens."""

    start: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    again_at: float | None = None


class Fleet:
    """The workers of a role and their states.

    fleet = Fleet("rollout", desired=2, config=SupervisionConfig())
    for name in fleet.plan(now).start: ...      # then fleet.started, fleet.holds and fleet.lost or fleet.left
    """

    def __init__(self, role: str, *, desired: int, config: SupervisionConfig) -> None:
        self.role = role
        self.desired = desired
        self.newest_version = 0
        self.budget = RestartBudget(role, config)
        self.members: dict[str, Member] = {}
        self._next_number = 0
        self._not_before = self._counted_at = float("-inf")
        self._ever_served = False

    def states(self, *states: WorkerState) -> list[Member]:
        """Return the members in one of these states, oldest first."""
        return [member for member in self.members.values() if member.state in states]

    @property
    def serving(self) -> list[Member]:
        return self.states(WorkerState.SERVING)

    def plan(self, now: float) -> FleetPlan:
        """Return what to start and what to drain. Missing workers are started, unless a loss is too recent. Of too many
        workers, the least ready and newest leave first."""
        living = self.states(*LIVING)
        missing = self.desired - len(living)
        if missing > 0:
            if now < self._not_before:
                return FleetPlan(again_at=self._not_before)
            return FleetPlan(start=tuple(self._new(now).name for _ in range(missing)))
        if not missing:
            return FleetPlan()
        rank = {state: place for place, state in enumerate(LIVING)}
        leaving = sorted(living, key=lambda member: (rank[member.state], -member.number))[:-missing]
        for member in leaving:
            self.drain(member.name, f"{self.desired} are wanted", now)
        return FleetPlan(drain=tuple(member.name for member in leaving))

    def drain(self, name: str, reason: str, now: float) -> bool:
        """Ask one worker to leave; return False where it leaves already. A replacement follows if one is then
        missing."""
        member = self.members.get(name)
        if member is None or member.state not in LIVING:  # one that has left may be forgotten before its process has ended
            return False
        self._enter(member, WorkerState.DRAINING, now, reason)
        return True

    def publish(self, version: int) -> None:
        """Make `version` the newest. A new worker needs it to serve; workers that serve load it in flight."""
        if version < self.newest_version:
            raise ValueError(f"version {version} is older than {self.newest_version}, which was published before")
        self.newest_version = version

    def started(self, name: str, now: float, *, version: int = 0) -> None:
        """Note that a worker is ready to load weights and holds `version`."""
        member = self.members[name]
        member.version = version
        if member.state is WorkerState.STARTING:
            self._enter(member, WorkerState.STALE, now)
            self._serve_if_current(member, now)

    def holds(self, name: str, version: int, now: float) -> None:
        """Note that a worker has loaded `version` and proved it."""
        member = self.members[name]
        member.version = version
        self._serve_if_current(member, now)

    def lost(self, name: str, error: Exception, reason: str, now: float) -> None:
        """Note that a worker is gone. Raise `error` when too many were lost in a row, or when none has ever served. A
        worker that was there when the last loss was counted is a part of that loss: a node may take many with it."""
        member = self.members[name]
        member.was_lost = True
        self._enter(member, WorkerState.DEAD, now, reason)
        self._forget_the_dead()
        if member.made_at <= self._counted_at:
            return
        self._not_before = float("inf")  # if this raises, no further worker is started
        if not self._ever_served:
            raise error
        self._not_before = now + self.budget.failed(error)
        self._counted_at = now

    def left(self, name: str, now: float) -> None:
        """Note that a worker has ended as it was asked to."""
        member = self.members[name]
        self._enter(member, WorkerState.DEAD, now, member.detail)
        self._forget_the_dead()

    def worked(self) -> None:
        """Note that a group was finished: earlier losses no longer count."""
        self.budget.worked()
        self._counted_at = float("-inf")

    def is_published_everywhere(self, version: int) -> bool:
        """Return whether no worker samples under a version older than `version`. True where none serves."""
        return all(member.version >= version for member in self.states(WorkerState.SERVING, WorkerState.DRAINING))

    def check_valid(self) -> None:
        """Raise AssertionError with the broken invariant."""
        for name, member in self.members.items():
            assert name == member.name, f"{member} is kept as {name}"
            assert member.number < self._next_number, f"{name} has a number that was not given out"
            if member.state in (WorkerState.STARTING,):
                assert member.version == -1, f"{name} holds a version before it has started"
            assert member.version <= self.newest_version, f"{name} holds version {member.version}, the newest is {self.newest_version}"
        assert len(self.states(WorkerState.DEAD)) <= KEPT_DEAD, "the dead are not forgotten"

    def _new(self, now: float) -> Member:
        number = self._next_number
        self._next_number += 1
        member = Member(name=f"{self.role}-{number}", number=number, state=WorkerState.STARTING, since=now, made_at=now)
        self.members[member.name] = member
        return member

    def _serve_if_current(self, member: Member, now: float) -> None:
        if member.state is WorkerState.STALE and member.version >= self.newest_version:
            self._enter(member, WorkerState.SERVING, now)
            self._ever_served = True

    def _enter(self, member: Member, state: WorkerState, now: float, detail: str = "") -> None:
        member.state, member.since, member.detail = state, now, detail

    def _forget_the_dead(self) -> None:
        dead = sorted(self.states(WorkerState.DEAD), key=lambda member: member.since)
        for member in dead[:-KEPT_DEAD]:
            del self.members[member.name]


KEPT_DEAD = 4
"""Dead workers that are still shown."""
