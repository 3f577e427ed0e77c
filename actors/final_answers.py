"""Final answers, read where responses are judged, for a bonus that needs them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from buffers.records import Problem, Verdict
from tasks.base import NeedsWarmUp, Task
from tasks.mixture import verifies_for_answer


def with_final_answers(make_task: Callable[[], Task]) -> Task:
    """Return a task whose verdicts also carry the final answers. A response that is not judged in time has none."""
    return cast(Task, _WithFinalAnswers(make_task()))


class _WithFinalAnswers:
    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def warm_up(self) -> None:
        if isinstance(self._task, NeedsWarmUp):
            self._task.warm_up()

    def verify(self, problem: Problem, response: str) -> Verdict:
        verdict = self._task.verify(problem, response)
        judges_again = verifies_for_answer(self._task, problem)
        return replace(verdict, final_answer=verdict.whole_answer if judges_again else self._task.final_answer(problem, response))
