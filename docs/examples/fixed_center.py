"""The elliptical bonus with a memory of the run, around one fixed center in place of each group's own.

    bonus = { kind = "docs.examples.fixed_center:FixedCenter", options = { ridge = 0.01, cut_off = "least" } }

The project centers a response by the mean of its group, also where P remembers the whole run. A response is then new
where it differs from its group in a way in which responses of the run seldom differed from theirs. Around one center it
is new where no response of the run, to any problem, has been. `configs/compare/centering.toml` compares the two.
"""

from typing import Any

import torch

from bonus.base import Need, Scores, State, StepRows
from bonus.config import BonusConfig
from bonus.elliptical import centered_leverage
from bonus.shaping import shaped_for


class FixedCenter:
    """leverage_i = x_i' (lam*I + P + X'X)^-1 x_i with x_i = h_i - c, where c is the mean of the first step's features
    and P the second moment of x over earlier steps, times `forgetting` a step."""

    needs = frozenset({Need.FEATURES})

    def __init__(self, ridge: float, **options: Any) -> None:
        self._ridge, self._config = ridge, BonusConfig(ridge=ridge, memory="run", **options)

    def init_state(self) -> State:
        return {}

    def score(self, step: StepRows, state: State) -> tuple[Scores, State]:
        features_GKD, valid_GK = step.features_GKD, step.valid_GK
        center_D = state["center_D"] if state else features_GKD[valid_GK].mean(0)
        centered_GKD = torch.where(valid_GK[..., None], features_GKD - center_D, 0.0)
        moment_DD = state["moment_DD"] if state else torch.zeros(2 * features_GKD.shape[-1:], dtype=torch.float64)
        leverage_GK = centered_leverage(centered_GKD, ridge=self._ridge, prior=moment_DD)
        added_DD = torch.einsum("gkd,gke->de", centered_GKD, centered_GKD)
        scores = Scores(
            bonus_GK=shaped_for(step, leverage_GK, self._config),
            metrics={"spread": leverage_GK.std(-1).median().item(), "effective_rank": _effective_rank(moment_DD + added_DD)},
            detail={"leverage": leverage_GK},
        )
        return scores, {"center_D": center_D, "moment_DD": self._config.forgetting * moment_DD + added_DD}


def _effective_rank(moment_DD: torch.Tensor) -> float:
    """Return (sum of eigenvalues)^2 / sum of their squares: 1 if one direction holds all, D if all are alike."""
    return float(moment_DD.trace() ** 2 / moment_DD.square().sum().clamp(min=1e-300))
