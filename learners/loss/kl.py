"""Estimators of the divergence KL(pi ‖ pi_ref) from one sampled token. Axis: N tokens.

With r = log pi(t) − log pi_ref(t), t sampled from pi (Schulman, "Approximating KL divergence", 2020):

    k1 = r                   unbiased, of either sign, of high variance
    k2 = r² / 2              biased by the third order of r, never negative
    k3 = exp(−r) − 1 + r     unbiased, never negative

The value of an estimator and its gradient are two questions. The gradient of E[KL] with respect to the policy is
E[r·∇log pi], which is exactly that of k2. The gradient of k1 is ∇log pi, whose expectation is 0. That of k3 is
(1 − exp(−r))·∇log pi, which equals that of k2 to first order in r (GRPO's choice, arXiv:2402.03300; compared in
arXiv:2510.01555). Subtracted from the reward instead, k1 gives the exact gradient too (InstructGPT, RLOO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from learners.loss.per_token import bounded
from learners.loss_terms import KlEstimator


def k1(log_ratio_N: Tensor) -> Tensor:
    """Return r."""
    return log_ratio_N


def k2(log_ratio_N: Tensor) -> Tensor:
    """Return r² / 2."""
    return log_ratio_N.square() / 2


def k3(log_ratio_N: Tensor) -> Tensor:
    """Return exp(−r) − 1 + r, with r bounded (`learners.loss.per_token`)."""
    bounded_N = bounded(log_ratio_N)  # in both terms: if only exp(−r) were bounded, the rest would have the opposite gradient
    # expm1, because at r = 1e-5 the plain form loses half of its digits in float32.
    return torch.expm1(-bounded_N) + bounded_N


KL_ESTIMATORS: Mapping[KlEstimator, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""From log-ratios log pi − log pi_ref (N,) to estimates in nats (N,), by name."""
