"""The estimators, worked by hand and compared with the exact divergence of small distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learners.loss.kl import KL_ESTIMATORS, k3

GOLDEN = {"k1": [math.log(2), -math.log(2), 0.0], "k2": [math.log(2) ** 2 / 2] * 2 + [0.0], "k3": [math.log(2) - 0.5, 1 - math.log(2), 0.0]}
"""Where pi / pi_ref is 2, 1/2 and 1."""


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy.requires_grad_(), reference


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_worked_by_hand(name: str) -> None:
    log_ratio_N = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64).log()
    assert KL_ESTIMATORS[name](log_ratio_N).tolist() == pytest.approx(GOLDEN[name], rel=1e-12, abs=1e-15)  # type: ignore[index]


@pytest.mark.parametrize(("name", "is_unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_the_expectation_under_the_policy_is_the_divergence(name: str, is_unbiased: bool, logits: tuple[Tensor, Tensor]) -> None:
    policy, reference = (values.detach().log_softmax(-1) for values in logits)
    exact = (policy.exp() * (policy - reference)).sum().item()
    estimate = (policy.exp() * KL_ESTIMATORS[name](policy - reference)).sum().item()  # type: ignore[index]
    assert (estimate == pytest.approx(exact, rel=1e-9)) is is_unbiased
    assert exact > 0.1


@pytest.mark.parametrize(("name", "points_at_it"), [("k1", False), ("k2", True), ("k3", False)])
def test_only_the_gradient_of_k2_is_that_of_the_divergence(name: str, points_at_it: bool, logits: tuple[Tensor, Tensor]) -> None:
    """E_pi[∇k] is what a loss over samples follows. It is 0 for k1, and only near the gradient for k3."""
    policy_logits, reference = logits
    policy = policy_logits.log_softmax(-1)
    reference = reference.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), policy_logits, retain_graph=True)
    (found,) = torch.autograd.grad((policy.exp().detach() * KL_ESTIMATORS[name](policy - reference)).sum(), policy_logits)  # type: ignore[index]
    assert torch.allclose(found, exact, rtol=1e-9) is points_at_it
    assert (found.abs().max().item() < 1e-15) is (name == "k1")


def test_k3_keeps_its_digits_near_zero() -> None:
    assert k3(torch.tensor([1e-4])).item() == pytest.approx(0.5e-8, rel=1e-2)
