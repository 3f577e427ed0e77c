"""The order in which training meets the problems of a task, and the position in it.

    stream = ProblemStream(task, "train", seed=0)
    problem = next(stream)
    stream.observe(problem, num_correct=3, num_scored=8)     # has no effect without a curriculum
    state = stream.state_dict()          # saved with the checkpoint
    stream.load_state_dict(state)        # into a stream of the same task, split and seed: the same problems follow

Without a curriculum, the order is a function of (seed, cursor), so the state is one cursor, and one more for each part
of a mixture. A curriculum adds the measured rates and the number of candidates passed over (`tasks.curriculum`)."""

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
    """A task whose splits are endless and can be read at any index for the cost of one problem."""

    def problem(self, split: str, index: int) -> Problem: ...


def is_endless(task: Task) -> bool:
    """Return whether the problems of `task` never end."""
    if isinstance(task, Mixture):
        return any(is_endless(part.task) for part in task.parts.values())
    return isinstance(task, IndexedTask)


class ProblemStream(Iterator[Problem]):
    """The problems of one split, without end. The object is not thread-safe. An `IndexedTask` is read in the order of
    indices, and `seed` has no effect. Any other task must be finite and is read into memory once; each epoch then meets
    every problem once, in an order shuffled by (seed, epoch). The same holds for each part of a `Mixture`. With a
    curriculum, an epoch meets only some of the problems."""

    def __init__(self, task: Task, split: str, seed: int, curriculum: CurriculumConfig | None = None) -> None:
        """Read the problems. Raises TaskError for an empty split, for over a million problems of a task that is not an
        `IndexedTask`, and if the task's `problems` does."""
        self.task = task
        self._source: _Mixed | _Plain = _Mixed(task, split, seed) if isinstance(task, Mixture) else _plain(task, split, str(seed))
        self._identity: dict[str, str | int] = {"task": task.name, "split": split, "seed": seed, **self._source.identity}
        self._curriculum = Curriculum(curriculum, seed) if curriculum is not None and curriculum.enabled else None
        self._may_pose: Callable[[Problem], bool] | None = None
        self._cursor = 0

    def __next__(self) -> Problem:
        while True:
            position = self._source.position
            problem = self._source.take()
            if self._may_pose is not None and not self._may_pose(problem):
                continue
            if self._curriculum is None or self._curriculum.accepts(problem, position):
                self._cursor += 1
                return problem

    def leave_out(self, may_pose: Callable[[Problem], bool]) -> None:
        """Pass over the problems of which `may_pose` is false. One of those to come must be left."""
        self._may_pose = may_pose

    def known(self, num_drawn: int) -> list[Problem]:
        """Return what is known of the problems to come: all of a finite task, the first `num_drawn` of one without end.
        The position is not changed."""
        return self._source.known(num_drawn)

    @property
    def cursor(self) -> int:
        """How many problems the stream has returned since the start of the run."""
        return self._cursor

    @property
    def num_passed_over(self) -> int:
        """How many candidates the curriculum did not accept or that were left out; 0 without either."""
        return self._source.position - self._cursor

    @property
    def pass_rates(self) -> dict[str, float]:
        """The pass rate of each kind of problems observed; empty without a curriculum."""
        return {} if self._curriculum is None else self._curriculum.rates()

    def observe(self, problem: Problem, *, num_correct: int, num_scored: int) -> None:
        """Record the verdicts of a group. With a curriculum, the next problems depend on them and on their order."""
        if self._curriculum is not None:
            recurs = self._source.recurs(problem)
            self._curriculum.observe(problem, num_correct=num_correct, num_scored=num_scored, recurs=recurs)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, in values that JSON can hold."""
        state: dict[str, Any] = {**self._identity, "cursor": self._cursor, **self._source.cursors()}
        if self._source.position != self._cursor:
            state["position"] = self._source.position
        if self._curriculum is not None:
            state["curriculum"] = {"position": self._source.position, **self._curriculum.state_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last problem of the saved stream. Raises ValueError if `state` is of another stream."""
        found = {key: value for key, value in state.items() if key not in ("cursor", "position", "parts", "curriculum")}
        if found != self._identity:
            names = [name for name in {**found, **self._identity} if found.get(name) != self._identity.get(name)]
            both = ", ".join(f"{name} = {self._identity.get(name)}, but the saved one has {found.get(name)}" for name in names)
            raise ValueError(f"this stream of problems has {both}")
        cursor, curriculum = int(state["cursor"]), state.get("curriculum")
        if curriculum is not None and self._curriculum is None:
            raise ValueError("the saved stream has a curriculum, this one has none")
        position = int(state.get("position", cursor) if curriculum is None else curriculum["position"])
        if not 0 <= cursor <= position:
            raise ValueError(f"the saved cursor {cursor} is negative, or beyond its position {position}")
        self._source.restore(position, state.get("parts"))
        self._cursor = cursor
        if self._curriculum is not None and curriculum is not None:
            self._curriculum.load_state_dict(curriculum)


