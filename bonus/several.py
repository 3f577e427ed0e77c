"""Several bonuses as one: scored, saved and logged together, and combined by weights. Legend: G groups, K responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bonus.base import Bonus, Need, SavesState, Scores, StepRows
from bonus.contract import score_checked

States = Mapping[str, Any]
"""The state of each bonus, by its name."""


@dataclass(frozen=True, kw_only=True)
class WeightedBonus:
    """One of several bonuses."""

    name: str
    """What it is logged under, different for each."""
    kind: str
    """What messages call it."""
    weight: float
    bonus: Bonus


class SeveralBonuses:
    """The sum of weight times bonus. Each term keeps a state of its own, and sees the step as if it were alone. Its
    metrics are called NAME/METRIC, with its mean before the weight among them. The details of a response have its
    bonus before the weight as NAME, and what it says besides as NAME/DETAIL."""

    def __init__(self, terms: tuple[WeightedBonus, ...]) -> None:
        self._terms = terms
        self.needs: frozenset[Need] = frozenset().union(*(term.bonus.needs for term in terms))

    def init_state(self) -> States:
        return {term.name: term.bonus.init_state() for term in self._terms}

    def score(self, step: StepRows, state: States) -> tuple[Scores, States]:
        bonus_GK = torch.zeros(step.valid_GK.shape, dtype=torch.float64)
        metrics: dict[str, float] = {}
        detail: dict[str, Tensor] = {}
        states: dict[str, Any] = {}
        for term in self._terms:
            scores, states[term.name] = score_checked(term.bonus, step, state[term.name], kind=term.kind)
            bonus_GK = bonus_GK + term.weight * scores.bonus_GK
            if step.valid_GK.any():
                metrics[f"{term.name}/mean"] = float(scores.bonus_GK[step.valid_GK].mean())
            metrics |= {f"{term.name}/{name}": value for name, value in scores.metrics.items()}
            detail[term.name] = scores.bonus_GK
            detail |= {f"{term.name}/{name}": values_GK for name, values_GK in scores.detail.items()}
        return Scores(bonus_GK=bonus_GK, metrics=metrics, detail=detail), states

    def state_dict(self, state: States) -> dict[str, Any]:
        return {term.name: _saved(term.bonus, state[term.name]) for term in self._terms}

    def from_state_dict(self, saved: Mapping[str, Any]) -> States:
        """Raises ValueError for a state of other bonuses, and what each bonus raises for a state of its own."""
        names = [term.name for term in self._terms]
        if set(saved) != set(names):
            raise ValueError(f"the saved state is of {sorted(saved)}, this run has {sorted(names)}")
        return {term.name: _restored(term.bonus, saved[term.name]) for term in self._terms}


def _saved(bonus: Bonus, state: Any) -> Any:
    return dict(bonus.state_dict(state)) if isinstance(bonus, SavesState) else state


def _restored(bonus: Bonus, saved: Any) -> Any:
    return bonus.from_state_dict(saved) if isinstance(bonus, SavesState) else saved
