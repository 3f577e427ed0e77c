"""The accounts of admission, and their JSON form."""

from dataclasses import dataclass, fields
from typing import Any

from buffers.records import GroupRequest, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """Numbers of groups since the run began. Every group admitted is in flight, trained, released or dropped. Every
    group dropped is readmitted, waiting, quarantined or filtered."""

    admitted: int
    in_flight: int
    trained: int  # used by a gradient whose weights are not live yet
    released: int  # used by a gradient whose weights are live
    dropped: int
    dropped_by_reason: dict[str, int]
    readmitted: int  # dropped, and its problem admitted again
    waiting: int  # dropped, and its problem waiting to be admitted again
    quarantined: int  # dropped for good, because its problem was given up
    filtered: int = 0  # dropped for good, because there was nothing to learn from it

    @property
    def outstanding(self) -> int:
        return self.in_flight + self.trained  # the slots taken

    def check_sums(self) -> None:
        """Raise AssertionError unless the states add up to `admitted`, and the ends and the reasons to `dropped`."""
        states = self.in_flight + self.trained + self.released + self.dropped
        assert self.admitted == states, f"admitted groups do not add up: {self}"
        ends = self.readmitted + self.waiting + self.quarantined + self.filtered
        assert self.dropped == ends, f"dropped groups do not add up: {self}"
        assert self.dropped == sum(self.dropped_by_reason.values()), f"reasons do not add up: {self}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingProblem:
    """A problem whose group was dropped, and the number of its next attempt."""

    problem: Problem
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A problem that was given up after `attempts` groups were dropped, the last one `group_id` for `reason`."""

    problem: Problem
    group_id: int
    attempts: int
    reason: str


def problem_to_json(problem: Problem) -> dict[str, Any]:
    return {**{field.name: getattr(problem, field.name) for field in fields(problem)}, "meta": dict(problem.meta)}


def problem_from_json(value: dict[str, Any]) -> Problem:
    return Problem(**value)


def request_to_json(request: GroupRequest) -> dict[str, Any]:
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    return {**values, "problem": problem_to_json(request.problem)}


def request_from_json(value: dict[str, Any]) -> GroupRequest:
    return GroupRequest(**{**value, "problem": problem_from_json(value["problem"])})
