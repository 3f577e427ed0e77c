"""Scoring and absorbing one step, the only thing the owner of the covariance calls.

    state = init_state(config.dim)                                     # or from_state_dict(checkpoint)
    for each step, in the recorded order:
        scored, state = score_step(features_GKD, correct_GK, valid_GK, state, config, lengths_GK=lengths_GK)
        ... beta * scored.bonus_GK ...; log scored.ridge and scored.diagnostics

Legend: G groups of the step, K responses per group, D projected size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bonus.config import BonusConfig
from bonus.covariance import CovarianceState, absorb_energy, auto_ridge, update
from bonus.diagnostics import BonusDiagnostics, carries_no_signal, diagnose
from bonus.elliptical import centre, centred_leverage, estimate, gate_mask, normalise_bonus

__all__ = ["BonusDiagnostics", "StepBonus", "carries_no_signal", "score_step"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBonus:
    """The bonuses of one step, float64, unscaled by beta, and how they came about."""

    bonus_GK: Tensor
    ridge: float
    diagnostics: BonusDiagnostics


def score_step(
    features_GKD: Tensor,
    correct_GK: Tensor,
    valid_GK: Tensor,
    state: CovarianceState,
    config: BonusConfig,
    *,
    lengths_GK: Tensor | None = None,
) -> tuple[StepBonus, CovarianceState]:
    """Score each group against the prior left by earlier steps plus its own responses, then absorb all groups of the step.

    No group sees another one of its step, so the order of groups within a step does not matter; the order of steps does, under
    memory="run". Under memory="none" P is neither read nor changed (arXiv:2510.11686's training), but the energy behind ridge="auto"
    advances. bonus = gate(normalise(estimator(leverage))), 0 for an empty response. `state` is not modified; features and state share a
    device. ValueError for wrong shapes and for a feature that is not finite.
    """
    _check_step(features_GKD, correct_GK, lengths_GK, config)
    centred_GKD = centre(features_GKD, valid_GK)
    absorb = update if config.memory == "run" else absorb_energy
    absorbed = absorb(state, centred_GKD, valid_GK, forgetting=config.forgetting)
    ridge = auto_ridge(absorbed) if config.ridge == "auto" else config.ridge
    prior = state.second_moment_DD if config.memory == "run" else None

    leverage_GK = centred_leverage(centred_GKD, ridge=ridge, prior=prior)
    raw_bonus_GK = estimate(leverage_GK, config.estimator)
    kept_GK = gate_mask(correct_GK, config.gate)
    bonus_GK = torch.where(kept_GK, normalise_bonus(raw_bonus_GK, valid_GK, config.normalise), 0.0)
    diagnostics = diagnose(
        bonus_GK=bonus_GK,
        raw_bonus_GK=raw_bonus_GK,
        leverage_GK=leverage_GK,
        centred_GKD=centred_GKD,
        valid_GK=valid_GK,
        kept_GK=kept_GK,
        ridge=ridge,
        prior=prior,
        lengths_GK=lengths_GK,
    )
    return StepBonus(bonus_GK=bonus_GK, ridge=ridge, diagnostics=diagnostics), absorbed


def _check_step(features_GKD: Tensor, correct_GK: Tensor, lengths_GK: Tensor | None, config: BonusConfig) -> None:
    shape_GK = features_GKD.shape[:2]
    if features_GKD.shape[-1] != config.dim:
        raise ValueError(f"features have D={features_GKD.shape[-1]}, the config says dim={config.dim}")
    if correct_GK.shape != shape_GK or correct_GK.dtype != torch.bool:
        raise ValueError(f"correct_GK must be bool {tuple(shape_GK)}, got {correct_GK.dtype} {tuple(correct_GK.shape)}")
    if lengths_GK is not None and lengths_GK.shape != shape_GK:
        raise ValueError(f"lengths_GK must be {tuple(shape_GK)}, got {tuple(lengths_GK.shape)}")
