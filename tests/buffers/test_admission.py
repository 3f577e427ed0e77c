from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from buffers.admission import RESTORED, Admission
from buffers.records import Problem


def make_admission(*, prompts_per_step: int = 2, max_policy_lag: int = 1, max_attempts: int = 5) -> Admission:
    return Admission(prompts_per_step=prompts_per_step, group_size=4, max_policy_lag=max_policy_lag, max_attempts=max_attempts)


def stream() -> Iterator[Problem]:
    return (Problem(task="t", problem_id=f"p{i}", question="?", answer="!", meta={"level": str(i)}) for i in count())


@pytest.fixture
def next_problem() -> Callable[[], Problem]:
    return stream().__next__


def no_problem() -> Problem:
    raise AssertionError("a waiting problem should have come first")


def fill(admission: Admission, next_problem: Callable[[], Problem]) -> list[int]:
    return [admission.admit(next_problem).group_id for _ in range(admission.free_slots)]


def test_slots_are_one_step_for_the_synchronous_trainer_and_more_with_lag(next_problem: Callable[[], Problem]) -> None:
    assert make_admission(max_policy_lag=0).free_slots == 2
    admission = make_admission(max_policy_lag=3)
    assert fill(admission, next_problem) == list(range(8))
    with pytest.raises(RuntimeError, match="all 8 slots are taken"):
        admission.admit(no_problem)


