"""Greedy elliptical selection of the candidates to verify first (arXiv:2510.11686, Algorithm 1).

    indices_k, scores_k = select(features_ND, k, ridge=1.0)

Legend: N candidates, D projected size, k picks, T picks of one fold, M candidates of one panel."""

import math

import torch
from torch import Tensor

from bonus.elliptical import whiten

SAME_SCORE = 1e-12
"""Scores that differ by less than this fraction of a candidate's own first score are a tie. Over hundreds of picks
rounding moves a score by some 1e-14 of it, and where BLAS puts two copies of one response must not matter."""

PANEL = 256
"""Candidates that compete between two looks at the whole pool. From 128 to 512 the cost differs by less than half."""


def select(features_ND: Tensor, k: int, *, ridge: float, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pick min(k, N) candidates one after the other, each the one that the earlier picks explain least (`_greedy`).
    Every step picks the candidate with the largest x' Lambda x, with Lambda = (lam*I + P + sum of x x' over the
    picks)^-1. `prior` is P (D x D); None stands for 0. Returns (indices_k int64, scores_k float64) on the features'
    device. A score is x' Lambda x at the time of the pick, and scores never rise. Ties go to the lowest index, so
    identical candidates come in index order. Candidates that are 0 come after all others. Features are taken as they
    are: center them first if that is meant. This deviates from the paper in two ways: it computes in float64, and it
    makes no D x D update per pick. After every D picks these are folded into P, and one D x D Cholesky starts afresh,
    which ends the rounding of the downdates. The cost is O(N k D), most of it in matrix products. Raises ValueError for
    k < 0, ridge <= 0, features that are not N x D, a prior that does not fit, and, by name, a candidate not finite."""
    features_ND = _checked(features_ND, k, ridge, prior)
    num_picks = min(k, len(features_ND))
    picks: list[int] = []
    scores: list[float] = []
    while len(picks) < num_picks:
        rows_ND = whiten(features_ND, ridge=ridge, prior=_with_picks(prior, features_ND[picks]))
        more_picks, more_scores = _greedy(rows_ND, picks, min(features_ND.shape[1], num_picks - len(picks)))
        picks += more_picks
        scores += more_scores
    indices_k = torch.tensor(picks, dtype=torch.int64, device=features_ND.device)
    scores_k = torch.tensor(scores, dtype=torch.float64, device=features_ND.device)
    return indices_k, scores_k.cummin(dim=0).values if picks else scores_k


def _checked(features_ND: Tensor, k: int, ridge: float, prior: Tensor | None) -> Tensor:
    if k < 0 or not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"k={k} must be >= 0 and ridge={ridge} finite and > 0")
    if features_ND.dim() != 2 or features_ND.shape[1] == 0:
        raise ValueError(f"features must be N x D with D > 0, got {tuple(features_ND.shape)}")
    dim = features_ND.shape[1]
    if prior is not None and prior.shape != (dim, dim):
        raise ValueError(f"prior has shape {tuple(prior.shape)}, features need ({dim}, {dim})")
    features_ND = features_ND.double()
    broken_X = (~(_energy(features_ND) / ridge).isfinite()).nonzero()[:, 0]
    if len(broken_X):
        raise ValueError(f"candidate {int(broken_X[0])} is not finite, or its energy / ridge is not ({len(broken_X)} such candidates)")
    return features_ND


def _with_picks(prior: Tensor | None, picked_kD: Tensor) -> Tensor | None:
    if not len(picked_kD):
        return prior
    moment_DD = picked_kD.mT @ picked_kD
    return moment_DD if prior is None else prior + moment_DD


def _greedy(rows_ND: Tensor, taken: list[int], num_picks: int) -> tuple[list[int], list[float]]:
    """Factor the candidates' kernel W W' + I by pivoted Cholesky, in float64, without forming the kernel. The rows w of
    W are whitened, so Lambda_0 = I and a score starts at ||w||^2. By Sherman-Morrison, picking p of score s is

        u = Lambda w_p / sqrt(1 + s),    Lambda <- Lambda - u u',    score_i <- score_i - (w_i' u)^2,

    with Lambda = I - U'U kept as its directions U (T x D). The numbers w_i' u are the columns of the Cholesky factor.
    Scores only fall, so an old score is an upper bound. Hence only a panel of the best M candidates follows every pick,
    while its best beats every old score outside. Then one product updates the whole pool. The picks are the same."""
    first_score_N = _energy(rows_ND)
    slack_N = SAME_SCORE * first_score_N
    score_N = first_score_N.clone()
    score_N[taken] = -math.inf
    directions_TD = rows_ND.new_empty(num_picks, rows_ND.shape[1])
    picks: list[int] = []
    scores: list[float] = []
    while len(picks) < num_picks:
        start = len(picks)
        panel_M, outside = _panel(score_N, slack_N)
        panel_rows_MD, panel_score_M, panel_slack_M = rows_ND[panel_M], score_N[panel_M], slack_N[panel_M]
        pick, score = _first_of_the_best(score_N, slack_N)
        while True:
            row_D, earlier_TD = rows_ND[pick], directions_TD[: len(picks)]
            direction_D = (row_D - earlier_TD.mT @ (earlier_TD @ row_D)) / math.sqrt(1.0 + score)
            directions_TD[len(picks)] = direction_D
            picks.append(pick)
            scores.append(score)
            if len(picks) == num_picks:
                return picks, scores
            panel_score_M -= (panel_rows_MD @ direction_D).square()
            panel_score_M[panel_M == pick] = -math.inf
            if not panel_score_M.max() > outside:
                break
            place, score = _first_of_the_best(panel_score_M, panel_slack_M)
            pick = int(panel_M[place])
        score_N -= (rows_ND @ directions_TD[start : len(picks)].mT).square().sum(dim=1)
        score_N[picks[start:]] = -math.inf
    return picks, scores


def _panel(score_N: Tensor, slack_N: Tensor) -> tuple[Tensor, float]:
    """Return the best candidates, in index order, and the most that one outside can score (-inf where none is)."""
    if len(score_N) <= PANEL:
        return torch.arange(len(score_N), device=score_N.device), -math.inf
    panel_M = score_N.topk(PANEL, sorted=False).indices.sort().values
    return panel_M, float((score_N + slack_N).index_fill_(0, panel_M, -math.inf).max())


def _first_of_the_best(score_N: Tensor, slack_N: Tensor) -> tuple[int, float]:
    """Return the lowest index whose score ties with the highest one, and that score. A score below 0 is rounding."""
    index = int((score_N + slack_N >= score_N.max()).int().argmax())
    return index, max(float(score_N[index]), 0.0)


def _energy(rows_ND: Tensor) -> Tensor:
    norm_N: Tensor = torch.linalg.vector_norm(rows_ND, dim=1)  # without a second N x D tensor
    return norm_N.square()
