"""Noise as a bonus: the control. Legend: G groups, K responses."""

from typing import Any

import torch

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.draws import drawn_by_group
from bonus.kinds import KINDS
from bonus.shaping import shaped_for


class RandomBonus:
    """An independent standard normal number per response (ours), shaped as the elliptical bonus is.

        b_i = discount^lag_i * gate(normalise(z_i)),    z_i ~ N(0, 1)

    It looks at neither the responses nor their features. What it gains is the effect of noise in the advantages, above
    all in groups whose rewards are all equal. What another bonus gains over it is due to what that bonus looks at. The
    numbers of a group depend on the run's seed, the step, the problem and the response's place alone. So a resumed run
    has them again, and they do not change with the other groups of the step (`bonus.draws`)."""

    needs = KINDS["random"]

    def __init__(self, config: BonusConfig) -> None:
        self._config = config

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        num_responses = step.valid_GK.shape[1]
        noise_GK = drawn_by_group(step, "random", lambda generator: torch.randn(num_responses, generator=generator, dtype=torch.float64))
        return Scores(bonus_GK=shaped_for(step, noise_GK, self._config)), state
