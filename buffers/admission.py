"""Admission: how many groups may be on their way from prompt to live gradient, and the fate of each.

    next_problem ──admit──> in flight ──trained──> trained, slot held ──published──> released
                    ^           ├─ filter ──> gone: another problem takes the slot
                    │           │ drop
                    └─ waiting <┴─> quarantined, after max_attempts failures

A slot that `drop` gives back is free once the newest version trained is live. Sooner, its problem would be admitted
under an older version than others are, and so have less time.

At most `(max_policy_lag + 1) * prompts_per_step` groups are in flight, or trained but not yet live. With
`max_policy_lag` 0 that is one step's worth: nothing is sampled for the next step before the weights of this one are
live. That is the synchronous trainer. This is a pure state machine without clock, asyncio or threads. "In flight" means
between the prompt and the gradient, replay included."""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from buffers.ledger import Ledger, Quarantined, WaitingProblem, problem_from_json, problem_to_json, request_from_json, request_to_json
from buffers.records import GroupRequest, Problem

FILTERED = "filtered"  # the reason under which `Admission.filter` counts the groups it takes out
RESTORED = "restored"  # the reason under which a restore counts groups that were in flight at the checkpoint but are not in replay


class Admission:
    """Hands out slots and accounts for every group. A method that raises has changed nothing.

    admission = Admission(prompts_per_step=8, group_size=8, max_policy_lag=2)
    while admission.free_slots:
        request = admission.admit(lambda: next(problems))
        start_sampling(request)

    admission.drop(group_id, "lost")  # whenever a group will not be trained on; its problem comes back first
    admission.trained(batch_group_ids, version=5)  # the gradient that makes version 5 used these groups
    admission.published(5)  # every engine serves version 5: their slots are free"""

    def __init__(self, *, prompts_per_step: int, group_size: int, max_policy_lag: int, max_attempts: int = 5) -> None:
        if min(prompts_per_step, group_size, max_attempts) < 1 or max_policy_lag < 0:
            raise ValueError(f"{prompts_per_step=}, {group_size=} and {max_attempts=} must be at least 1, {max_policy_lag=} at least 0")
        self._capacity = (max_policy_lag + 1) * prompts_per_step
        self._group_size = group_size
        self._max_attempts = max_attempts
        self._live_version = 0
        self._next_id = 0
        self._in_flight: dict[int, GroupRequest] = {}
        self._trained: dict[int, int] = {}  # group id -> the version its gradient makes
        self._kept_back: Counter[int] = Counter()  # version -> slots of dropped groups that are free once it is live
        self._waiting: deque[WaitingProblem] = deque()
        self._quarantined: list[Quarantined] = []
        self._given_up: set[tuple[str, str]] = set()  # tasks and ids of their problems
        self._released = 0
        self._readmitted = 0
        self._filtered = 0
        self._num_admitted_live = 0  # groups admitted under the live version
        self._dropped: Counter[str] = Counter()

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def free_slots(self) -> int:
        return self._capacity - len(self._in_flight) - len(self._trained) - self._kept_back.total()

    @property
    def live_version(self) -> int:
        """The newest version that every engine serves."""
        return self._live_version

    @property
    def in_flight(self) -> tuple[GroupRequest, ...]:
        """The requests not yet trained on, oldest first. A worker that replaces a dead one is given these."""
        return tuple(self._in_flight[group_id] for group_id in sorted(self._in_flight))

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        return tuple(self._quarantined)

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            admitted=self._next_id,
            in_flight=len(self._in_flight),
            trained=len(self._trained),
            released=self._released,
            dropped=self._dropped.total(),
            dropped_by_reason=dict(self._dropped),
            readmitted=self._readmitted,
            waiting=len(self._waiting),
            quarantined=len(self._quarantined),
            filtered=self._filtered,
        )

    def admit(self, next_problem: Callable[[], Problem]) -> GroupRequest:
        """Take a slot for the longest waiting problem, or `next_problem()`. Raises RuntimeError without a free slot."""
        if self.free_slots < 1:
            raise RuntimeError(f"all {self._capacity} slots are taken: wait until free_slots > 0")
        waiting = self._waiting[0] if self._waiting else None
        request = GroupRequest(
            group_id=self._next_id,
            problem=waiting.problem if waiting else next_problem(),
            num_responses=self._group_size,
            admitted_version=self._live_version,
            attempt=waiting.attempt if waiting else 0,
            place=self._num_admitted_live,
        )
        if waiting:
            self._waiting.popleft()
            self._readmitted += 1
        self._in_flight[request.group_id] = request
        self._next_id += 1
        self._num_admitted_live += 1
        return request

    def is_quarantined(self, problem: Problem) -> bool:
        """Return whether the problem was given up, so that no further group of it should be admitted."""
        return (problem.task, problem.problem_id) in self._given_up

    def drop(self, group_id: int, reason: str, *, is_failure: bool = True) -> Quarantined | None:
        """Give the slot back. The problem waits for another try, or is quarantined after `max_attempts` failures. A
        problem that is quarantined for the first time is returned."""
        self._require_in_flight([group_id])
        request = self._in_flight.pop(group_id)
        self._dropped[reason] += 1
        newest = max(self._trained.values(), default=self._live_version)
        if newest > self._live_version:
            self._kept_back[newest] += 1
        attempts = request.attempt + is_failure
        was_given_up = self.is_quarantined(request.problem)  # another group of it was, in another epoch
        if attempts < self._max_attempts and not was_given_up:
            self._waiting.append(WaitingProblem(problem=request.problem, attempt=attempts))
            return None
        given_up = Quarantined(problem=request.problem, group_id=group_id, attempts=attempts, reason=reason)
        self._quarantined.append(given_up)
        self._given_up.add((request.problem.task, request.problem.problem_id))
        return None if was_given_up else given_up

    def filter(self, group_id: int) -> None:
        """Give the slot back for another problem. This one has had its turn."""
        self._require_in_flight([group_id])
        del self._in_flight[group_id]
        self._dropped[FILTERED] += 1
        self._filtered += 1

    def trained(self, group_ids: Iterable[int], *, version: int) -> None:
        """Record that the gradient of `version` used these groups. Their slots stay held until it is published. Raises
        ValueError for a group that is not in flight, and for a version that is live already."""
        ids = [int(group_id) for group_id in group_ids]
        self._require_in_flight(ids)
        if version <= self._live_version:
            raise ValueError(f"a gradient cannot make version {version}: version {self._live_version} is live already")
        for group_id in ids:
            del self._in_flight[group_id]
            self._trained[group_id] = version

    def published(self, version: int) -> None:
        """Record that every engine serves `version`, and free the slots of all groups trained into it or earlier."""
        if version < self._live_version:
            raise ValueError(f"version {version} cannot be published: version {self._live_version} is live already")
        if version > self._live_version:
            self._num_admitted_live = 0
        self._live_version = version
        done = [group_id for group_id, made in self._trained.items() if made <= version]
        for group_id in done:
            del self._trained[group_id]
        for made in [made for made in self._kept_back if made <= version]:
            del self._kept_back[made]
        self._released += len(done)

    def check_valid(self) -> None:
        """Raise AssertionError with the broken invariant."""
        ledger = self.ledger
        ledger.check_sums()
        assert self.free_slots >= 0, f"{ledger.outstanding} groups outstanding, {self._kept_back} kept back, capacity {self._capacity}"
        assert all(made > self._live_version for made in self._kept_back), f"{self._kept_back}: {self._live_version} is live"
        both = self._in_flight.keys() & self._trained.keys()
        assert not both, f"groups {sorted(both)} are both in flight and trained"
        assert all(made > self._live_version for made in self._trained.values()), "a group trained into a live version holds a slot"
        for group_id, request in self._in_flight.items():
            assert group_id == request.group_id < self._next_id, f"group {group_id} is kept as {request}"
            assert request.admitted_version <= self._live_version, f"group {group_id} was admitted under a version not live yet"
        tries = [request.attempt for request in self._in_flight.values()] + [waiting.attempt for waiting in self._waiting]
        assert all(attempt < self._max_attempts for attempt in tries), f"a problem was tried more than {self._max_attempts} times"

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in values that JSON can hold."""
        return {
            "live_version": self._live_version,
            "next_id": self._next_id,
            "in_flight": [request_to_json(request) for request in self.in_flight],
            "trained": [[group_id, made] for group_id, made in sorted(self._trained.items())],
            "waiting": [{"problem": problem_to_json(w.problem), "attempt": w.attempt} for w in self._waiting],
            "quarantined": [
                {"problem": problem_to_json(q.problem), "group_id": q.group_id, "attempts": q.attempts, "reason": q.reason}
                for q in self._quarantined
            ],
            "released": self._released,
            "readmitted": self._readmitted,
            "filtered": self._filtered,
            "admitted_live": self._num_admitted_live,
            "dropped": dict(self._dropped),
        }

    def load_state_dict(self, state: dict[str, Any], *, held: Collection[int], keep_lost: bool = False) -> None:
        """Continue from a checkpoint whose replay holds the groups `held`. Groups in flight that are held stay in
        flight. The others are gone: they are dropped as "restored", and their problems wait at the front, in id order,
        with the attempt they had. With `keep_lost` they stay in flight instead, to be sampled again as they were
        admitted. Trained groups are released: the restored engines load the checkpoint's weights, so the newest version
        trained is live. Raises ValueError if `held` names a group that was not in flight, or more groups than there are
        slots."""
        requests = {request.group_id: request for request in map(request_from_json, state["in_flight"])}
        kept = set(held)
        if kept - requests.keys():
            raise ValueError(f"replay holds groups {sorted(kept - requests.keys())}, which the ledger does not have in flight")
        if keep_lost:
            kept = set(requests)
        if len(kept) > self._capacity:
            raise ValueError(f"the checkpoint keeps {len(kept)} groups, more than the {self._capacity} slots of this configuration")
        lost = [requests[group_id] for group_id in sorted(requests.keys() - kept)]
        waiting = [WaitingProblem(problem=problem_from_json(entry["problem"]), attempt=entry["attempt"]) for entry in state["waiting"]]
        self._in_flight = {group_id: requests[group_id] for group_id in sorted(kept)}
        self._waiting = deque([WaitingProblem(problem=request.problem, attempt=request.attempt) for request in lost] + waiting)
        self._trained, self._kept_back = {}, Counter()
        self._released = state["released"] + len(state["trained"])
        self._live_version = max([state["live_version"], *(made for _, made in state["trained"])])
        self._num_admitted_live = state.get("admitted_live", 0) if self._live_version == state["live_version"] else 0
        self._filtered = state.get("filtered", 0)
        self._next_id = state["next_id"]
        self._readmitted = state["readmitted"]
        self._dropped = Counter(state["dropped"])
        if lost:
            self._dropped[RESTORED] += len(lost)
        self._quarantined = [Quarantined(**{**entry, "problem": problem_from_json(entry["problem"])}) for entry in state["quarantined"]]
        self._given_up = {(entry.problem.task, entry.problem.problem_id) for entry in self._quarantined}
        self.check_valid()

    def _require_in_flight(self, ids: list[int]) -> None:
        if len(set(ids)) != len(ids):
            raise ValueError(f"a group occurs twice among {ids}")
        for group_id in [group_id for group_id in ids if group_id not in self._in_flight]:
            if not 0 <= group_id < self._next_id:
                raise ValueError(f"group {group_id} was never admitted")
            fate = "trained on" if group_id in self._trained else "released or dropped"
            raise ValueError(f"group {group_id} is not in flight: it was {fate} already")
