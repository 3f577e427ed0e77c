"""The problems that a job samples for."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from jobs.configuration.user_error import UserError
from jobs.sampling.job import Stopped, distinct, interruptibly, problems_of
from tasks.arithmetic import Arithmetic, ArithmeticConfig, ArithmeticWeights
from tasks.base import Problem, Task, Verdict, judge

ONLY_EQUATIONS = ArithmeticWeights(sum=0, difference=0, product=0, equation=1)
EQUATIONS = Arithmetic(ArithmeticConfig(weights=ONLY_EQUATIONS, equation_max=12), seed=0)
FOUR = [Problem(task="list", problem_id=f"list/{row}", question=question, answer="1") for row, question in enumerate("abac")]


class Listed(Task):
    """Four rows of a file, two of which ask the same."""

    name = "list"

    def problems(self, split: str) -> Iterator[Problem]:
        return iter(FOUR)

    def verify(self, problem: Problem, response: str) -> Verdict:
        return judge(response, problem.answer)


def test_a_drawn_question_counts_once() -> None:
    warned: list[str] = []
    problems = problems_of(EQUATIONS, "train", 100, warn=warned.append)
    assert len({problem.question for problem in problems}) == 100
    assert problems[:2] == [EQUATIONS.problem("train", 0), EQUATIONS.problem("train", 1)]
    assert not warned


def test_where_there_are_fewer_different_questions_they_are_taken_and_said() -> None:
    warned: list[str] = []
    problems = problems_of(EQUATIONS, "test", 1000, warn=warned.append)
    assert len(problems) == len({problem.question for problem in problems}) < 100
    assert warned == [f"split 'test' of task arithmetic has only {len(problems)} different questions, 1000 were asked for"]


def test_rows_of_a_file_stay_as_they_are() -> None:
    assert problems_of(Listed(), "test", 0, warn=pytest.fail) == FOUR
    assert problems_of(Listed(), "test", 3, warn=pytest.fail) == FOUR[:3]
    assert list(distinct(FOUR)) == [FOUR[0], FOUR[1], FOUR[3]]


def test_all_problems_of_an_endless_split_are_refused() -> None:
    with pytest.raises(UserError, match="has no end: give --problems N"):
        problems_of(EQUATIONS, "test", 0, warn=pytest.fail)


def test_a_split_without_problems_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listed, "problems", lambda self, split: iter(()))
    with pytest.raises(UserError, match="no problems in split 'test'"):
        problems_of(Listed(), "test", 3, warn=pytest.fail)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_work_and_means_afterwards_what_it_always_does(number: signal.Signals) -> None:
    """What follows the work, such as the report, does not look after signals: they must not be lost."""

    async def endless() -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    async def scenario() -> list[object]:
        with pytest.raises(Stopped) as stopped:
            await interruptibly(endless())
        assert stopped.value.number == number
        return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    assert asyncio.run(scenario()) == [signal.default_int_handler, signal.SIG_DFL]
