"""The orders in which the candidates of one pool may be verified: novelty, and what it is compared with.

    order_N = order_pool("repexp", pool, config)      # int64, a permutation of the candidates: verify order_N[:k]

Every order is complete and deterministic. Ties go to the lowest index. Candidates without a feature (empty responses,
`valid_N` False) come last, in index order. Legend: N candidates, V those with a feature, D projected size."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bonus.config import SelectionConfig
from bonus.coreset import select
from bonus.covariance import RIDGE_FLOOR
from bonus.elliptical import center

Ridge = float | Literal["auto"]

DETERMINANTAL_RIDGE = 1e-4
"""Small against the energy 1 of unit-length features: a pick adds the same to log det(I + K / ridge) and log det(K)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The candidates of one prompt. Where `valid_N` is False the feature and the log-prob are not read."""

    features_ND: Tensor  # hidden states pooled over each candidate's tokens, projected
    valid_N: Tensor  # bool: False for an empty response
    mean_logprob_N: Tensor  # mean log-prob of the candidate's tokens under the sampler, in nats
    lengths_N: Tensor  # lengths in tokens
    answers: Sequence[str | None]  # the final answer that each response states, None where it states none


@dataclass(frozen=True)
class Order:
    """One way to order a pool. `rank` may leave empty candidates where they fall."""

    description: str
    rank: Callable[[Pool, SelectionConfig], Tensor]


def order_pool(name: str, pool: Pool, config: SelectionConfig) -> Tensor:
    """Return the order `name` of `ORDERS`. Raises ValueError for another name, or a pool not finite or not fitting."""
    if name not in ORDERS:
        raise ValueError(f"unknown order {name!r}; there are: {', '.join(ORDERS)}")
    _check_pool(pool, config)
    order_N = ORDERS[name].rank(pool, config).to(pool.valid_N.device)
    return torch.cat([order_N[pool.valid_N[order_N]], (~pool.valid_N).nonzero()[:, 0]])


def scored_order(name: str, pool: Pool, config: SelectionConfig) -> tuple[Tensor, Tensor]:
    """Return (order_N, score_N) of the order repexp or quality. score_N[t] is x' Lambda x of the t-th pick at the time
    of the pick; NaN for an empty candidate. Raises ValueError as `order_pool`, and for an order without scores."""
    if name not in ("repexp", "quality"):
        raise ValueError(f"the order {name!r} has no scores; repexp and quality have")
    _check_pool(pool, config)
    if name == "repexp":
        features_VD = repexp_features(pool.features_ND, pool.valid_N, center=config.center)
    else:
        features_VD = quality_features(pool.features_ND, pool.valid_N, pool.mean_logprob_N, exponent=config.quality_exponent)
    return _greedy(features_VD, pool.valid_N, config.ridge)


def repexp_order(features_ND: Tensor, valid_N: Tensor, *, ridge: Ridge, center: Literal["none", "pool"]) -> Tensor:
    """Return the order of the paper's Algorithm 1, to the last candidate. The paper centers by the pool and draws its
    first pick at random; here the first pick is the one of highest energy. Ridge "auto" is ours."""
    return _greedy(repexp_features(features_ND, valid_N, center=center), valid_N, ridge)[0]


def quality_order(features_ND: Tensor, valid_N: Tensor, mean_logprob_N: Tensor, *, ridge: Ridge, exponent: float) -> Tensor:
    """Return the order of the greedy selection over `quality_features`: novelty weighted with likelihood (ours). The
    paper's selection picks a small model's incoherent answers first. On 60 two-digit sums (SmolLM2-135M, pools of 64,
    1.1 % right) its first 8 hold a right answer in 0.00 of the problems that have one. Random ones do in 0.25, the
    likeliest 8 in 0.65, and this order in 0.65 (a = 1, lam = 1)."""
    return _greedy(quality_features(features_ND, valid_N, mean_logprob_N, exponent=exponent), valid_N, ridge)[0]


def determinantal_order(features_ND: Tensor, valid_N: Tensor) -> Tensor:
    """Return the greedy most likely order of a determinantal point process with kernel K = X X'. X holds the centered
    features at unit length. Each pick maximizes det(K_S) over the picks S so far. det(K_S + r I) with a small r stands
    in for it, and still orders candidates once K has no rank left. This is the elliptical selection with ridge r: by
    Sherman-Morrison a pick multiplies det(I + K_S / r) by 1 + x' Lambda x."""
    return _greedy(_unit_length(_centered(features_ND[valid_N])), valid_N, DETERMINANTAL_RIDGE)[0]


