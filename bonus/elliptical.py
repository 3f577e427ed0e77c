"""The elliptical bonus of a batch of groups, as pure functions in float64 (equations of arXiv:2510.11686). Legend: G
groups, K responses per group, D projected size. `valid_GK` is False where an empty response has no feature."""

import math

import torch
from torch import Tensor

from bonus.config import BonusNormalise, Gate

RELATIVE_ZERO_STD = 1e-9
"""A group's std up to this fraction of its largest bonus is rounding: two responses' leverages differ by 1e-17."""


def leverage(features_GKD: Tensor, *, ridge: float, prior: Tensor | None = None, valid_GK: Tensor | None = None) -> Tensor:
    """Center each group and return its leverage_GK (`center`, `centered_leverage`). `prior` is P: D x D if all groups
    share it, G x D x D if each has its own, None for 0. Raises ValueError, naming where, for a feature not finite."""
    if valid_GK is None:
        valid_GK = torch.ones(features_GKD.shape[:2], dtype=torch.bool, device=features_GKD.device)
    return centered_leverage(center(features_GKD, valid_GK), ridge=ridge, prior=prior)


def center(features_GKD: Tensor, valid_GK: Tensor) -> Tensor:
    """Subtract from each feature its group's mean over valid responses: x_i = h_i - mean_j h_j, in float64. An empty
    response takes the group mean, so its row is 0 and its feature is not read. This is ours: the paper does not say.
    Features are first taken relative to the group's first valid one, which leaves x unchanged and makes identical
    features exactly 0. Raises ValueError for wrong shapes and for a valid feature that is not finite."""
    check_features(features_GKD, valid_GK)
    features_GKD = features_GKD.double()
    first_G11 = valid_GK.int().argmax(dim=1)[:, None, None]
    reference_G1D = features_GKD.take_along_dim(first_G11, dim=1)
    valid_GK1 = valid_GK[:, :, None]
    shifted_GKD = torch.where(valid_GK1, features_GKD - reference_G1D, 0.0)
    mean_G1D = shifted_GKD.sum(dim=1, keepdim=True) / valid_GK1.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(valid_GK1, shifted_GKD - mean_G1D, 0.0)


def centered_leverage(centered_GKD: Tensor, *, ridge: float, prior: Tensor | None = None) -> Tensor:
    """Return leverage_i = x_i' (lam*I + P + X'X)^-1 x_i for each row x_i of each centered group X (arXiv:2510.11686).
    It lies in [0, 1 - 1/K]: a row centered by its group never has more. The authors carry the D x D inverse through one
    rank-one update a response. This takes the cheaper of two forms: the dual (K < D), or the primal (K >= D, or a P of
    each group's own). Relative error against an SVD, D=32, K=8: primal 2e-15 throughout; dual 7e-13 at trace(X'X) / lam
    = 1e5 (the authors' setting), 5e-11 at 1e7, 8e-9 at 1e9."""
    if not ridge > 0:
        raise ValueError(f"ridge={ridge} must be > 0")
    G, K, D = centered_GKD.shape
    if prior is not None and prior.shape not in {(D, D), (G, D, D)}:
        raise ValueError(f"prior has shape {tuple(prior.shape)}, features need ({D}, {D}) or ({G}, {D}, {D})")
    form = primal_leverage if K >= D or (prior is not None and prior.dim() == 3) else dual_leverage
    return form(centered_GKD, ridge=ridge, prior=prior)


def primal_leverage(centered_GKD: Tensor, *, ridge: float, prior: Tensor | None = None) -> Tensor:
    """Return leverage_i = ||L^-1 x_i||^2 with L L' = lam*I + P + X'X: one D x D Cholesky per group, batched."""
    sigma_GDD = ridged(prior, ridge, like=centered_GKD) + centered_GKD.mT @ centered_GKD
    whitened_GDK: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(sigma_GDD), centered_GKD.mT, upper=False)
    return whitened_GDK.square().sum(dim=1)


def dual_leverage(centered_GKD: Tensor, *, ridge: float, prior: Tensor | None = None) -> Tensor:
    """Return leverage = diag((I + B)^-1 B), B = X (lam*I + P)^-1 X': one K x K Cholesky a group, one D x D for P."""
    if prior is None:
        gram_GKK = centered_GKD @ centered_GKD.mT / ridge
    else:
        whitened_GKD = whiten(centered_GKD.flatten(0, 1), ridge=ridge, prior=prior).view_as(centered_GKD)
        gram_GKK = whitened_GKD @ whitened_GKD.mT
    identity_KK = torch.eye(gram_GKK.shape[-1], dtype=gram_GKK.dtype, device=gram_GKK.device)
    hat_GKK = torch.cholesky_solve(gram_GKK, torch.linalg.cholesky(identity_KK + gram_GKK))
    return hat_GKK.diagonal(dim1=1, dim2=2).clamp(min=0.0)


