"""Where every group of a run is, in one set of books.

    admitted ──> dispatched ──> returned ──> judged ──> held ──> drawn ──> trained ──> live
                     ^             │           │         │
                     └── lost ─────┘           └─────────┴─────> dropped, or filtered

The trainer and the rollout workers (`jobs.run.rollouts`) tell each change once. What follows from it is kept here:
slots (`buffers.admission`), tokens (`buffers.tokens`), what the curriculum learns (`jobs.run.observations`), the fixed
order (`jobs.run.fixed_order`), the groups that replay holds, and the event log. No clock, no asyncio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import Any

from actors.replay import DrawnBatch
from buffers.admission import FILTERED, Admission
from buffers.records import GroupRequest, GroupUsage, Heartbeat, Problem, Verdict, WeightUpdate
from buffers.replay import InsertResult
from buffers.tokens import TokenLedger, TokenWaste
from jobs.config import RunConfig
from jobs.directory.events import EventKind
from jobs.run.fixed_order import FixedOrder
from jobs.run.observations import Observations
from tasks.base import TaskError
from tasks.stream import ProblemStream

MOST_PASSED_OVER = 1000


class DropReason(StrEnum):
    """Why a group gave its slot back without a gradient. Its problem is tried again. Each reason but STALE is a failure
    of the problem, of which there may be `max_attempts`."""

    STALE = "stale"  # it is too old for the policy (`buffers.replay`)
    TIMEOUT = "timeout"  # several workers in turn sampled nothing of it for rollout.group_timeout_s
    DATA = "data"  # its problem cannot be used
    LOST = "lost"  # too many processes were lost with it


WASTE = {
    DropReason.STALE: TokenWaste.STALE,
    DropReason.TIMEOUT: TokenWaste.ABORTED,
    DropReason.DATA: TokenWaste.FILTERED,
    DropReason.LOST: TokenWaste.LOST,
}
"""What the tokens of a dropped group count as."""


class GroupBooks:
    """The books of one run.

        books = GroupBooks(config, stream, note=events.write, warn=console.warn)
        request = books.admit()
        books.dispatched(request, "rollout-0", tries=1, resumed_tokens=0)
        books.returned(request, "rollout-0", usage)
        books.judged(request, verdicts)
        books.inserted(request, InsertResult.ACCEPTED)      # replay holds it
        books.drawn(drawn, step=7)                          # step 7 is about to train on it
        books.trained(drawn.group_ids, step=7, version=7)
        books.live(7, workers=2)                            # its slot is free

    `note(kind, **fields)` is called with every event, `warn(text)` with what the person who started the run should
    know."""

    def __init__(self, config: RunConfig, stream: ProblemStream, *, note: Callable[..., None], warn: Callable[[str], None]) -> None:
        self.admission = Admission(
            prompts_per_step=config.prompts_per_step,
            group_size=config.responses_per_prompt,
            max_policy_lag=config.max_policy_lag,
            max_attempts=config.max_attempts,
        )
        self.tokens = TokenLedger()
        self.observations = Observations(
            lambda problem, num_correct, num_scored: stream.observe(problem, num_correct=num_correct, num_scored=num_scored)
        )
        self.order = FixedOrder(self.admission, prompts_per_step=config.prompts_per_step) if config.deterministic else None
        self.held: set[int] = set()
        """Groups in replay."""
        self.num_removed = 0
        """How often something left replay."""
        self.num_rows_lost = 0
        """How often the rows of a group went with a node."""
        self.waiting_for_room: set[int] = set()
        """Groups that replay has refused because it is full."""
        self._masked: dict[int, int] = {}  # groups of the step in progress -> their tokens that are too old to be trained on
        self._late, self._max_policy_lag = config.late, config.max_policy_lag
        self._left_early: set[int] = set()  # groups that a draw took out before replay's answer to their insert was here
        self._prompts_per_step, self._group_size = config.prompts_per_step, config.responses_per_prompt
        self._stream = stream
        self._note = note
        self._warn = warn

    # ---- on the way to replay ----

    def admit(self) -> GroupRequest:
        """Take a free slot for the next problem that was not given up. Raise RuntimeError without a slot, TaskError
        where every problem was given up."""
        request = self.admission.admit(self._next_problem)
        self._note(
            EventKind.ADMITTED,
            group_id=request.group_id,
            problem_id=request.problem.problem_id,
            attempt=request.attempt,
            version=request.admitted_version,
        )
        return request

    def _next_problem(self) -> Problem:
        given_up = self.admission.quarantined
        for _ in range(2 * len(given_up) + MOST_PASSED_OVER):  # two epochs of these, and enough for a rare part of a mixture
            problem = next(self._stream)
            if not self.admission.is_quarantined(problem):
                return problem
        last = given_up[-1]
        raise TaskError(
            f"no problem is left to train on: all {len(given_up)} were given up after max_attempts groups each, the last "
            f"({last.problem.problem_id}) for '{last.reason}'"
        )

    def submitted(self, request: GroupRequest) -> None:
        """The group is to be sampled, verified and encoded."""
        if self.order is not None:
            self.order.submitted(request.group_id)

    def dispatched(self, request: GroupRequest, worker: str, *, tries: int, resumed_tokens: int) -> None:
        """The group is given to a worker for the `tries`-th time, to continue after tokens that were sampled before."""
        self.tokens.started(worker, request.group_id, resumed_tokens=resumed_tokens)
        self._note(EventKind.DISPATCHED, group_id=request.group_id, worker=worker, tries=tries, resumed_tokens=resumed_tokens)

    def returned(self, request: GroupRequest, worker: str, usage: GroupUsage | None) -> None:
        """The worker is done with the group. Without `usage`, nothing of it came back."""
        if usage is not None:
            self.tokens.sampled(worker, usage.sampled_tokens)
        tokens = None if usage is None else usage.response_tokens
        aborted = request.num_responses if usage is None else usage.num_aborted
        self.tokens.finished(worker, request.group_id, tokens)
        self._note(EventKind.COMPLETED, group_id=request.group_id, worker=worker, tokens=tokens or 0, aborted=aborted)

    def beat(self, worker: str, beat: Heartbeat) -> None:
        """A worker reports what it has sampled, and what of its groups is safe."""
        self.tokens.sampled(worker, beat.sampled_tokens)
        for group_id, tokens in beat.tokens_by_group.items():
            self.tokens.kept(worker, group_id, tokens)

    def worker_ended(self, worker: str) -> None:
        """The worker's process is gone, or is not listened to any more."""
        self.tokens.worker_ended(worker)

    def judged(self, request: GroupRequest, verdicts: Sequence[Verdict]) -> None:
        """The group has its verdicts."""
        counts = Counter(verdict.status.value for verdict in verdicts)
        self._note(EventKind.VERDICTS, group_id=request.group_id, counts=dict(counts))
        self.observations.judged(request.group_id, request.problem, verdicts)

    def inserted(self, request: GroupRequest, result: InsertResult) -> None:
        """Replay has taken the group, or has refused it for good."""
        group_id = request.group_id
        self._note(EventKind.INSERTED, group_id=group_id, result=result.value)
        if result is InsertResult.STALE:
            self.dropped(group_id, DropReason.STALE)
        elif result is InsertResult.FILTERED:
            self._filtered(group_id)
        else:
            if group_id in self._left_early:
                self._left_early.discard(group_id)
            else:
                self.held.add(group_id)
            if self.order is not None:
                self.order.settled(group_id)

    def dropped(self, group_id: int, why: DropReason) -> None:
        """The group gives its slot back; its problem waits for another try, or is given up."""
        self.tokens.dropped(group_id, WASTE[why])
        given_up = self.admission.drop(group_id, why.value, is_failure=why is not DropReason.STALE)
        if given_up is not None:
            problem_id, attempts = given_up.problem.problem_id, given_up.attempts
            self._warn(f"problem {problem_id} is given up: {attempts} groups of it were dropped, the last for '{why}' (max_attempts)")
        self.observations.dropped(group_id)
        if self.order is not None:
            self.order.dropped(group_id)
            if self.order.num_dropped == 1:
                self._warn_of_other_order(f"was dropped ({why})", group_id)
        self._note(EventKind.DROPPED, group_id=group_id, reason=why.value)

    def _filtered(self, group_id: int) -> None:
        """There is nothing to learn from the group: another problem takes its slot."""
        self.tokens.dropped(group_id, TokenWaste.FILTERED)
        self.admission.filter(group_id)
        self.observations.filtered(group_id)
        if self.order is not None:
            self.order.settled(group_id)
        self._note(EventKind.DROPPED, group_id=group_id, reason=FILTERED)

    def rows_lost(self, group_id: int) -> GroupRequest:
        """The group's rows went with a node: it keeps its slot and is to be sampled again, as the request returned."""
        request = next(request for request in self.admission.in_flight if request.group_id == group_id)
        self.num_rows_lost += 1
        self.tokens.dropped(group_id, TokenWaste.LOST)
        if group_id in self.held:
            self.held.discard(group_id)
            self.num_removed += 1
            if self.order is not None:
                self._warn_of_other_order("was lost from replay", group_id)
        return request

    def _warn_of_other_order(self, what: str, group_id: int) -> None:
        self._warn(f"group {group_id} {what}: from here on another start may differ, deterministic or not")

    # ---- a step ----

    def has_left_replay(self, group_id: int) -> bool:
        """Return whether a draw took the group out before `inserted` was told of it."""
        return group_id in self._left_early

    def next_batch_is_in(self, version: int) -> bool:
        """Return whether replay holds what the step that `version` begins trains on."""
        if self.order is not None:
            return self.order.next_batch_is_in(self.held)
        if len(self.held) < self._prompts_per_step:
            return False
        return bool(self.waiting_for_room) or self._due(version)[1]  # where replay is full, only a step makes room

    def num_due(self, version: int) -> int:
        """Return how many of the groups held, those admitted first, the step that `version` begins has to train on."""
        return min(self._due(version)[0], self._prompts_per_step)

    def _due(self, version: int) -> tuple[int, bool]:
        """Return how many of the first groups the step must take, and whether replay holds them. With `late` = "wait",
        a group that has j more steps after this one is among the first i in flight: of these, at most j · P may be left
        to later steps."""
        num_due, num_held, are_held = 0, 0, True
        for number, request in enumerate(self.admission.in_flight if self._late == "wait" else (), start=1):
            steps_left = max(0, request.admitted_version + self._max_policy_lag - version)
            needed = number - steps_left * self._prompts_per_step
            num_held += request.group_id in self.held
            num_due, are_held = max(num_due, needed), are_held and num_held >= needed
        return num_due, are_held

    def drawn(self, drawn: DrawnBatch, *, step: int) -> None:
        """Stale groups have left replay, and the batch of `step` if there was one."""
        left = {*drawn.group_ids, *drawn.stale_ids}
        self._left_early |= left - self.held
        self.held -= left
        self.num_removed += bool(left)
        for group_id in drawn.stale_ids:
            self.dropped(group_id, DropReason.STALE)
        self._masked = dict(zip(drawn.group_ids, drawn.masked_tokens, strict=True))
        if drawn.group_ids:
            self._note(EventKind.BATCH, step=step, group_ids=list(drawn.group_ids))

    def trained(self, group_ids: Sequence[int], *, step: int, version: int) -> None:
        """The gradient of `step` used these groups and made `version`. Their slots stay taken until it is live."""
        for group_id in group_ids:
            self.tokens.trained(group_id, masked=self._masked[group_id])
        self._note(EventKind.TRAINED, step=step, version=version)
        self.admission.trained(group_ids, version=version)
        self.observations.trained(group_ids, version)

    def loaded(self, update: WeightUpdate) -> None:
        """A worker holds another version."""
        seconds = {"check_s": update.check_s, "load_s": update.load_s}
        self._note(EventKind.LOADED, worker=update.worker_id, version=update.version, **seconds)

    def live(self, version: int, *, workers: int) -> None:
        """All `workers` that serve hold `version`: the slots of what led to it are free."""
        self._note(EventKind.PUBLISHED, version=version, workers=workers)
        self.observations.live(version)
        self.admission.published(version)

    # ---- as a whole ----

    def metrics(self) -> dict[str, float]:
        """Return counts of groups by fate, and of tokens."""
        ledger = self.admission.ledger
        num_stale, stale_tokens = ledger.dropped_by_reason.get(DropReason.STALE, 0), self.tokens.counts()["wasted_stale"]
        return {
            "groups/dropped_stale": float(num_stale),
            **({"late/dropped_tokens_mean": stale_tokens / (num_stale * self._group_size)} if num_stale else {}),
            "groups/dropped": float(ledger.dropped - ledger.filtered),
            "groups/filtered": float(ledger.filtered),
            "groups/quarantined": float(ledger.quarantined),
            **self.tokens.metrics(),
        }

    def check_valid(self) -> None:
        """Raise AssertionError with the broken invariant."""
        self.admission.check_valid()
        self.tokens.check_sums()
        in_flight = {request.group_id for request in self.admission.in_flight}
        assert self.held <= in_flight, f"groups {sorted(self.held - in_flight)} are held but not in flight"

    def state_dict(self) -> dict[str, Any]:
        """Return everything, in values that JSON can hold."""
        return {
            "admission": self.admission.state_dict(),
            "stream": self._stream.state_dict(),
            "observations": self.observations.state_dict(),
            "tokens": self.tokens.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, held: Collection[int]) -> None:
        """Continue from a checkpoint whose replay holds the groups `held`."""
        self.admission.load_state_dict(state["admission"], held=held, keep_lost=self.order is not None)
        self._stream.load_state_dict(state["stream"])
        self.observations.load_state_dict(state["observations"], held=held)
        self.tokens.load_state_dict(state["tokens"], held=held)
        self.held = set(held)
