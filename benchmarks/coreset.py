"""Choosing what to verify among many candidates: our pivoted Cholesky against the published loop of rank-one updates.

    python -m benchmarks.coreset                     # 256 of 4096 candidates, D = 512, one thread
    python -m benchmarks.coreset --dtype float64     # the published loop in our precision; float32 favors it
    python -m benchmarks.coreset --device cuda

The published way (arXiv:2510.11686, Algorithm 1) is written again here. Before every pick it computes x' Lambda x of
all candidates as one product, and after it a rank-one update of Lambda (D x D). Ours is float64 throughout. Both ways
get the same features and must pick the same candidates in the same order. They take turns, and times are medians over
the repeats. The output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from benchmarks.bonus import alternate, summary
from bonus.coreset import select

RIDGE = 1.0


def published_selection(features_ND: Tensor, k: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the indices and scores of k picks, in the precision of the features."""
    dim = features_ND.shape[1]
    lambda_DD = torch.eye(dim, dtype=features_ND.dtype, device=features_ND.device) / ridge
    is_picked_N = torch.zeros(len(features_ND), dtype=torch.bool, device=features_ND.device)
    indices, scores = [], []
    for _ in range(k):
        score_N = ((features_ND @ lambda_DD) * features_ND).sum(dim=1).masked_fill(is_picked_N, -torch.inf)
        index = score_N.argmax()
        is_picked_N[index] = True
        moved_D = lambda_DD @ features_ND[index]
        lambda_DD = lambda_DD - torch.outer(moved_D, moved_D) / (1 + features_ND[index] @ moved_D)
        indices.append(index)
        scores.append(score_N[index])
    return torch.stack(indices), torch.stack(scores)


def measure(num_candidates: int, k: int, dim: int, *, dtype: torch.dtype, repeats: int, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features_ND = torch.randn(num_candidates, dim, generator=generator, dtype=torch.float32).double().to(device)
    published_ND = features_ND.to(dtype)  # the same numbers: they were drawn in float32
    (ours_k, ours_scores_k), (published_k, published_scores_k) = (
        select(features_ND, k, ridge=RIDGE),
        published_selection(published_ND, k, RIDGE),
    )
    if not torch.equal(ours_k, published_k):
        first = int((ours_k != published_k).nonzero()[0])
        raise SystemExit(f"pick {first} differs: {int(ours_k[first])} (ours), {int(published_k[first])} (published)")
    difference = float(((ours_scores_k - published_scores_k) / ours_scores_k).abs().max())
    runs = {
        "published": lambda: published_selection(published_ND, k, RIDGE),
        "ours": lambda: select(features_ND, k, ridge=RIDGE),
    }
    case = {"candidates": num_candidates, "picks": k, "dim": dim, "published_dtype": str(dtype), "difference": float(f"{difference:.1e}")}
    return {**case, **summary(alternate(runs, repeats=repeats, device=device))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=4096)
    parser.add_argument("--picks", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the published loop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = measure(
        options.candidates,
        options.picks,
        options.dim,
        dtype=getattr(torch, options.dtype),
        repeats=options.repeats,
        device=options.device,
    )
    print(json.dumps({"device": options.device, "threads": options.threads, **case}), flush=True)


if __name__ == "__main__":
    main()
