"""What one step's bonuses look like. Legend: G groups, K responses, D projected size. A value that the step cannot
define (no group of two valid responses, constant lengths) is None; a value that one group cannot define is NaN. A
"comparable" group has at least two valid responses. X and Sigma are those of `bonus.elliptical.centered_leverage`.
Under memory="prompt" X is centered by the mean of all the prompt's responses so far, and Sigma holds all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bonus.elliptical import RELATIVE_ZERO_STD, group_mean_and_std, ridged

NO_SIGNAL_SPREAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class BonusDiagnostics:
    """The numbers of one step. "Raw" means before normalisation, gate and staleness discount."""

    bonus_mean: float | None  # mean over valid responses of the bonus as returned
    spread: float | None
    """Median over comparable groups of the leverage's standard deviation (ddof=1); 0 for pairs without memory."""
    distance_to_saturation: float | None
    """Mean over comparable groups' valid responses of (1 - 1/n) - leverage. n counts the responses that the center is
    the mean of: the group's valid ones, or with memory="prompt" the prompt's so far. With memory="none" 0 means that
    the bonus can no longer tell responses apart; with memory="run" it is far from 0 even then."""
    effective_rank: float  # mean over groups of trace(Sigma)^2 / trace(Sigma^2), between 1 and D
    ridge_to_energy: float | None
    """ridge / (trace(X'X) / D), X'X of a group's own responses, averaged. Far below 1 the leverage is saturated."""
    length_correlation: float | None
    """Pearson correlation of raw bonus and response length within groups (both less their group mean, then pooled)."""
    gated_out_share: float  # share of groups in which the gate keeps no response
    num_empty: int  # responses without a feature


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupDiagnostics:
    """The numbers of every group, float64 of shape (G,); NaN where the group does not define one."""

    spread_G: Tensor  # standard deviation (ddof=1) of the leverage; NaN for a group that is not comparable
    distance_to_saturation_G: Tensor  # mean over valid responses of (1 - 1/n) - leverage; NaN for a group that is not comparable
    effective_rank_G: Tensor  # trace(Sigma)^2 / trace(Sigma^2), between 1 and D; always defined
    length_correlation_G: Tensor
    """Pearson correlation of raw bonus and response length; NaN where either is constant or lengths are not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredGroups:
    """A scored step with everything that its bonuses were made of."""

    centered_GKD: Tensor  # X, 0 for an empty response
    prior: Tensor | None  # P: D x D, G x D x D, or None for 0
    ridge: float
    seen_G: Tensor  # n, the number of responses that each group's center is the mean of
    valid_GK: Tensor
    lengths_GK: Tensor | None
    leverage_GK: Tensor
    raw_bonus_GK: Tensor  # before normalisation, gate and staleness discount
    kept_GK: Tensor  # the gate's mask
    bonus_GK: Tensor  # as returned


def carries_no_signal(diagnostics: BonusDiagnostics) -> bool:
    """Return whether the median spread is below 1e-3: the bonus then orders almost only where all rewards are equal."""
    return diagnostics.spread is not None and diagnostics.spread < NO_SIGNAL_SPREAD


def spread(leverage_GK: Tensor, valid_GK: Tensor) -> Tensor:
    """Return spread_G, the standard deviation (ddof=1) of the leverage; NaN for a group that is not comparable."""
    _, std_G1 = group_mean_and_std(leverage_GK, valid_GK)
    return torch.where(valid_GK.sum(dim=1) > 1, std_G1[:, 0], torch.nan)


def below_saturation(leverage_GK: Tensor, valid_GK: Tensor, seen_G: Tensor) -> Tensor:
    """Return distance_GK = (1 - 1/n) - leverage with n = `seen_G`; NaN outside comparable groups' valid responses."""
    comparable_G1 = valid_GK.sum(dim=1, keepdim=True) > 1
    distance_GK = 1.0 - 1.0 / seen_G[:, None].double().clamp(min=1) - leverage_GK
    return torch.where(valid_GK & comparable_G1, distance_GK, torch.nan)


def effective_rank(centered_GKD: Tensor, *, ridge: float, prior: Tensor | None) -> Tensor:
    """Return effective_rank_G, the participation ratio trace(Sigma)^2 / trace(Sigma^2), Sigma = lam*I + P + X'X. With
    A = lam*I + P, trace(Sigma^2) = ||A||^2 + 2 sum_i x_i' A x_i + ||X X'||^2 (Frobenius norms). This needs no
    eigenvalues, and where all groups share P, no D x D matrix per group."""
    base = ridged(prior, ridge, like=centered_GKD)
    trace_G = base.diagonal(dim1=-2, dim2=-1).sum(-1) + centered_GKD.square().sum(dim=(1, 2))
    cross_G = (centered_GKD @ base * centered_GKD).sum(dim=(1, 2))
    gram_GKK = centered_GKD @ centered_GKD.mT
    square_G = base.square().sum(dim=(-2, -1)) + 2.0 * cross_G + gram_GKK.square().sum(dim=(1, 2))
    return trace_G.square() / square_G


