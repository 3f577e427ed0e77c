"""A task whose verifier does what the response says, in a module that spawned workers can import."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from buffers.records import Problem, Verdict, VerdictStatus
from tasks.base import Message, Task

PROBLEM = Problem(task="fake", problem_id="fake/train/0", question="What now?", answer="correct")


class FakeTask:
    """Commands: "correct", "raise", "exit", "sigkill", "regex", "none", "pid", "sleep SECONDS", "crash_once FILE",
    "hang FILE", "hang_once FILE". Any other text is incorrect, the empty one no answer."""

    name: str = "fake"
    deadline_s: float = 2.0

    def problems(self, split: str) -> Iterator[Problem]:
        return iter([PROBLEM])

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        return f"{problem.answer}: {response}" if response else None

    def verify(self, problem: Problem, response: str) -> Verdict:
        assert problem == PROBLEM, f"a worker got {problem}"
        if not response:
            return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
        command, _, argument = response.partition(" ")
        detail = getattr(self, f"_{command}", lambda _: "no command")(argument)
        if detail is NotImplemented:
            return None  # type: ignore[return-value]
        is_correct = command == "correct"
        status = VerdictStatus.CORRECT if is_correct else VerdictStatus.INCORRECT
        return Verdict(status=status, reward=float(is_correct), answer=response, detail=detail)

    def _raise(self, _: str) -> NoReturn:
        raise ValueError("told to raise")

    def _exit(self, _: str) -> NoReturn:
        os._exit(3)

    def _sigkill(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _regex(self, _: str) -> None:
        """Hang in C with the interpreter lock held, so that no Python signal handler can run."""
        re.match(r"(a+)+$", "a" * 64 + "b")

    def _none(self, _: str) -> object:
        return NotImplemented

    def _pid(self, _: str) -> str:
        return str(os.getpid())

    def _sleep(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def _crash_once(self, path: str) -> None:
        if not Path(path).exists():
            Path(path).touch()
            os._exit(3)

    def _hang(self, path: str) -> None:
        """Write the worker's process id to the file, atomically, then hang in C."""
        partial = Path(f"{path}.partial")
        partial.write_text(str(os.getpid()))
        partial.rename(path)
        self._regex("")

    def _hang_once(self, path: str) -> None:
        if not Path(path).exists():
            self._hang(path)


def make_fake_task() -> Task:
    return FakeTask()


class ColdTask(FakeTask):
    """Raises unless it was warmed up exactly once. It has a short deadline of its own."""

    deadline_s: float = 0.5
    num_warm_ups: int = 0

    def warm_up(self) -> None:
        self.num_warm_ups += 1

    def verify(self, problem: Problem, response: str) -> Verdict:
        assert self.num_warm_ups == 1, f"warmed up {self.num_warm_ups} times"
        return super().verify(problem, response)


def make_cold_task() -> Task:
    return ColdTask()


def make_unbuildable_task() -> Task:
    raise FileNotFoundError("no such data set")


def make_exiting_task() -> Task:
    os._exit(4)


def make_task_if_readable(path: Path) -> Task:
    """Return a task, or raise OSError while `path` exists."""
    if path.exists():
        raise OSError("the disk does not answer")
    return FakeTask()


def make_task_unless(path: Path) -> Task:
    """Return a task, but let the worker die at its start if `path` exists."""
    return make_exiting_task() if path.exists() else FakeTask()
