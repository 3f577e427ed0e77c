"""The order in which training meets the problems of a task, and where it stands.

    stream = ProblemStream(task, "train", seed=0)
    problem = next(stream)
    state = stream.state_dict()          # saved with the checkpoint
    stream.load_state_dict(state)        # into a stream made with the same task, split and seed: the same problems follow

All state is one cursor: every order below is a function of (seed, cursor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Protocol, runtime_checkable

from tasks.base import Problem, Task, TaskError

__all__ = ["IndexedTask", "ProblemStream"]

MAX_FINITE_PROBLEMS = 1_000_000


@runtime_checkable
class IndexedTask(Protocol):
    """A task whose splits are endless and can be read at any index, at the cost of one problem."""

    def problem(self, split: str, index: int) -> Problem: ...


class ProblemStream(Iterator[Problem]):
    """Problems of one split without end. Not thread-safe.

    An `IndexedTask` is read in index order, and `seed` has no effect. Any other task is read into memory once and must be
    finite; each epoch then meets every problem once, in an order shuffled by (seed, epoch).
    """

    def __init__(self, task: Task, split: str, seed: int) -> None:
        """Raises TaskError for an empty split, for one of over a million problems in a task that is not an `IndexedTask`, and where the
        task's `problems` does."""
        self.task = task
        self._identity: dict[str, str | int] = {"task": task.name, "split": split, "seed": seed}
        self._cursor = 0
        self._at: Callable[[int], Problem]
        if isinstance(task, IndexedTask):
            indexed = task
            self._at = lambda cursor: indexed.problem(split, cursor)
        else:
            epochs = _ShuffledEpochs(_read_all(task, split), seed)
            self._identity["num_problems"] = epochs.num_problems
            self._at = epochs.at

    def __next__(self) -> Problem:
        problem = self._at(self._cursor)
        self._cursor += 1
        return problem

    @property
    def cursor(self) -> int:
        """How many problems were handed out since the start of the run."""
        return self._cursor

    def state_dict(self) -> dict[str, str | int]:
        return {**self._identity, "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, str | int]) -> None:
        """Continue after the last problem of the saved stream. Raises ValueError where `state` is of another stream."""
        found = {key: value for key, value in state.items() if key != "cursor"}
        if found != self._identity:
            raise ValueError(f"the saved stream is of {found}, this one of {self._identity}")
        cursor = int(state["cursor"])
        if cursor < 0:
            raise ValueError(f"the saved cursor {cursor} is negative")
        self._cursor = cursor


class _ShuffledEpochs:
    """A finite list of problems repeated without end, each epoch in an order of its own."""

    def __init__(self, problems: list[Problem], seed: int) -> None:
        self._problems = problems
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    @property
    def num_problems(self) -> int:
        return len(self._problems)

    def at(self, cursor: int) -> Problem:
        epoch, position = divmod(cursor, len(self._problems))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._problems[self._order[position]]

    def _shuffled(self, epoch: int) -> list[int]:
        """Sorting by `random()` keys: `shuffle` may change between Python versions, `random` may not."""
        rng = Random(f"{self._seed}/{epoch}")
        keys = [rng.random() for _ in self._problems]
        return sorted(range(len(keys)), key=keys.__getitem__)


def _read_all(task: Task, split: str) -> list[Problem]:
    problems = list(islice(task.problems(split), MAX_FINITE_PROBLEMS + 1))
    if not problems:
        raise TaskError(f"task '{task.name}' has no problems in split '{split}'")
    if len(problems) > MAX_FINITE_PROBLEMS:
        raise TaskError(
            f"task '{task.name}' has over {MAX_FINITE_PROBLEMS} problems in split '{split}': give it a method "
            "problem(split, index), so that it need not be held in memory"
        )
    return problems
