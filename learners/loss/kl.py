"""Estimators of the divergence KL(pi ‖ pi_ref) from one sampled token. Axis: N tokens.

With r = log pi(t) − log pi_ref(t), t sampled from pi (Schulman, "Approximating KL divergence", 2020):

    k1 = r                   unbiased, of either sign, of high variance
    k2 = r² / 2              biased by the third order of r, never negative
    k3 = exp(−r) − 1 + r     unbiased, never negative

What a value estimates and where its gradient points are two things. The gradient of E[KL] by the policy is E[r·∇log
pi]: that of k2, exactly. The gradient of k1 is ∇log pi, of expectation 0. That of k3, (1 − exp(−r))·∇log pi, is the
former to first order in r (GRPO's choice, arXiv:2402.03300; compared in arXiv:2510.01555). Taken from the reward
instead, k1 gives the exact gradient again (InstructGPT, RLOO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from learners.config import KlEstimator
from learners.loss.ratios import bounded


def k1(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N


def k2(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N.square() / 2


def k3(log_ratio_N: Tensor) -> Tensor:
    """By expm1: at r = 1e-5 the plain form has lost half of its digits in float32. r is bounded
    (`learners.loss.ratios`), and with it the whole: of exp(−r) alone, what is left would have the opposite gradient."""
    bounded_N = bounded(log_ratio_N)
    return torch.expm1(-bounded_N) + bounded_N


KL_ESTIMATORS: Mapping[KlEstimator, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By name: (N,) log-ratios log pi − log pi_ref to (N,) estimates in nats."""
