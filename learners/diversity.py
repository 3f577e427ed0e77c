"""Which responses of a group are alike, and how far each is from the others. Axes: G groups, K responses, D numbers of
a feature. Float64.

    rewards_GK = diversity_rewards(rewards_GK, features_GKD, 0.9)
    clusters_GK = clusters_of_features(features_GKD, max_clusters=4)

A feature of 0 stands for an empty response, which has none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bonus.elliptical import center

ALIKE = 1e-3
"""Features closer than this share of their length are those of copies, which an encoder may round differently. In 640
groups of the quick start (float32) the features of equal responses are equal, and others are at least 0.012 apart."""
ROUNDS = 100
"""The most rounds of k-means, which ends by itself far earlier."""


def diversity_rewards(rewards_GK: Tensor, features_GKD: Tensor, strength: float) -> Tensor:
    """Return r_i · (1 − strength · (1 − d_i)) where r_i > 0, with d the `distinctness`: (G, K), float64. Others stay,
    because a smaller penalty for copies would favour them. A NaN stays NaN.

    DARLING (Li et al., arXiv:2509.02534) multiplies the reward by a normalised diversity: the share of the group's
    other responses that a classifier finds different, (K − s) / (K − 1) in a cluster of s, and at least 0.1 according
    to a port of their code. Strength 0.9 gives copies that tenth; 1 is the plain product. Their classifier is served
    beside the run; we have frozen features. The authors normalise without a standard deviation: normalise = "mean"."""
    rewards_GK = rewards_GK.to(torch.float64)
    return torch.where(rewards_GK > 0, rewards_GK * (1 - strength * (1 - distinctness(features_GKD))), rewards_GK)


def distinctness(features_GKD: Tensor) -> Tensor:
    """Return the mean distance of each response to the others of its group, in [0, 1] (G, K):

        d_i = mean over j ≠ i of (1 − cos(x_i, x_j)) / 2        x centered by its group; 0 for copies

    Features share a large mean, without which all angles would be small. Where a group falls into two clusters, x has
    two opposite directions, and d is exactly DARLING's (K − s) / (K − 1). With more clusters the directions of
    different ones are less than opposite, and d is down to half of it. An empty response has d = 0 and does not count
    among the others."""
    features_GKD = features_GKD.to(torch.float64)
    valid_GK = features_GKD.any(-1)
    centered_GKD = center(features_GKD, valid_GK)
    unit_GKD = centered_GKD / centered_GKD.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    distance_GKK = ((1 - unit_GKD @ unit_GKD.mT) / 2).clamp(0, 1)
    others_GKK = valid_GK[:, :, None] & valid_GK[:, None, :] & ~torch.eye(valid_GK.shape[1], dtype=torch.bool)
    total_GK: Tensor = distance_GKK.where(others_GKK & ~_are_copies(features_GKD), 0.0).sum(-1)
    return total_GK / others_GKK.sum(-1).clamp(min=1)


def clusters_of_answers(answers_GK: Sequence[Sequence[str | None]]) -> Tensor:
    """Return a number for each response (G, K) that those with equal answers of its group share. No answer is one."""
    return torch.tensor([[list(group).index(answer) for answer in group] for group in answers_GK])


def clusters_of_features(features_GKD: Tensor, max_clusters: int) -> Tensor:
    """Return a number for each response (G, K) that those of its cluster share, from k-means within the group. There
    are fewer clusters only if fewer responses differ. Empty responses are a cluster of their own, −1."""
    return torch.stack([_k_means(features_KD, max_clusters) for features_KD in features_GKD.to(torch.float64)])


def _k_means(features_KD: Tensor, max_clusters: int) -> Tensor:
    """Return clusters (K,). Lloyd's algorithm from the farthest-first traversal (Gonzalez 1985) instead of random
    centers, so that equal groups have equal clusters. It begins at the response that is farthest from the mean; ties go
    to the lowest index."""
    valid_K = features_KD.any(-1)
    clusters_K = torch.full((len(features_KD),), -1)
    if not valid_K.any():
        return clusters_K
    rows_ND = features_KD[valid_K]
    centers = [int((rows_ND - rows_ND.mean(0)).norm(dim=-1).argmax())]
    is_copy_NN = _are_copies(rows_ND[None])[0]
    while len(centers) < max_clusters and not is_copy_NN[centers].any(0).all():
        distance_N = torch.cdist(rows_ND, rows_ND[centers]).amin(1)
        centers.append(int(distance_N.where(~is_copy_NN[centers].any(0), -1.0).argmax()))
    centers_MD = rows_ND[centers]
    for _ in range(ROUNDS):
        found_N = torch.cdist(rows_ND, centers_MD).argmin(1)
        members = [rows_ND[found_N == m] for m in range(len(centers))]
        moved_MD = torch.stack([rows.mean(0) if len(rows) else center_D for rows, center_D in zip(members, centers_MD, strict=True)])
        if torch.equal(moved_MD, centers_MD):
            break
        centers_MD = moved_MD
    clusters_K[valid_K] = found_N
    return clusters_K


def _are_copies(features_GKD: Tensor) -> Tensor:
    """Return which pairs of responses (G, K, K) have the same feature but for rounding."""
    length_GK = features_GKD.norm(dim=-1)
    apart_GKK = torch.cdist(features_GKD, features_GKD, compute_mode="donot_use_mm_for_euclid_dist")
    return apart_GKK <= ALIKE * torch.maximum(length_GK[:, :, None], length_GK[:, None, :])
