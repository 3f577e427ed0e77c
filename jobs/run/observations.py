"""How often the policy solved each problem, for the curriculum.

The count is made when a group is judged. The problem stream is told later, when the weights that the group led to are
live, so that it does not depend on timing. In the fixed order (`jobs.run.fixed_order`), what is admitted after version
v went live is chosen by two things: the batches up to v, in the order of their rows, and the groups filtered out before
v was live, in the order of their ids. The same holds in a run that is resumed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from buffers.ledger import problem_from_json, problem_to_json
from buffers.records import Problem, Verdict, VerdictStatus

Observe = Callable[[Problem, int, int], None]
"""observe(problem, num_correct, num_scored)"""


@dataclass(frozen=True, slots=True)
class _Judged:
    problem: Problem
    num_correct: int
    num_scored: int

    def to_json(self) -> list[Any]:
        return [problem_to_json(self.problem), self.num_correct, self.num_scored]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> _Judged:
        return cls(problem_from_json(value[0]), int(value[1]), int(value[2]))


class Observations:
    """Keeps counts until they may be told.

    observations = Observations(observe)
    observations.judged(group_id, problem, verdicts)
    observations.filtered(group_id)            # or dropped(group_id), or
    observations.trained(group_ids, version)
    observations.live(version)                 # `observe` is called
    """

    def __init__(self, observe: Observe) -> None:
        self._observe = observe
        self._judged: dict[int, _Judged] = {}
        self._filtered: dict[int, _Judged] = {}
        self._trained: dict[int, list[_Judged]] = {}  # by the version that they led to

    def judged(self, group_id: int, problem: Problem, verdicts: Sequence[Verdict]) -> None:
        num_correct = sum(verdict.status is VerdictStatus.CORRECT for verdict in verdicts)
        self._judged[group_id] = _Judged(problem, num_correct, sum(verdict.status.is_scored for verdict in verdicts))

    def dropped(self, group_id: int) -> None:
        """Forget a group: its problem will be tried again, or never."""
        self._judged.pop(group_id, None)

    def filtered(self, group_id: int) -> None:
        """Keep the count of a group that had its turn, though no step trains on it."""
        if (judged := self._judged.pop(group_id, None)) is not None:
            self._filtered[group_id] = judged

    def trained(self, group_ids: Iterable[int], version: int) -> None:
        found = (self._judged.pop(group_id, None) for group_id in group_ids)
        self._trained[version] = [judged for judged in found if judged is not None]

    def live(self, version: int) -> None:
        """Tell the counts of all groups that led to `version`, which every worker that samples now holds."""
        for made in sorted(made for made in self._trained if made <= version):
            self._tell(self._trained.pop(made))
        self._tell([self._filtered[group_id] for group_id in sorted(self._filtered)])
        self._filtered = {}

    def _tell(self, found: Iterable[_Judged]) -> None:
        for judged in found:
            self._observe(judged.problem, judged.num_correct, judged.num_scored)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, in values that JSON can hold."""
        return {
            "judged": [[group_id, judged.to_json()] for group_id, judged in sorted(self._judged.items())],
            "filtered": [[group_id, judged.to_json()] for group_id, judged in sorted(self._filtered.items())],
            "trained": [[version, [judged.to_json() for judged in group]] for version, group in sorted(self._trained.items())],
        }

    def load_state_dict(self, state: dict[str, Any], *, held: Collection[int]) -> None:
        """Continue from a checkpoint whose replay holds the groups `held`. Its weights, the newest trained, are live at
        once."""
        self._judged = {group_id: _Judged.from_json(value) for group_id, value in state["judged"] if group_id in set(held)}
        self._filtered = {group_id: _Judged.from_json(value) for group_id, value in state["filtered"]}
        self._trained = {}
        for _, group in state["trained"]:
            self._tell([_Judged.from_json(value) for value in group])
