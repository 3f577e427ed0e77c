from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks.stream
from buffers.records import Problem
from tasks.base import Task
from tasks.config import TaskConfig
from tasks.curriculum import CurriculumConfig
from tasks.registry import make_task
from tasks.stream import ProblemStream
from tests.tasks.samples import ListTask


def take(stream: ProblemStream, num_problems: int) -> list[str]:
    return [problem.problem_id for problem in islice(stream, num_problems)]


def test_endless_task_is_read_in_order() -> None:
    task = make_task(TaskConfig())
    assert take(ProblemStream(task, "train", seed=5), 20) == [problem.problem_id for problem in islice(task.problems("train"), 20)]


@given(num_problems=st.integers(1, 20), seed=st.integers(0, 1000))
def test_each_epoch_of_a_finite_task_meets_every_problem_once(num_problems: int, seed: int) -> None:
    stream = ProblemStream(ListTask(num_problems), "train", seed)
    for _ in range(3):
        assert sorted(map(int, take(stream, num_problems))) == list(range(num_problems))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = ProblemStream(ListTask(50), "train", 1), ProblemStream(ListTask(50), "train", 2)
    assert len({tuple(take(stream, 50)) for stream in (first, first, second, second)}) == 4


@given(num_problems=st.one_of(st.none(), st.integers(1, 9)), skipped=st.integers(0, 40))
def test_restored_into_a_fresh_stream_the_next_outputs_are_equal(num_problems: int | None, skipped: int) -> None:
    def fresh() -> ProblemStream:
        task: Task = make_task(TaskConfig()) if num_problems is None else ListTask(num_problems)
        return ProblemStream(task, "train", seed=3)

    saved, restored = fresh(), fresh()
    take(saved, skipped)
    restored.load_state_dict(saved.state_dict())
    assert restored.cursor == skipped
    assert take(restored, 25) == take(saved, 25)


@pytest.mark.parametrize("other", [ProblemStream(ListTask(4), "train", 0), ProblemStream(ListTask(3), "train", 1)])
def test_state_of_another_stream_is_refused(other: ProblemStream) -> None:
    stream = ProblemStream(ListTask(3), "train", 0)
    with pytest.raises(ValueError, match=r"this stream of problems has .*, but the saved one has"):
        stream.load_state_dict(other.state_dict())
    assert stream.cursor == 0


def test_negative_cursor_is_refused() -> None:
    stream = ProblemStream(ListTask(3), "train", 0)
    with pytest.raises(ValueError, match="-1"):
        stream.load_state_dict({**stream.state_dict(), "cursor": -1})


def test_task_without_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="no problems"):
        ProblemStream(ListTask(0), "train", 0)


def test_endless_task_that_cannot_be_indexed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.stream, "MAX_FINITE_PROBLEMS", 10)
    with pytest.raises(ValueError, match="over 10 problems"):
        ProblemStream(ListTask(None), "train", 0)


@pytest.mark.parametrize("task", [ListTask(3), make_task(TaskConfig())])
def test_unknown_split_is_refused_at_the_latest_by_the_first_problem(task: Task) -> None:
    with pytest.raises(ValueError, match="no split 'eval'"):
        next(ProblemStream(task, "eval", 0))


# ---- with a curriculum ----

CURRICULUM = CurriculumConfig(enabled=True, floor=0.1)


def trained(stream: ProblemStream, num_problems: int, pass_rate: dict[str, float]) -> list[Problem]:
    """Problems of the stream, each answered eight times with the pass rate of its kind or id."""
    problems = []
    for _ in range(num_problems):
        problem = next(stream)
        rate = pass_rate.get(problem.problem_id, pass_rate.get(problem.meta.get("kind", ""), 0.5))
        stream.observe(problem, num_correct=round(8 * rate), num_scored=8)
        problems.append(problem)
    return problems


@pytest.mark.parametrize("curriculum", [None, CurriculumConfig()])
def test_without_a_curriculum_observations_change_nothing(curriculum: CurriculumConfig | None) -> None:
    stream, plain = ProblemStream(ListTask(7), "train", 5, curriculum), ProblemStream(ListTask(7), "train", 5)
    assert [problem.problem_id for problem in trained(stream, 30, {"1": 0.0})] == take(plain, 30)
    assert stream.state_dict() == plain.state_dict() == {"task": "list", "split": "train", "seed": 5, "num_problems": 7, "cursor": 30}
    assert stream.num_passed_over == 0 and stream.pass_rates == {}


def test_nothing_is_passed_over_before_anything_was_observed() -> None:
    assert take(ProblemStream(ListTask(9), "train", 5, CURRICULUM), 30) == take(ProblemStream(ListTask(9), "train", 5), 30)


def test_problems_half_solved_are_met_most_and_none_is_forgotten() -> None:
    stream = ProblemStream(ListTask(4), "train", 0, CURRICULUM)
    met = Counter(problem.problem_id for problem in trained(stream, 600, {"0": 0.0, "1": 1.0, "2": 0.5, "3": 0.25}))
    assert met["2"] > met["3"] > max(met["0"], met["1"]) and min(met.values()) > 20
    assert stream.num_passed_over > 0 and stream.cursor == 600