def whiten(rows_ND: Tensor, *, ridge: float, prior: Tensor | None) -> Tensor:
    """Return L^-1 x of each row x, with L L' = lam*I + P (D x D), so that ||L^-1 x||^2 = x' (lam*I + P)^-1 x."""
    if prior is None:
        return rows_ND / math.sqrt(ridge)
    factor_DD = torch.linalg.cholesky(ridged(prior, ridge, like=rows_ND))
    whitened_DN: Tensor = torch.linalg.solve_triangular(factor_DD, rows_ND.mT, upper=False)
    return whitened_DN.mT.contiguous()


def ridged(prior: Tensor | None, ridge: float, *, like: Tensor) -> Tensor:
    """Return lam*I + P with the shape of P (D x D for none), and the dtype, device and D of `like`."""
    scaled_identity_DD = ridge * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return scaled_identity_DD if prior is None else scaled_identity_DD + prior


def leave_one_out(leverage: Tensor) -> Tensor:
    """Return x_i' (Sigma - x_i x_i')^-1 x_i = leverage_i / (1 - leverage_i): response i against the others alone. The
    identity is Sherman-Morrison's. At leverage 0.9997 float32 is wrong by 22 %. Raises ValueError outside [0, 1)."""
    if not ((leverage >= 0) & (leverage < 1)).all():
        raise ValueError(f"leverages must lie in [0, 1), got {leverage.min().item()} to {leverage.max().item()}")
    return leverage / (1.0 - leverage)


def logdet_gain(leverage: Tensor) -> Tensor:
    """Return log det(I + K/lam) - log det(I + K_{-i}/lam) = -log(1 - leverage_i), what response i adds to the volume of
    its group. K is the Gram matrix of the centered features, and K_{-i} that without row i. The identity is the
    determinant lemma: det(Sigma - x_i x_i') = det(Sigma) (1 - leverage_i)."""
    return -torch.log1p(-leverage)


def group_mean_and_std(values_GK: Tensor, valid_GK: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std (ddof=1) over each group's valid values, G x 1 each, 0 where too few values define it."""
    count_G1 = valid_GK.sum(dim=1, keepdim=True)
    mean_G1 = torch.where(valid_GK, values_GK, 0.0).sum(dim=1, keepdim=True) / count_G1.clamp(min=1)
    deviation_GK = torch.where(valid_GK, values_GK - mean_G1, 0.0)
    variance_G1 = deviation_GK.square().sum(dim=1, keepdim=True) / (count_G1 - 1).clamp(min=1)
    return mean_G1, variance_G1.sqrt()


def normalise_bonus(bonus_GK: Tensor, valid_GK: Tensor, normalise: BonusNormalise) -> Tensor:
    """Return, over each group's valid responses, b ("none"), b / std ("std") or (b - mean) / std ("zscore"). An empty
    response keeps 0. Where std is zero up to rounding (`RELATIVE_ZERO_STD`), "std" leaves the group as it is and
    "zscore" makes it 0. The paper's runs use "none"."""
    bonus_GK = torch.where(valid_GK, bonus_GK, 0.0)
    if normalise == "none":
        return bonus_GK
    mean_G1, std_G1 = group_mean_and_std(bonus_GK, valid_GK)
    spreads_G1 = std_G1 > RELATIVE_ZERO_STD * bonus_GK.abs().amax(dim=1, keepdim=True)
    divisor_G1 = torch.where(spreads_G1, std_G1, 1.0)
    if normalise == "std":
        return bonus_GK / divisor_G1
    return torch.where(valid_GK & spreads_G1, (bonus_GK - mean_G1) / divisor_G1, 0.0)


def gate_mask(correct_GK: Tensor, gate: Gate) -> Tensor:
    """Return which responses keep their bonus, G x K bool. One choice replaces the four overlapping switches of the
    authors' code. An empty response counts as a wrong answer. The paper's runs use "group_has_correct"."""
    some_G1 = correct_GK.any(dim=1, keepdim=True)
    all_G1 = correct_GK.all(dim=1, keepdim=True)
    masks: dict[Gate, Tensor] = {
        "always": torch.ones_like(some_G1),
        "group_has_correct": some_G1,
        "group_not_all_correct": ~all_G1,
        "group_mixed": some_G1 & ~all_G1,
        "correct_only": correct_GK,
    }
    return masks[gate].expand_as(correct_GK)


def check_features(features_GKD: Tensor, valid_GK: Tensor) -> None:
    """Raise ValueError for wrong shapes and for a valid feature that is not finite, naming its group and response."""
    if features_GKD.dim() != 3 or 0 in features_GKD.shape:
        raise ValueError(f"features must be G x K x D, none of them 0, got {tuple(features_GKD.shape)}")
    if valid_GK.shape != features_GKD.shape[:2] or valid_GK.dtype != torch.bool:
        raise ValueError(f"valid_GK must be bool {tuple(features_GKD.shape[:2])}, got {valid_GK.dtype} {tuple(valid_GK.shape)}")
    broken_NX = (valid_GK & ~features_GKD.isfinite().all(dim=2)).nonzero()
    if len(broken_NX):
        group, response = broken_NX[0].tolist()
        raise ValueError(f"non-finite feature in group {group}, response {response} ({len(broken_NX)} such responses in this step)")
