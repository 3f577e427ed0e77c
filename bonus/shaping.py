"""What the bonuses from features, and the control, share: normalisation, gate and staleness discount. Legend: G groups,
K responses."""

import torch
from torch import Tensor

from bonus.base import StepRows
from bonus.config import BonusConfig
from bonus.elliptical import gate_mask, normalise_bonus


def shaped(raw_GK: Tensor, kept_GK: Tensor, valid_GK: Tensor, lags_GK: Tensor | None, config: BonusConfig) -> Tensor:
    """Return discount^lag * gate(normalise(raw)), 0 for an empty response. `kept_GK` is the gate's mask. Without
    `lags_GK` nothing is discounted."""
    bonus_GK = torch.where(kept_GK, normalise_bonus(raw_GK, valid_GK, config.normalise), 0.0)
    if lags_GK is not None:
        bonus_GK = bonus_GK * config.staleness_discount ** lags_GK.double()  # times exactly 1 where the discount is off
    return bonus_GK


def shaped_for(step: StepRows, raw_GK: Tensor, config: BonusConfig) -> Tensor:
    """Return `shaped` with what the step says of its responses."""
    return shaped(raw_GK, gate_mask(step.correct_GK, config.gate), step.valid_GK, step.lags_GK, config)
