"""Where final answers are read: in this process where that only reads, else by the verifier pool."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from actors.config import VerifierConfig
from actors.verifier import VerifierPool
from buffers.records import Problem, Verdict
from jobs.sampling.pipeline import Judge
from tasks.arithmetic import ArithmeticConfig
from tasks.base import Task, judge
from tasks.config import TaskConfig
from tasks.mixture import Mixture, Part
from tasks.registry import make_task

PROBLEM = Problem(task="echo", problem_id="echo/0", question="?", answer="a" * 80)


class Echo(Task):
    """It inherits `final_answer`, which verifies; that may run the response's code, so not in this process."""

    name = "echo"

    def problems(self, split: str) -> Iterator[Problem]:
        return iter([PROBLEM])

    def verify(self, problem: Problem, response: str) -> Verdict:
        if os.getpid() == TEST_PID:
            raise AssertionError("verified in the process of the job")
        return judge(response, problem.answer)


TEST_PID = os.getpid()


class Pool:
    """The handle of a verifier pool in other processes, which answers what the task would."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def call(self, method: Any, problem: Problem, texts: Sequence[str], **options: Any) -> list[Verdict]:
        assert method is VerifierPool.verify
        self.num_asked += len(texts)
        return [judge(text, problem.answer) for text in texts]


def answers(task: Task, problem: Problem, texts: list[str], verifier: Pool | None, **config: Any) -> list[str | None]:
    handle: Any = verifier
    judged = Judge(task, handle, VerifierConfig.model_validate(config), timeout_s=5.0)
    candidates = pa.table({"response_text": texts})
    found: list[str | None] = asyncio.run(judged.answered(problem, candidates))["final_answer"].to_pylist()
    return found


@pytest.mark.parametrize("is_part", [False, True])
def test_an_answer_that_takes_a_verification_is_read_by_the_pool_and_whole(is_part: bool) -> None:
    sums = make_task(TaskConfig())
    task: Task = Mixture({"echo": Part(task=Echo(), weight=1), "arithmetic": Part(task=sums, weight=1)}, seed=0) if is_part else Echo()
    pool = Pool()
    assert answers(task, PROBLEM, ["a" * 80, "b"], pool) == ["a" * 80, "b"] and pool.num_asked == 2
    assert answers(task, PROBLEM, ["a", "b"], None) == [None, None]


def test_an_answer_that_is_only_read_takes_no_pool_and_is_that_of_the_end_which_is_verified() -> None:
    task, pool = make_task(TaskConfig(arithmetic=ArithmeticConfig())), Pool()
    problem = next(iter(task.problems("train")))
    assert answers(task, problem, ["It is 12345", "123456 = 7"], pool, max_response_chars=3) == ["345", "7"]
    assert pool.num_asked == 0
