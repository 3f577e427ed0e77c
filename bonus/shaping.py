"""What the bonuses from features, and the control, share: normalisation, gate and staleness discount. Legend: G groups,
K responses."""

import torch
from torch import Tensor

from bonus.base import StepRows
from bonus.config import BonusConfig
from bonus.elliptical import gate_mask, normalise_bonus


def without_cut_off(raw_GK: Tensor, valid_GK: Tensor, ended_GK: Tensor) -> Tensor:
    """Return the raw bonuses, where a response that was cut off has the least of those of its group that ended; 0 where
    none did. Novelty is cheap to get by going on, and a response that does not end is no discovery (ours)."""
    counts_GK = valid_GK & ended_GK
    least_G1 = torch.where(counts_GK, raw_GK, torch.inf).amin(dim=1, keepdim=True)
    least_G1 = torch.where(least_G1.isinf(), 0.0, least_G1)
    return torch.where(valid_GK & ~ended_GK, least_G1, raw_GK)


def shaped(
    raw_GK: Tensor,
    kept_GK: Tensor,
    valid_GK: Tensor,
    lags_GK: Tensor | None,
    config: BonusConfig,
    ended_GK: Tensor | None = None,
) -> Tensor:
    """Return discount^lag * gate(normalise(raw)), 0 for an empty response. `kept_GK` is the gate's mask. Without
    `lags_GK` nothing is discounted, and without `ended_GK` every response has ended."""
    if config.cut_off == "least" and ended_GK is not None:
        raw_GK = without_cut_off(raw_GK, valid_GK, ended_GK)
    bonus_GK = torch.where(kept_GK, normalise_bonus(raw_GK, valid_GK, config.normalise), 0.0)
    if lags_GK is not None:
        bonus_GK = bonus_GK * config.staleness_discount ** lags_GK.double()  # times exactly 1 where the discount is off
    return bonus_GK


def shaped_for(step: StepRows, raw_GK: Tensor, config: BonusConfig) -> Tensor:
    """Return `shaped` with what the step says of its responses."""
    kept_GK = gate_mask(step.correct_GK, config.gate)
    return shaped(raw_GK, kept_GK, step.valid_GK, step.lags_GK, config, step.ended_GK)
