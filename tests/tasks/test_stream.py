from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks.stream
from buffers.records import Problem, Verdict, VerdictStatus
from tasks.base import Message, Task
from tasks.config import TaskConfig
from tasks.registry import make_task
from tasks.stream import ProblemStream


class ListTask:
    """A task of `num_problems` problems in split "train"; None: endless."""

    name: str = "list"
    deadline_s: float = 2.0
    has_verifier: bool = True

    def __init__(self, num_problems: int | None) -> None:
        self._indices = count() if num_problems is None else range(num_problems)

    def problems(self, split: str) -> Iterator[Problem]:
        if split != "train":
            raise ValueError(f"no split '{split}'")
        return (Problem(task=self.name, problem_id=str(index), question="?", answer="!") for index in self._indices)

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        return response

    def verify(self, problem: Problem, response: str) -> Verdict:
        return Verdict(status=VerdictStatus.INCORRECT, reward=0.0)


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
    with pytest.raises(ValueError, match="the saved stream is of"):
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
    with pytest.raises(ValueError, match="no split 'dev'"):
        next(ProblemStream(task, "dev", 0))
