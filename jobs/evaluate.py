"""Evaluation. For now the estimator every pass rate in this project uses; the job around it comes with the evaluation tasks."""

from __future__ import annotations

from math import comb


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that k responses drawn without replacement from n, of which c are correct, hold a correct one.

    1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374). Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)