def ridge_to_energy(centered_GKD: Tensor, *, ridge: float) -> float | None:
    """Return ridge / (trace(X'X) / D), X'X averaged over the groups; None where all features are equal."""
    trace = float(centered_GKD.square().sum(dim=(1, 2)).mean())
    return ridge * centered_GKD.shape[-1] / trace if trace > 0 else None


def length_correlation(raw_bonus_GK: Tensor, lengths_GK: Tensor, valid_GK: Tensor) -> float | None:
    """Return the Pearson correlation of deviations from the group mean, pooled over groups; None if either is constant.
    An advantage sees these deviations, since it subtracts the group mean."""
    bonus_GK = _less_group_mean(raw_bonus_GK, valid_GK)
    length_GK = _less_group_mean(lengths_GK.double(), valid_GK)
    if not bonus_GK.any() or not length_GK.any():
        return None
    return float((bonus_GK * length_GK).sum() / (bonus_GK.norm() * length_GK.norm()))


def length_correlations(raw_bonus_GK: Tensor, lengths_GK: Tensor, valid_GK: Tensor) -> Tensor:
    """Return length_correlation_G, the Pearson correlation within each group; NaN (0 / 0) if either is constant."""
    bonus_GK = _less_group_mean(raw_bonus_GK, valid_GK)
    length_GK = _less_group_mean(lengths_GK.double(), valid_GK)
    correlation_G: Tensor = (bonus_GK * length_GK).sum(dim=1) / (bonus_GK.norm(dim=1) * length_GK.norm(dim=1))
    return correlation_G


def _less_group_mean(values_GK: Tensor, valid_GK: Tensor) -> Tensor:
    mean_G1, _ = group_mean_and_std(values_GK, valid_GK)
    deviation_GK = torch.where(valid_GK, values_GK - mean_G1, 0.0)
    scale_G1 = torch.where(valid_GK, values_GK, 0.0).abs().amax(dim=1, keepdim=True)
    return torch.where(deviation_GK.abs() > RELATIVE_ZERO_STD * scale_G1, deviation_GK, 0.0)  # less is rounding


def _mean(values_N: Tensor) -> float | None:
    return float(values_N.mean()) if len(values_N) else None


def diagnose_groups(scored: ScoredGroups) -> GroupDiagnostics:
    """Measure every group by itself."""
    spread_G = spread(scored.leverage_GK, scored.valid_GK)
    correlation_G = torch.full_like(spread_G, torch.nan)
    if scored.lengths_GK is not None:
        correlation_G = length_correlations(scored.raw_bonus_GK, scored.lengths_GK, scored.valid_GK)
    return GroupDiagnostics(
        spread_G=spread_G,
        distance_to_saturation_G=below_saturation(scored.leverage_GK, scored.valid_GK, scored.seen_G).nanmean(dim=1),
        effective_rank_G=effective_rank(scored.centered_GKD, ridge=scored.ridge, prior=scored.prior),
        length_correlation_G=correlation_G,
    )


def diagnose(scored: ScoredGroups, groups: GroupDiagnostics) -> BonusDiagnostics:
    """Measure the step as a whole; `groups` is what `diagnose_groups` measured."""
    lengths_GK, spread_C = scored.lengths_GK, groups.spread_G[~groups.spread_G.isnan()]
    distance_GK = below_saturation(scored.leverage_GK, scored.valid_GK, scored.seen_G)
    return BonusDiagnostics(
        bonus_mean=_mean(scored.bonus_GK[scored.valid_GK]),
        spread=float(spread_C.quantile(0.5)) if len(spread_C) else None,
        distance_to_saturation=_mean(distance_GK[~distance_GK.isnan()]),
        effective_rank=float(groups.effective_rank_G.mean()),
        ridge_to_energy=ridge_to_energy(scored.centered_GKD, ridge=scored.ridge),
        length_correlation=None if lengths_GK is None else length_correlation(scored.raw_bonus_GK, lengths_GK, scored.valid_GK),
        gated_out_share=float((~scored.kept_GK.any(dim=1)).double().mean()),
        num_empty=int((~scored.valid_GK).sum()),
    )
