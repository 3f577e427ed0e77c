"""Exact majority votes: how often the most frequent answer of k responses is right. Legend: N responses of one problem,
K values of k, D powers of x, Q nodes of a quadrature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from jobs.analysis.pass_at_k import FloatArray
from jobs.evaluation_config import MAX_RESPONSES


def majority_curve(answers: Sequence[str | None], correct_N: NDArray[np.bool_], max_k: int) -> FloatArray:
    """Return (max_k,): maj@k for k = 1 … `max_k`, the expected correctness of the majority answer of k responses that
    are drawn without replacement. Every response that states an answer votes for it. A tie is broken at random, with
    equal chances. Without any vote the result is wrong. An answer is as correct as the share of its responses that were
    judged correct, normally 0 or 1. Where k exceeds n, all n responses vote. The result is exact: with n_b responses
    for answer b and n_0 without any answer,

        P(a wins) = 1 / C(n, k) Σ_j C(n_a, j) [x^(k−j)] ∫_0^1 (1 + x)^n_0 Π_{b≠a} R_b(x, y) dy,
        R_b(x, y) = Σ_{i<j} C(n_b, i) x^i + y C(n_b, j) x^j,

    where j are the votes for a. Every other answer has fewer votes, or as many, and y counts those. The integral turns
    t ties, y^t, into the chance 1 / (t + 1); a quadrature computes it, which is exact for polynomials. Raises
    ValueError for no responses, or more than MAX_RESPONSES."""
    num = len(answers)
    if not 0 < num <= MAX_RESPONSES:
        raise ValueError(f"majority votes are of 1 to {MAX_RESPONSES} responses, not {num}")
    votes = Counter(answer for answer in answers if answer is not None)
    right = Counter(answer for answer, is_correct in zip(answers, correct_N, strict=True) if answer is not None and is_correct)
    depth = min(max_k, num)
    curve_K = np.zeros(depth)
    draws_K = np.array([comb(num, k) for k in range(1, depth + 1)], dtype=np.float64)
    for answer, num_right in right.items():
        rivals = tuple(sorted(count for other, count in votes.items() if other != answer))
        won_K = _draws_won(votes[answer], rivals, num - votes.total(), depth)
        curve_K += num_right / votes[answer] * won_K / draws_K
    return np.concatenate([curve_K, np.full(max_k - depth, curve_K[-1])])


def _draws_won(own: int, rivals: tuple[int, ...], abstaining: int, depth: int) -> FloatArray:
    """Return (depth,): the number of draws of 1 … `depth` responses that an answer with `own` responses wins. A tie of
    t + 1 answers counts as 1 / (t + 1)."""
    won_D = np.zeros(depth + 1)
    for num_votes in range(1, min(own, depth) + 1):
        strong = [count for count in rivals if count >= num_votes]
        weak = abstaining + sum(count for count in rivals if count < num_votes)
        max_ties = min(len(strong), depth // num_votes)
        node_Q, weight_Q = _quadrature(max_ties)
        degree = depth - num_votes
        others_QD = np.repeat(_binomials(weak, degree)[None], len(node_Q), axis=0)
        for count in strong:
            others_QD = _times_rival(others_QD, _binomials(count, num_votes), node_Q)
        won_D[num_votes:] += comb(own, num_votes) * (weight_Q @ others_QD)
    return won_D[1:]


def _times_rival(others_QD: FloatArray, ways_I: FloatArray, node_Q: FloatArray) -> FloatArray:
    """Multiply by Σ_{i<j} C(n, i) x^i + y C(n, j) x^j, j = len(ways_I) − 1, up to the last power of `others_QD`."""
    ties = len(ways_I) - 1
    size = others_QD.shape[1]
    padded_QD = np.pad(others_QD, ((0, 0), (ties, 0)))
    fewer_QD: FloatArray = sliding_window_view(padded_QD[:, 1:], ties, axis=1) @ ways_I[-2::-1]
    fewer_QD += (ways_I[-1] * node_Q)[:, None] * padded_QD[:, :size]
    return fewer_QD


@lru_cache(maxsize=4096)
def _binomials(num: int, degree: int) -> FloatArray:
    """Return (degree + 1,): C(num, 0) … C(num, degree)."""
    return np.array([float(comb(num, i)) for i in range(degree + 1)])


@lru_cache(maxsize=1024)
def _quadrature(degree: int) -> tuple[FloatArray, FloatArray]:
    """Return nodes and weights on [0, 1] of the Gauss-Legendre quadrature, exact for polynomials up to `degree`."""
    node_Q, weight_Q = np.polynomial.legendre.leggauss(degree // 2 + 1)
    return (node_Q + 1) / 2, weight_Q / 2
