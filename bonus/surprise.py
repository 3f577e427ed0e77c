"""How unlikely the policy finds its own response, as a bonus. Legend: G groups, K responses, T tokens."""

from typing import Any

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.kinds import KINDS


def mean_surprise(logprobs_GKT: Tensor, lengths_GK: Tensor) -> Tensor:
    """Return -1/T * sum over the response's T tokens of log pi, float64; 0 for an empty response."""
    return -logprobs_GKT.double().sum(dim=2) / lengths_GK.clamp(min=1)


def capped(surprise_GK: Tensor, rewards_GK: Tensor, *, scale: float, cap: float) -> Tensor:
    """Return min(|r| / cap, scale * surprise), and 0 where the reward is NaN."""
    return torch.minimum(rewards_GK.double().nan_to_num().abs() / cap, scale * surprise_GK)


class SurpriseBonus:
    """The mean negative log-prob of a response's tokens, at most a share of its reward (CDE, arXiv:2509.09675, Eq. 1
    and 2, read in the paper):

        b_i = decay^(t - 1) * min(|r_i| / cap, scale * s_i),    s_i = -1/T * sum over tokens of log pi(y_t | y_<t, x)

    The paper calls `cap` kappa and `scale` alpha, and adds omega_t * b_i to the reward, which is combine = "reward"
    with beta = omega. It anneals omega by a staircase, and finds that some annealing is needed; here `decay` shrinks
    the bonus smoothly. Its values of kappa and alpha were not found, so our defaults are guesses: `bonus/capped_share`
    says whether they fit. pi is the policy that sampled, by the engine's log-probs. With rewards 0 and 1 only correct
    responses have a bonus. Where rewards are negative, wrong responses that the policy is unsure of lose less, and the
    cap keeps the sign."""

    needs = KINDS["surprise"]

    def __init__(self, config: BonusConfig) -> None:
        self._config = config.surprise

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.logprobs_GKT is not None, "surprise needs log-probs"
        surprise_GK = mean_surprise(step.logprobs_GKT, step.lengths_GK)
        capped_GK = capped(surprise_GK, step.rewards_GK, scale=self._config.scale, cap=self._config.cap)
        bonus_GK = torch.where(step.valid_GK, self._config.decay ** (step.step - 1) * capped_GK, 0.0)
        metrics = {}
        if step.valid_GK.any():
            is_capped_GK = capped_GK < self._config.scale * surprise_GK
            metrics = {
                "surprise": float(surprise_GK[step.valid_GK].mean()),
                "capped_share": float(is_capped_GK[step.valid_GK].double().mean()),
            }
        return Scores(bonus_GK=bonus_GK, metrics=metrics, detail={"surprise": surprise_GK}), state
