"""pass@k: the estimators behind every pass rate of this project. Legend: P prompts, K values of k."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that k of n responses, drawn without replacement, hold one of the c correct ones. It is
    1 − C(n − c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv:2107.03374). Raises ValueError unless 0 ≤ c ≤ n and
    1 ≤ k ≤ n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def miss_at_k_curves(num_responses_P: ArrayLike, num_correct_P: ArrayLike, max_k: int) -> FloatArray:
    """Return 1 − pass@k for k = 1 … `max_k` (columns) and P prompts (rows):

        C(n − c, k) / C(n, k) = Π_{i<k} (n − c − i) / (n − i), to a relative error of about k·1e-16 however small it is.

    Where k exceeds n, all n responses are drawn. Raises ValueError unless 0 ≤ c ≤ n, 1 ≤ n and 1 ≤ max_k."""
    n_P1 = np.asarray(num_responses_P, dtype=np.int64).reshape(-1, 1)
    c_P1 = np.asarray(num_correct_P, dtype=np.int64).reshape(-1, 1)
    if n_P1.shape != c_P1.shape or (c_P1 < 0).any() or (c_P1 > n_P1).any() or (n_P1 < 1).any() or max_k < 1:
        raise ValueError(f"pass@k needs 0 <= c <= n, 1 <= n and 1 <= max_k for every prompt, got {_worst(n_P1, c_P1)} and max_k={max_k}")
    drawn_K = np.arange(max_k)
    incorrect_left_PK = np.clip(n_P1 - c_P1 - drawn_K, 0, None)
    left_PK = n_P1 - drawn_K
    factor_PK = np.where(left_PK > 0, incorrect_left_PK / np.clip(left_PK, 1, None), 1.0)
    return np.cumprod(factor_PK, axis=1)


def pass_at_k_curves(num_responses_P: ArrayLike, num_correct_P: ArrayLike, max_k: int) -> FloatArray:
    """Return `pass_at_k` for k = 1 … `max_k` (columns) and P prompts (rows); where k exceeds n, its value at n. Raises
    ValueError as `miss_at_k_curves` does."""
    return 1.0 - miss_at_k_curves(num_responses_P, num_correct_P, max_k)


def _worst(n_P1: NDArray[Any], c_P1: NDArray[Any]) -> str:
    if n_P1.shape != c_P1.shape:
        return f"{len(n_P1)} n and {len(c_P1)} c"
    wrong = np.flatnonzero((c_P1 < 0) | (c_P1 > n_P1) | (n_P1 < 1))
    return ", ".join(f"n={n_P1[row, 0]}, c={c_P1[row, 0]}" for row in wrong[:3]) or "valid counts"