def test_problem_is_met_at_most_once_an_epoch() -> None:
    stream = ProblemStream(ListTask(10), "train", 0, CURRICULUM)
    epochs: dict[int, list[str]] = {}
    for _ in range(200):
        problem = next(stream)
        epochs.setdefault((stream.cursor + stream.num_passed_over - 1) // 10, []).append(problem.problem_id)
        stream.observe(problem, num_correct=int(problem.problem_id) % 9, num_scored=8)
    assert all(len(set(met)) == len(met) for met in epochs.values())
    assert any(len(met) < 10 for met in epochs.values())


def test_kinds_of_an_endless_task_are_met_by_their_pass_rates() -> None:
    task = make_task(TaskConfig.model_validate({"arithmetic": {"weights": {"sum": 1, "product": 1, "difference": 1, "equation": 0}}}))
    stream = ProblemStream(task, "train", 0, CURRICULUM)
    met = Counter(problem.meta["kind"] for problem in trained(stream, 400, {"sum": 1.0, "product": 0.5, "difference": 0.0})[50:])
    assert met["product"] > 2 * max(met["sum"], met["difference"]) and min(met.values()) > 5
    assert stream.pass_rates == {"arithmetic/sum": 1.0, "arithmetic/product": 0.5, "arithmetic/difference": 0.0}
    assert stream.state_dict()["curriculum"]["problems"] == []


def test_same_observations_give_the_same_problems() -> None:
    streams = [ProblemStream(ListTask(9), "train", 1, CURRICULUM) for _ in range(2)]
    assert trained(streams[0], 100, {"1": 0.0, "2": 1.0}) == trained(streams[1], 100, {"1": 0.0, "2": 1.0})
    assert streams[0].state_dict() == streams[1].state_dict()


@given(
    num_problems=st.one_of(st.none(), st.integers(1, 9)),
    skipped=st.integers(0, 40),
    rates=st.lists(st.integers(0, 8), min_size=9, max_size=9),
)
def test_curriculum_restored_into_a_fresh_stream_goes_on_as_it_was(num_problems: int | None, skipped: int, rates: list[int]) -> None:
    def fresh() -> ProblemStream:
        return ProblemStream(make_task(TaskConfig()) if num_problems is None else ListTask(num_problems), "train", 3, CURRICULUM)

    pass_rate = {str(index): rate / 8 for index, rate in enumerate(rates)} | {"sum": rates[0] / 8, "product": rates[1] / 8}
    saved, restored = fresh(), fresh()
    trained(saved, skipped, pass_rate)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert trained(restored, 25, pass_rate) == trained(saved, 25, pass_rate)
    assert restored.state_dict() == saved.state_dict()


def test_curriculum_may_begin_in_a_run_and_is_not_dropped_unseen() -> None:
    plain, stream = ProblemStream(ListTask(5), "train", 0), ProblemStream(ListTask(5), "train", 0, CURRICULUM)
    take(plain, 7)
    stream.load_state_dict(plain.state_dict())
    assert take(stream, 5) == take(plain, 5)
    with pytest.raises(ValueError, match="the saved stream has a curriculum, this one has none"):
        plain.load_state_dict(stream.state_dict())


def test_position_before_the_cursor_is_refused() -> None:
    stream = ProblemStream(ListTask(5), "train", 0, CURRICULUM)
    with pytest.raises(ValueError, match="the saved cursor 3 is negative, or beyond its position 2"):
        stream.load_state_dict({**stream.state_dict(), "cursor": 3, "curriculum": {"position": 2, "buckets": [], "problems": []}})


# ---- problems that are left out ----


def not_divisible(problem: Problem) -> bool:
    return int(problem.problem_id) % 3 != 0


def test_what_is_left_out_is_passed_over_in_every_epoch() -> None:
    plain, stream = ProblemStream(ListTask(9), "train", 4), ProblemStream(ListTask(9), "train", 4)
    stream.leave_out(not_divisible)
    assert take(stream, 12) == [name for name in take(plain, 18) if int(name) % 3]
    assert stream.cursor == 12 and stream.num_passed_over in (5, 6)


@given(skipped=st.integers(0, 30), still=st.booleans())
def test_a_stream_that_leaves_out_is_restored_where_it_was(skipped: int, still: bool) -> None:
    saved, restored = (ProblemStream(ListTask(7), "train", 3) for _ in range(2))
    saved.leave_out(not_divisible)
    take(saved, skipped)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert (restored.cursor, restored.num_passed_over) == (saved.cursor, saved.num_passed_over)
    if still:
        restored.leave_out(not_divisible)
    names = [name for name in take(restored, 21) if still or int(name) % 3]
    assert names == take(saved, len(names))


def test_a_state_without_a_position_is_that_of_a_stream_that_left_nothing_out() -> None:
    stream = ProblemStream(ListTask(5), "train", 0)
    take(stream, 3)
    assert "position" not in stream.state_dict()


@pytest.mark.parametrize("cursor", [0, 4])
def test_what_is_known_is_all_of_a_finite_task_and_the_position_stays(cursor: int) -> None:
    stream, other = ProblemStream(ListTask(6), "train", 1), ProblemStream(ListTask(6), "train", 1)
    take(stream, cursor)
    take(other, cursor)
    assert sorted(problem.problem_id for problem in stream.known(2)) == [str(number) for number in range(6)]
    assert take(stream, 9) == take(other, 9)


def test_what_is_known_of_a_task_without_end_are_its_first_problems() -> None:
    task = make_task(TaskConfig())
    known = ProblemStream(task, "train", 0).known(12)
    assert known == list(islice(task.problems("train"), 12))


def test_what_is_known_of_a_mixture_are_the_problems_of_all_parts_under_their_labels() -> None:
    mixture = make_task(TaskConfig.model_validate({"name": "mixture", "mixture": {"parts": {"arithmetic": {}, "countdown": {}}}}))
    known = ProblemStream(mixture, "train", 0).known(5)
    assert Counter(problem.task for problem in known) == {"arithmetic": 5, "countdown": 5}
    assert all(mixture.prompt(problem) for problem in known)