def kmeans_order(features_ND: Tensor, valid_N: Tensor, *, max_clusters: int, seed: int) -> Tensor:
    """Return the candidate nearest the center of each k-means cluster, the largest cluster first, then the rest.
    scikit-learn makes min(max_clusters, distinct features) clusters. Raises ImportError where it is not installed."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # takes a second to import, and only this order needs it

    features_VD = features_ND[valid_N].double()
    if not len(features_VD):
        return _among_all(valid_N.new_empty(0, dtype=torch.int64), valid_N)
    num_clusters = min(max_clusters, len(features_VD.unique(dim=0)))
    fitted = KMeans(num_clusters, n_init=4, random_state=seed).fit(features_VD.cpu().numpy())
    cluster_V = torch.from_numpy(fitted.labels_).long().to(features_VD.device)
    center_CD = torch.from_numpy(fitted.cluster_centers_).to(features_VD)
    distance_V = torch.linalg.vector_norm(features_VD - center_CD[cluster_V], dim=1)
    members = [(cluster_V == cluster).nonzero()[:, 0] for cluster in cluster_V.unique().tolist()]
    nearest = [(len(member_X), int(member_X[distance_V[member_X].argmin()])) for member_X in members]
    first_C = torch.tensor([index for _, index in sorted(nearest, key=lambda each: (-each[0], each[1]))], device=features_VD.device)
    is_rest_V = torch.ones(len(features_VD), dtype=torch.bool, device=features_VD.device).index_fill(0, first_C, False)
    return _among_all(torch.cat([first_C, is_rest_V.nonzero()[:, 0]]), valid_N)


def random_order(num_candidates: int, seed: int) -> Tensor:
    return torch.randperm(num_candidates, generator=torch.Generator().manual_seed(seed))  # drawn on the CPU


def likeliest_order(mean_logprob_N: Tensor, valid_N: Tensor) -> Tensor:
    return _among_all(mean_logprob_N[valid_N].argsort(descending=True, stable=True), valid_N)


def unlikeliest_order(mean_logprob_N: Tensor, valid_N: Tensor) -> Tensor:
    """Return the candidates by mean log-prob, the lowest first: novelty without representations."""
    return _among_all(mean_logprob_N[valid_N].argsort(stable=True), valid_N)


def longest_order(lengths_N: Tensor, valid_N: Tensor) -> Tensor:
    """Return the longest candidates first. Novelty of mean-pooled features must beat this if it is more than length."""
    return _among_all(lengths_N[valid_N].argsort(descending=True, stable=True), valid_N)


def outcome_first(order_N: Tensor, answers: Sequence[str | None]) -> Tensor:
    """Return the first candidate of each distinct answer, then each second one, ..., then those without an answer; each
    time in the order of `order_N`. With the candidates as they were sampled this is the order distinct_answers."""
    seen: defaultdict[str, int] = defaultdict(int)
    places: list[tuple[float, int, int]] = []
    for place, index in enumerate(order_N.tolist()):
        answer = answers[index]
        places.append((float("inf") if answer is None else seen[answer], place, index))
        if answer is not None:
            seen[answer] += 1
    return torch.tensor([index for _, _, index in sorted(places)], dtype=torch.int64)


def votes_order(answers: Sequence[str | None]) -> Tensor:
    """Return the candidates by the number that state the same answer, the most first; none without an answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    votes_N = [0 if answer is None else votes[answer] for answer in answers]
    return torch.tensor(sorted(range(len(answers)), key=lambda index: -votes_N[index]), dtype=torch.int64)


def repexp_features(features_ND: Tensor, valid_N: Tensor, *, center: Literal["none", "pool"]) -> Tensor:
    """Return features_VD, float64, as they are or less their mean over the pool."""
    features_VD = features_ND[valid_N].double()
    return features_VD if center == "none" else _centered(features_VD)


def quality_features(features_ND: Tensor, valid_N: Tensor, mean_logprob_N: Tensor, *, exponent: float) -> Tensor:
    """Return features_VD = exp(a (l - l_max)) u, float64.

    u is the centered feature at unit length, l the mean log-prob, l_max the pool's highest. This is ours. The selection
    over them is the greedy maximum of a determinantal kernel q K q (Kulesza and Taskar 2012), q = exp(a (l - l_max)):
    an answer e times less likely a token counts as e^a times less new."""
    unit_VD = _unit_length(_centered(features_ND[valid_N]))
    if not len(unit_VD):
        return unit_VD
    logprob_V = mean_logprob_N[valid_N].double()
    return (exponent * (logprob_V - logprob_V.max())).exp()[:, None] * unit_VD


def resolve_ridge(ridge: Ridge, features_VD: Tensor) -> float:
    """Return the number itself; "auto" is the mean energy ||x||^2 of the features used, at least `RIDGE_FLOOR`."""
    if ridge != "auto":
        return ridge
    return max(float(features_VD.square().sum(dim=1).mean()), RIDGE_FLOOR) if len(features_VD) else RIDGE_FLOOR


