"""The order in which training meets the problems of a task, and where it stands.

    stream = ProblemStream(task, "train", seed=0)
    problem = next(stream)
    stream.observe(problem, num_correct=3, num_scored=8)     # of no effect without a curriculum
    state = stream.state_dict()          # saved with the checkpoint
    stream.load_state_dict(state)        # into a stream made with the same task, split and seed: the same problems follow

Without a curriculum every order is a function of (seed, cursor), and so all state is one cursor, and one for each part
of a mixture. With one, the state is also the measured rates, and how many candidates were passed over
(`tasks.curriculum`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from random import Random
from typing import Any, Protocol, runtime_checkable

from tasks.base import Problem, Task, TaskError
from tasks.curriculum import Curriculum, CurriculumConfig
from tasks.mixture import Mixture, naming_part

__all__ = ["IndexedTask", "ProblemStream", "is_endless"]

MAX_FINITE_PROBLEMS = 1_000_000


@runtime_checkable
class IndexedTask(Protocol):
    """A task whose splits are endless and can be read at any index, at the cost of one problem."""

    def problem(self, split: str, index: int) -> Problem: ...


def is_endless(task: Task) -> bool:
    """Whether `task.problems` never comes to an end."""
    if isinstance(task, Mixture):
        return any(is_endless(part.task) for part in task.parts.values())
    return isinstance(task, IndexedTask)


class ProblemStream(Iterator[Problem]):
    """Problems of one split without end. Not thread-safe.

    An `IndexedTask` is read in index order, and `seed` has no effect. Any other task is read into memory once and must
    be finite; each epoch then meets every problem once, in an order shuffled by (seed, epoch). Each part of a `Mixture`
    is read so. With a curriculum, an epoch meets some of its problems."""

    def __init__(self, task: Task, split: str, seed: int, curriculum: CurriculumConfig | None = None) -> None:
        """Raises TaskError for an empty split, for one of over a million problems in a task that is not an
        `IndexedTask`, and where the task's `problems` does."""
        self.task = task
        self._source: _Mixed | _Plain = _Mixed(task, split, seed) if isinstance(task, Mixture) else _plain(task, split, str(seed))
        self._identity: dict[str, str | int] = {"task": task.name, "split": split, "seed": seed, **self._source.identity}
        self._curriculum = Curriculum(curriculum, seed) if curriculum is not None and curriculum.enabled else None
        self._cursor = 0

    def __next__(self) -> Problem:
        while True:
            position = self._source.position
            problem = self._source.take()
            if self._curriculum is None or self._curriculum.accepts(problem, position):
                self._cursor += 1
                return problem

    @property
    def cursor(self) -> int:
        """How many problems were handed out since the start of the run."""
        return self._cursor

    @property
    def num_passed_over(self) -> int:
        """Candidates that the curriculum did not take; 0 without one."""
        return self._source.position - self._cursor

    @property
    def pass_rates(self) -> dict[str, float]:
        """Of each kind of problems observed; empty without a curriculum."""
        return {} if self._curriculum is None else self._curriculum.rates()

    def observe(self, problem: Problem, *, num_correct: int, num_scored: int) -> None:
        """The verdicts of a group: what follows depends on them, and on their order, where there is a curriculum, and
        on nothing else."""
        if self._curriculum is not None:
            recurs = self._source.recurs(problem)
            self._curriculum.observe(problem, num_correct=num_correct, num_scored=num_scored, recurs=recurs)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in values JSON can hold."""
        state: dict[str, Any] = {**self._identity, "cursor": self._cursor, **self._source.cursors()}
        if self._curriculum is not None:
            state["curriculum"] = {"position": self._source.position, **self._curriculum.state_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last problem of the saved stream. Raises ValueError where `state` is of another stream."""
        found = {key: value for key, value in state.items() if key not in ("cursor", "parts", "curriculum")}
        if found != self._identity:
            raise ValueError(f"the saved stream is of {found}, this one of {self._identity}")
        cursor, curriculum = int(state["cursor"]), state.get("curriculum")
        if curriculum is not None and self._curriculum is None:
            raise ValueError("the saved stream has a curriculum, this one has none")
        position = cursor if curriculum is None else int(curriculum["position"])
        if not 0 <= cursor <= position:
            raise ValueError(f"the saved cursor {cursor} is negative, or beyond its position {position}")
        self._source.restore(position, state.get("parts"))
        self._cursor = cursor
        if self._curriculum is not None and curriculum is not None:
            self._curriculum.load_state_dict(curriculum)


class _Plain:
    """The problems of a task that is no mixture, by position."""

    def __init__(self, at: Callable[[int], Problem], num_problems: int | None) -> None:
        self.identity = {} if num_problems is None else {"num_problems": num_problems}
        self.position = 0
        self._at = at

    def take(self) -> Problem:
        problem = self._at(self.position)
        self.position += 1
        return problem

    def recurs(self, problem: Problem) -> bool:
        """Whether it will come again: each problem of a finite task does."""
        return bool(self.identity)

    def cursors(self) -> dict[str, Any]:
        """The position is all there is."""
        return {}

    def restore(self, position: int, parts: Any = None) -> None:
        self.position = position


class _Mixed:
    """The problems of a mixture, each part at a position of its own."""

    def __init__(self, mixture: Mixture, split: str, seed: int) -> None:
        self._mixture = mixture
        self._split = split
        self._parts: dict[str, _Plain] = {}
        for label, part in mixture.parts.items():
            with naming_part(label):
                self._parts[label] = _plain(part.task, split, f"{seed}/{label}")
        self.identity = {f"{label}/{key}": value for label, part in self._parts.items() for key, value in part.identity.items()}
        self.position = 0

    def take(self) -> Problem:
        label = self._mixture.label_at(self._split, self.position)
        problem = self._parts[label].take()
        self.position += 1
        return self._mixture.labelled(label, problem)

    def recurs(self, problem: Problem) -> bool:
        return self._parts[problem.task].recurs(problem)

    def cursors(self) -> dict[str, Any]:
        return {"parts": {label: part.position for label, part in self._parts.items()}}

    def restore(self, position: int, parts: Any) -> None:
        """Raises ValueError where `parts` are others, or do not add up to `position`."""
        if not isinstance(parts, dict) or parts.keys() != self._parts.keys():
            raise ValueError(f"the saved stream has the parts {', '.join(parts or ())}, this one {', '.join(self._parts)}")
        if min(parts.values()) < 0 or sum(parts.values()) != position:
            raise ValueError(f"the saved parts stand at {parts}, which does not make {position} problems")
        self.position = position
        for label, part in self._parts.items():
            part.restore(parts[label])


def _plain(task: Task, split: str, seed: str) -> _Plain:
    """Finite tasks are shuffled by `seed`."""
    if isinstance(task, IndexedTask):
        indexed = task
        return _Plain(lambda position: indexed.problem(split, position), None)
    problems = _read_all(task, split)
    return _Plain(_ShuffledEpochs(problems, seed).at, len(problems))


class _ShuffledEpochs:
    """A finite list of problems repeated without end, each epoch in an order of its own."""

    def __init__(self, problems: list[Problem], seed: str) -> None:
        self._problems = problems
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

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
