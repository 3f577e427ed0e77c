"""Several tasks as one: every problem is drawn from one of them, in proportion to their weights.

    mixture = Mixture({"sums": Part(task=arithmetic, weight=3), "gsm8k": Part(task=gsm8k, weight=1)}, seed=0)
    for problem in mixture.problems("train"):
        verdict = mixture.verify(problem, generate(mixture.prompt(problem)))

The part that the problem at an index comes from depends on (seed, split, index) and the weights alone. Each part is
read in its own order: the n problems drawn from a part are its first n. A problem of a part is called by its label:
`Problem.task` is the label, and the id starts with it. A part named as its task has the same problems as that."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, count
from random import Random

from tasks.base import Message, NeedsWarmUp, Problem, Task, TaskError, Verdict

__all__ = ["Mixture", "Part", "names_in", "naming_part", "verifies_for_answer"]

_KEY = re.compile(r"\btask\.(?=[a-z0-9_]+\.)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A task, and how often it is drawn from in proportion to the other parts. The weight is positive."""

    task: Task
    weight: float


@contextmanager
def naming_part(label: str) -> Iterator[None]:
    """Name the part in its TaskErrors, and its keys: a task only knows the keys that it has alone."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"part '{label}': {_KEY.sub(f'task.mixture.parts.{label}.', str(error))}") from None


def names_in(task: Task) -> tuple[str, ...]:
    """Return the values of `Problem.task` for the problems of `task`. A mixture has the labels of its parts."""
    return tuple(task.parts) if isinstance(task, Mixture) else (task.name,)


def verifies_for_answer(task: Task, problem: Problem) -> bool:
    """Return whether the answer to `problem` is read by `Task.final_answer`, which calls `verify`. That may hang or
    raise, so its place is a process of a verifier pool."""
    own = task.part_of(problem) if isinstance(task, Mixture) else task
    return getattr(type(own), "final_answer", None) is Task.final_answer


class Mixture(Task):
    """The mixture of `parts`, which are ordered by label. The head of the module shows its use."""

    name: str = "mixture"

    def __init__(self, parts: Mapping[str, Part], seed: int) -> None:
        self.parts: Mapping[str, Part] = dict(sorted(parts.items()))
        self.has_verifier: bool = all(part.task.has_verifier for part in self.parts.values())
        self.deadline_s: float = max((part.task.deadline_s for part in self.parts.values()), default=0.0)
        self._seed = seed

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split`, none of them twice: a part is drawn from until its problems end. The iterator
        is endless if a part is. Raises TaskError if a part does."""
        remaining: dict[str, Iterator[Problem]] = {}
        for label, part in self.parts.items():
            with naming_part(label):
                remaining[label] = part.task.problems(split)
        return self._drawn(split, remaining)

    def label_at(self, split: str, index: int, labels: Sequence[str] | None = None) -> str:
        """Return the label of the part, among `labels` if given, that problem `index` of `split` is drawn from."""
        labels = labels or tuple(self.parts)
        bounds = list(accumulate(self.parts[label].weight for label in labels))
        drawn = Random(f"{self._seed}/{split}/{index}").random() * bounds[-1]
        return next((label for label, bound in zip(labels, bounds, strict=True) if drawn < bound), labels[-1])

    def labelled(self, label: str, problem: Problem) -> Problem:
        """Return `problem`, of the part `label`, as a problem of the mixture."""
        if problem.task == label:
            return problem
        return replace(problem, task=label, problem_id=f"{label}/{problem.problem_id.removeprefix(f'{problem.task}/')}")

    def warm_up(self) -> None:
        for part in self.parts.values():
            if isinstance(part.task, NeedsWarmUp):
                part.task.warm_up()

    def prompt(self, problem: Problem) -> list[Message]:
        return self.part_of(problem).prompt(problem)

    def final_answer(self, problem: Problem, response: str) -> str | None:
        return self.part_of(problem).final_answer(problem, response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        return self.part_of(problem).verify(problem, response)

    def part_of(self, problem: Problem) -> Task:
        """Return the task that `problem` is of. Raises ValueError for a problem of no part."""
        part = self.parts.get(problem.task)
        if part is None:
            raise ValueError(f"problem '{problem.problem_id}' is of '{problem.task}', and the mixture's parts are {', '.join(self.parts)}")
        return part.task

    def _drawn(self, split: str, remaining: dict[str, Iterator[Problem]]) -> Iterator[Problem]:
        for index in count():
            while remaining:
                label = self.label_at(split, index, tuple(remaining))
                problem = next(remaining[label], None)
                if problem is not None:
                    yield self.labelled(label, problem)
                    break
                del remaining[label]
            else:
                return