def test_a_slot_is_held_until_the_weights_trained_on_it_are_live(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    admission.trained([0, 1], version=1)
    admission.trained([2], version=2)
    assert admission.free_slots == 0
    admission.published(1)
    assert (admission.free_slots, admission.live_version) == (2, 1)
    assert admission.admit(next_problem).admitted_version == 1
    admission.published(2)
    assert admission.ledger.released == 3
    admission.check_valid()


def test_a_dropped_problem_is_admitted_again_before_new_ones(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    admission.drop(2, "stale")
    admission.drop(0, "worker lost")
    again = [admission.admit(no_problem) for _ in range(2)]
    assert [(r.group_id, r.problem.problem_id, r.attempt) for r in again] == [(4, "p2", 1), (5, "p0", 1)]
    assert admission.ledger.dropped_by_reason == {"stale": 1, "worker lost": 1}
    admission.check_valid()


def test_a_problem_dropped_too_often_is_quarantined_and_named(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission(max_attempts=2)
    for _ in range(2):
        admission.drop(admission.admit(next_problem).group_id, "failed")
    (given_up,) = admission.quarantined
    assert (given_up.problem.problem_id, given_up.group_id, given_up.attempts, given_up.reason) == ("p0", 1, 2, "failed")
    assert admission.admit(next_problem).problem.problem_id == "p1"
    admission.check_valid()


def test_a_problem_that_was_given_up_is_known_also_after_a_restore_and_its_other_groups_are_not_tried_again() -> None:
    problem = Problem(task="t", problem_id="t/train/0", question="?", answer="!")
    admission = Admission(prompts_per_step=3, group_size=2, max_policy_lag=0, max_attempts=1)
    for _ in range(2):
        admission.admit(lambda: problem)
    given_up = admission.drop(0, "data")
    assert given_up is not None and (given_up.problem, given_up.reason) == (problem, "data")
    assert admission.drop(1, "data") is None, "it is told once"
    restored = Admission(prompts_per_step=3, group_size=2, max_policy_lag=0, max_attempts=5)
    restored.load_state_dict(admission.state_dict(), held=[])
    assert restored.is_quarantined(problem)
    restored.admit(lambda: problem)
    restored.drop(2, "stale")
    assert restored.ledger.waiting == 0
    restored.check_valid()


def test_a_problem_source_that_ends_leaves_the_slot_free() -> None:
    admission = make_admission()
    with pytest.raises(StopIteration):
        admission.admit(iter(()).__next__)
    assert admission.free_slots == admission.capacity
    assert admission.ledger.admitted == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [([1], "trained on already"), ([2], "released or dropped already"), ([9], "never admitted"), ([0, 0], "twice"), ([0, 9], "never")],
)
def test_training_on_what_is_not_in_flight_raises_and_changes_nothing(
    next_problem: Callable[[], Problem], ids: list[int], message: str
) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    admission.trained([1], version=1)
    admission.drop(2, "stale")
    before = admission.state_dict()
    with pytest.raises(ValueError, match=message):
        admission.trained(ids, version=1)
    assert admission.state_dict() == before


def test_a_trained_or_unknown_group_cannot_be_dropped(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    admission.trained([1], version=1)
    for group_id in (1, 7):
        with pytest.raises(ValueError, match=f"group {group_id}"):
            admission.drop(group_id, "stale")


def test_versions_only_go_forward(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    admission.published(3)
    admission.published(3)
    with pytest.raises(ValueError, match="version 2 cannot be published: version 3"):
        admission.published(2)
    group_id = admission.admit(next_problem).group_id
    with pytest.raises(ValueError, match="version 3 is live already"):
        admission.trained([group_id], version=3)


def test_a_restore_readmits_what_was_in_flight_outside_replay(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission(prompts_per_step=3)
    fill(admission, next_problem)  # p0 .. p5
    admission.drop(1, "stale")
    admission.drop(5, "stale")
    admission.admit(no_problem)  # group 6 is p1 again; p5 still waits
    admission.trained([0], version=1)
    state = json.loads(json.dumps(admission.state_dict()))

    restored = make_admission(prompts_per_step=3)
    restored.load_state_dict(state, held=[3])
    assert [r.group_id for r in restored.in_flight] == [3]
    assert (restored.live_version, restored.ledger.released, restored.free_slots) == (1, 1, 5)
    assert restored.ledger.dropped_by_reason == {"stale": 2, RESTORED: 3}
    again = [restored.admit(no_problem) for _ in range(4)]
    assert [(r.group_id, r.problem.problem_id, r.attempt) for r in again] == [(7, "p2", 0), (8, "p4", 0), (9, "p1", 1), (10, "p5", 1)]
    assert again[0].problem.meta == {"level": "2"}
    restored.check_valid()


def test_a_restored_ledger_gives_the_same_next_requests(next_problem: Callable[[], Problem]) -> None:
    straight = make_admission(max_attempts=2)
    fill(straight, next_problem)
    straight.drop(0, "failed")
    straight.drop(straight.admit(no_problem).group_id, "failed")
    straight.drop(3, "stale")
    restored = make_admission(max_attempts=2)
    restored.load_state_dict(straight.state_dict(), held=[1, 2])
    assert restored.state_dict() == straight.state_dict()
    ours, theirs = stream(), stream()
    assert [restored.admit(ours.__next__) for _ in range(2)] == [straight.admit(theirs.__next__) for _ in range(2)]


def test_a_replay_that_does_not_fit_the_ledger_is_refused(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    with pytest.raises(ValueError, match=r"\[8\].*not have in flight"):
        make_admission().load_state_dict(admission.state_dict(), held=[1, 8])
    with pytest.raises(ValueError, match="3 groups, more than the 2 slots"):
        make_admission(max_policy_lag=0).load_state_dict(admission.state_dict(), held=[0, 1, 2])


def test_a_filtered_group_gives_its_slot_to_another_problem_and_does_not_come_back(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    admission.filter(1)
    admission.check_valid()
    (replacement,) = fill(admission, next_problem)
    assert (replacement, admission.in_flight[-1].problem.problem_id) == (4, "p4")
    assert (admission.ledger.filtered, admission.ledger.waiting, admission.ledger.dropped_by_reason) == (1, 0, {"filtered": 1})
    with pytest.raises(ValueError, match="group 1 is not in flight"):
        admission.filter(1)
    restored = make_admission()
    restored.load_state_dict(json.loads(json.dumps(admission.state_dict())), held=[0, 2, 3, 4])
    assert restored.ledger == admission.ledger


def test_groups_are_counted_by_the_version_they_were_admitted_under(next_problem: Callable[[], Problem]) -> None:
    admission = make_admission()
    fill(admission, next_problem)
    assert [request.place for request in admission.in_flight] == [0, 1, 2, 3]
    admission.filter(0)
    fill(admission, next_problem)
    admission.trained([1, 2], version=1)
    admission.published(1)
    fill(admission, next_problem)
    assert [(request.group_id, request.admitted_version, request.place) for request in admission.in_flight] == [
        (3, 0, 3),
        (4, 0, 4),
        (5, 1, 0),
        (6, 1, 1),
    ]
    restored = make_admission()
    restored.load_state_dict(json.loads(json.dumps(admission.state_dict())), held=[3, 4, 5])
    restored.filter(3)
    assert restored.admit(next_problem).place == 2, "counted on over a restart"
    assert restored.in_flight[1].place == 0