def _centered(features_VD: Tensor) -> Tensor:
    if not len(features_VD):
        return features_VD.double()
    return center(features_VD[None], torch.ones(1, len(features_VD), dtype=torch.bool, device=features_VD.device))[0]


def _unit_length(features_VD: Tensor) -> Tensor:
    norm_V1 = torch.linalg.vector_norm(features_VD, dim=1, keepdim=True)
    return features_VD / torch.where(norm_V1 > 0, norm_V1, 1.0)  # a row of zeros stays


def _greedy(features_VD: Tensor, valid_N: Tensor, ridge: Ridge) -> tuple[Tensor, Tensor]:
    """Return order and scores of all N candidates: the whole selection, then the empty ones with NaN."""
    order_V, score_V = select(features_VD, len(features_VD), ridge=resolve_ridge(ridge, features_VD))
    return _among_all(order_V, valid_N), torch.cat([score_V, score_V.new_full((len(valid_N) - len(order_V),), torch.nan)])


def _among_all(order_V: Tensor, valid_N: Tensor) -> Tensor:
    """Return an order of the candidates with a feature as an order of all; the empty ones follow."""
    return torch.cat([valid_N.nonzero()[:, 0][order_V], (~valid_N).nonzero()[:, 0]])


def _check_pool(pool: Pool, config: SelectionConfig) -> None:
    num = len(pool.valid_N)
    if pool.features_ND.shape != (num, config.dim):
        raise ValueError(f"features_ND must be {num} x {config.dim} (dim), got {tuple(pool.features_ND.shape)}")
    if pool.valid_N.shape != (num,) or pool.valid_N.dtype != torch.bool:
        raise ValueError(f"valid_N must be bool ({num},), got {pool.valid_N.dtype} {tuple(pool.valid_N.shape)}")
    if pool.mean_logprob_N.shape != (num,) or pool.lengths_N.shape != (num,) or len(pool.answers) != num:
        shapes = f"{tuple(pool.mean_logprob_N.shape)}, {tuple(pool.lengths_N.shape)} and {len(pool.answers)}"
        raise ValueError(f"mean_logprob_N, lengths_N and answers must be of {num} candidates, got {shapes}")
    for name, finite_N in {"feature": pool.features_ND.isfinite().all(dim=1), "mean log-prob": pool.mean_logprob_N.isfinite()}.items():
        broken_X = (pool.valid_N & ~finite_N).nonzero()[:, 0]
        if len(broken_X):
            raise ValueError(f"the {name} of candidate {int(broken_X[0])} is not finite ({len(broken_X)} such candidates in this pool)")


ORDERS: Mapping[str, Order] = {
    "repexp": Order(
        "most novel first: greedy elliptical selection over hidden states (the paper's)",
        lambda pool, config: repexp_order(pool.features_ND, pool.valid_N, ridge=config.ridge, center=config.center),
    ),
    "quality": Order(
        "most novel first, novelty weighed with likelihood (ours)",
        lambda pool, config: quality_order(
            pool.features_ND, pool.valid_N, pool.mean_logprob_N, ridge=config.ridge, exponent=config.quality_exponent
        ),
    ),
    "random": Order("a random permutation", lambda pool, config: random_order(len(pool.valid_N), config.seed)),
    "likeliest": Order("highest mean log-prob first", lambda pool, _: likeliest_order(pool.mean_logprob_N, pool.valid_N)),
    "unlikeliest": Order("lowest mean log-prob first", lambda pool, _: unlikeliest_order(pool.mean_logprob_N, pool.valid_N)),
    "longest": Order("most tokens first", lambda pool, _: longest_order(pool.lengths_N, pool.valid_N)),
    "kmeans": Order(
        "one of each k-means cluster of the hidden states first, large clusters before small ones",
        lambda pool, config: kmeans_order(pool.features_ND, pool.valid_N, max_clusters=config.max_clusters, seed=config.seed),
    ),
    "determinantal": Order(
        "greedy most likely set of a determinantal point process over directions of hidden states",
        lambda pool, _: determinantal_order(pool.features_ND, pool.valid_N),
    ),
    "distinct_answers": Order(
        "one of each distinct answer first, as they were sampled",
        lambda pool, _: outcome_first(torch.arange(len(pool.answers)), pool.answers),
    ),
    "answers_by_novelty": Order(
        "one of each distinct answer first, the most novel before others",
        lambda pool, config: outcome_first(ORDERS["repexp"].rank(pool, config), pool.answers),
    ),
    "answers_by_likelihood": Order(
        "one of each distinct answer first, the likeliest before others",
        lambda pool, config: outcome_first(ORDERS["likeliest"].rank(pool, config), pool.answers),
    ),
    "answers_by_votes": Order(
        "one of each distinct answer first, the most frequent answer before others",
        lambda pool, _: outcome_first(votes_order(pool.answers), pool.answers),
    ),
}
"""Every order by name. `jobs` and reports list them in this order."""