class _Plain:
    """The problems of a task that is not a mixture, by position."""

    def __init__(self, at: Callable[[int], Problem], num_problems: int | None) -> None:
        self.identity = {} if num_problems is None else {"num_problems": num_problems}
        self.position = 0
        self._at = at
        self._num_problems = num_problems

    def take(self) -> Problem:
        problem = self._at(self.position)
        self.position += 1
        return problem

    def recurs(self, problem: Problem) -> bool:
        """Return whether the problem will come again, as each problem of a finite task does."""
        return bool(self.identity)

    def known(self, num_drawn: int) -> list[Problem]:
        """Return all problems, or the first `num_drawn` where they never end."""
        return [self._at(position) for position in range(num_drawn if self._num_problems is None else self._num_problems)]

    def cursors(self) -> dict[str, Any]:
        """Return the cursors of the parts, of which there are none."""
        return {}

    def restore(self, position: int, parts: Any = None) -> None:
        self.position = position


class _Mixed:
    """The problems of a mixture. Each part has a position of its own."""

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

    def known(self, num_drawn: int) -> list[Problem]:
        known = ((label, problem) for label, part in self._parts.items() for problem in part.known(num_drawn))
        return [self._mixture.labelled(label, problem) for label, problem in known]

    def cursors(self) -> dict[str, Any]:
        return {"parts": {label: part.position for label, part in self._parts.items()}}

    def restore(self, position: int, parts: Any) -> None:
        """Restore all positions. Raises ValueError if `parts` are other parts, or do not add up to `position`."""
        if not isinstance(parts, dict) or parts.keys() != self._parts.keys():
            raise ValueError(f"the saved stream has the parts {', '.join(parts or ())}, this one {', '.join(self._parts)}")
        if min(parts.values()) < 0 or sum(parts.values()) != position:
            raise ValueError(f"the saved parts stand at {parts}, which does not make {position} problems")
        self.position = position
        for label, part in self._parts.items():
            part.restore(parts[label])


def _plain(task: Task, split: str, seed: str) -> _Plain:
    """Return the problems of `task` by position. A finite task is shuffled by `seed`."""
    if isinstance(task, IndexedTask):
        indexed = task
        return _Plain(lambda position: indexed.problem(split, position), None)
    problems = _read_all(task, split)
    return _Plain(_ShuffledEpochs(problems, seed).at, len(problems))


class _ShuffledEpochs:
    """A finite list of problems that repeats without end. Each epoch has an order of its own."""

    def __init__(self, problems: list[Problem], seed: str) -> None:
        self._problems = problems
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def at(self, cursor: int) -> Problem:
        epoch, position = divmod(cursor, len(self._problems))
        if epoch != self._epoch:
            rng = Random(f"{self._seed}/{epoch}")
            keys = [rng.random() for _ in self._problems]  # they stay the same in every Python version; `shuffle` may change
            self._epoch, self._order = epoch, sorted(range(len(keys)), key=keys.__getitem__)
        return self._problems[self._order[position]]


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
