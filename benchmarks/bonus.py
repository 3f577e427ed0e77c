"""The bonus of a training step: ours, batched over groups, against the published loop over groups and responses.

    python -m benchmarks.bonus                       # 128 groups of 8 responses, D = 32 and 512, one thread
    python -m benchmarks.bonus --device cuda

The published way (arXiv:2510.11686) is written again here. The inverse covariance of a group starts at I / lam and
takes one rank-one update for each response. Then x' Sigma^-1 x is computed for each response, in float64 as published.
Both ways get the same features and must give the same leverages. They take turns, and times are medians over the
repeats.

The output is one JSON object a case. `score_step_s` is all that the owner of the covariance does in a step: leverages,
absorbing, gate and diagnostics.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bonus.config import BonusConfig
from bonus.elliptical import leverage
from bonus.scoring import score_step
from bonus.state import init_state

RIDGE = 0.01
AGREEMENT = 1e-9


def published_leverage(features_GKD: Tensor, ridge: float) -> Tensor:
    """Return the leverages, computed group by group and response by response."""
    leverages = []
    for features_KD in features_GKD:
        centered_KD = features_KD - features_KD.mean(dim=0)
        inverse_DD = torch.eye(features_KD.shape[1], dtype=features_KD.dtype, device=features_KD.device) / ridge
        for row_D in centered_KD:
            column_D1 = row_D[:, None]
            shrink_11 = torch.inverse(1 + column_D1.T @ inverse_DD @ column_D1)
            inverse_DD = inverse_DD - inverse_DD @ column_D1 @ shrink_11 @ column_D1.T @ inverse_DD
        leverages.append(torch.stack([row_D @ inverse_DD @ row_D for row_D in centered_KD]))
    return torch.stack(leverages)


def alternate(runs: dict[str, Callable[[], Any]], *, repeats: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of every repeat of every run. The runs take turns after one round of warming up, so that a
    disturbance meets them all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each run, and the ratio published / ours of the medians and of the fastest repeats. A busy
    machine disturbs the fastest repeats least."""
    medians = {f"{name}_s": float(f"{statistics.median(values):.4g}") for name, values in seconds.items()}
    ratio, ratio_of_best = (of(seconds["published"]) / of(seconds["ours"]) for of in (statistics.median, min))
    return {**medians, "ratio": round(ratio, 1), "ratio_of_best": round(ratio_of_best, 1)}


def measure(num_groups: int, group_size: int, dim: int, *, repeats: int, device: str) -> dict[str, object]:
    shape = (num_groups, group_size, dim)
    features_GKD = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    all_GK = torch.ones(num_groups, group_size, dtype=torch.bool, device=device)
    config, state = BonusConfig(dim=dim, ridge=RIDGE), init_state(dim, device=device)
    ours_GK, published_GK = leverage(features_GKD, ridge=RIDGE), published_leverage(features_GKD, RIDGE)
    difference = float(((ours_GK - published_GK) / published_GK).abs().max())
    if not difference < AGREEMENT:
        raise SystemExit(f"leverages differ by {difference:.1e} (relative): not the same computation")
    runs: dict[str, Callable[[], Any]] = {
        "published": lambda: published_leverage(features_GKD, RIDGE),
        "ours": lambda: leverage(features_GKD, ridge=RIDGE),
        "score_step": lambda: score_step(features_GKD, all_GK, all_GK, state, config),
    }
    case = {"groups": num_groups, "responses": group_size, "dim": dim, "difference": float(f"{difference:.1e}")}
    return {**case, **summary(alternate(runs, repeats=repeats, device=device))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=128)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--dims", default="32,512", help="separated by commas")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dim in map(int, options.dims.split(",")):
        case = measure(options.groups, options.responses, dim, repeats=options.repeats, device=options.device)
        print(json.dumps({"device": options.device, "threads": options.threads, **case}), flush=True)


if __name__ == "__main__":
    main()
