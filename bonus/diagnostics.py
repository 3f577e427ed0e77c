"""What one step's bonuses look like, measured and returned. Legend: G groups, K responses, D projected size.

A value that the step cannot define (no group of two or more valid responses, constant lengths) is None.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bonus.elliptical import RELATIVE_ZERO_STD, group_mean_and_std, ridged

NO_SIGNAL_SPREAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class BonusDiagnostics:
    """One step, as numbers. "Raw" is before normalisation and gate; "comparable groups" have at least two valid responses."""

    bonus_mean: float | None
    """Mean over valid responses of the bonus as returned."""
    spread: float | None
    """Median over comparable groups of the standard deviation (ddof=1) of the raw leverage. Always 0 for groups of two."""
    distance_to_saturation: float | None
    """Mean over comparable groups' valid responses of (1 - 1/K) - leverage, K counting the valid ones. With memory="none" 0 means that the
    bonus can no longer tell responses apart; with memory="run" it is far from 0 even then."""
    effective_rank: float
    """Mean over groups of trace(Sigma)^2 / trace(Sigma^2), between 1 and D."""
    ridge_to_energy: float | None
    """ridge / (trace(X'X) / D), X'X averaged over groups: far below 1 is the saturated regime."""
    length_correlation: float | None
    """Pearson correlation of raw bonus and response length within groups (both less their group mean, then pooled)."""
    gated_out_share: float
    """Share of groups in which the gate keeps no response."""
    num_empty: int
    """Responses without a feature."""


def carries_no_signal(diagnostics: BonusDiagnostics) -> bool:
    """True when the median spread is below 1e-3: the bonus then orders responses almost only where all rewards are equal. Warn once."""
    return diagnostics.spread is not None and diagnostics.spread < NO_SIGNAL_SPREAD


def median_spread(leverage_GK: Tensor, valid_GK: Tensor) -> float | None:
    """Median over comparable groups of the leverage's standard deviation."""
    _, std_G1 = group_mean_and_std(leverage_GK, valid_GK)
    std_C = std_G1[:, 0][valid_GK.sum(dim=1) > 1]
    return float(std_C.quantile(0.5)) if len(std_C) else None


def distance_to_saturation(leverage_GK: Tensor, valid_GK: Tensor) -> float | None:
    """Mean of (1 - 1/K) - leverage over the valid responses of comparable groups."""
    count_G1 = valid_GK.sum(dim=1, keepdim=True)
    distance_GK = 1.0 - 1.0 / count_G1.clamp(min=1) - leverage_GK
    return _mean(distance_GK[valid_GK & (count_G1 > 1)])


def effective_rank(centred_GKD: Tensor, *, ridge: float, prior: Tensor | None) -> float:
    """Mean over groups of the participation ratio trace(Sigma)^2 / trace(Sigma^2), with A = lam*I + P and Sigma = A + X'X.

    trace(Sigma^2) = ||A||^2 + 2 sum_i x_i' A x_i + ||X X'||^2 (Frobenius), which needs neither eigenvalues nor a D x D matrix per group.
    """
    base_DD = ridged(prior, ridge, like=centred_GKD)
    trace_G = base_DD.trace() + centred_GKD.square().sum(dim=(1, 2))
    cross_G = (centred_GKD @ base_DD * centred_GKD).sum(dim=(1, 2))
    gram_GKK = centred_GKD @ centred_GKD.mT
    square_G = base_DD.square().sum() + 2.0 * cross_G + gram_GKK.square().sum(dim=(1, 2))
    return float((trace_G.square() / square_G).mean())


def ridge_to_energy(centred_GKD: Tensor, *, ridge: float) -> float | None:
    """ridge / (trace(X'X) / D) with X'X averaged over the groups of the step; None where all features are equal."""
    trace = float(centred_GKD.square().sum(dim=(1, 2)).mean())
    return ridge * centred_GKD.shape[-1] / trace if trace > 0 else None


def length_correlation(raw_bonus_GK: Tensor, lengths_GK: Tensor, valid_GK: Tensor) -> float | None:
    """Pooled within-group Pearson correlation: what an advantage sees, since it subtracts the group mean. None if either is constant."""
    bonus_GK = _less_group_mean(raw_bonus_GK, valid_GK)
    length_GK = _less_group_mean(lengths_GK.double(), valid_GK)
    if not bonus_GK.any() or not length_GK.any():
        return None
    return float((bonus_GK * length_GK).sum() / (bonus_GK.norm() * length_GK.norm()))


def _less_group_mean(values_GK: Tensor, valid_GK: Tensor) -> Tensor:
    """Each value less its group's mean; exactly 0 throughout where what is left is rounding."""
    mean_G1, _ = group_mean_and_std(values_GK, valid_GK)
    deviation_GK = torch.where(valid_GK, values_GK - mean_G1, 0.0)
    scale = torch.where(valid_GK, values_GK, 0.0).abs().max()
    return torch.where(deviation_GK.abs() > RELATIVE_ZERO_STD * scale, deviation_GK, 0.0)


def _mean(values_N: Tensor) -> float | None:
    return float(values_N.mean()) if len(values_N) else None


def diagnose(
    *,
    bonus_GK: Tensor,
    raw_bonus_GK: Tensor,
    leverage_GK: Tensor,
    centred_GKD: Tensor,
    valid_GK: Tensor,
    kept_GK: Tensor,
    ridge: float,
    prior: Tensor | None,
    lengths_GK: Tensor | None,
) -> BonusDiagnostics:
    """Measure one scored step; `kept_GK` is the gate's mask, `prior` the second moment that the step was scored against."""
    return BonusDiagnostics(
        bonus_mean=_mean(bonus_GK[valid_GK]),
        spread=median_spread(leverage_GK, valid_GK),
        distance_to_saturation=distance_to_saturation(leverage_GK, valid_GK),
        effective_rank=effective_rank(centred_GKD, ridge=ridge, prior=prior),
        ridge_to_energy=ridge_to_energy(centred_GKD, ridge=ridge),
        length_correlation=None if lengths_GK is None else length_correlation(raw_bonus_GK, lengths_GK, valid_GK),
        gated_out_share=float((~kept_GK.any(dim=1)).double().mean()),
        num_empty=int((~valid_GK).sum()),
    )
