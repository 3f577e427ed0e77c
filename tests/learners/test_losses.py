"""Golden values of the policy loss, worked by hand. With A the advantage and M the number of tokens, ∂loss/∂log pi
is −w·rho·A/M."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.config import LossConfig
from learners.losses import LossInputs, LossOutput, policy_loss

CONFIG = LossConfig(clip_low=0.2, clip_high=0.28, is_cap=2.0)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(
    *, ratio: Tensor, advantage: Tensor, weight: Tensor | None = None, num_tokens: int, config: LossConfig = CONFIG
) -> tuple[LossOutput, list[float]]:
    """Return the loss and its gradient with respect to the log-prob for rho = `ratio` and pi_prox / pi_behavior =
    `weight`."""
    proximal_N = torch.full_like(ratio, -3.0)
    logprob_N = (proximal_N + ratio.log()).requires_grad_()
    inputs = LossInputs(
        logprob_N=logprob_N,
        proximal_logprob_N=proximal_N,
        behavior_logprob_N=proximal_N if weight is None else proximal_N - weight.log(),
        advantage_N=advantage,
        num_tokens=num_tokens,
    )
    output = policy_loss(inputs, config)
    output.loss.backward()
    assert logprob_N.grad is not None
    return output, logprob_N.grad.tolist()


def test_on_policy_the_loss_is_the_mean_advantage_over_all_tokens_of_the_batch() -> None:
    output, gradient = loss_of(ratio=row(1.0, 1.0), advantage=row(1.0, -0.5), num_tokens=4)
    assert output.loss.item() == -0.125
    assert gradient == [-0.25, 0.125]
    assert output.is_weight_N.tolist() == [1.0, 1.0]
    assert not output.clipped_N.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 2.0, -2.56, 0.0, True),  # already likelier than 1.28 times: no more of it
        (1.5, -2.0, 3.0, 3.0, False),  # likelier and bad: the whole way back
        (0.5, 2.0, -1.0, -1.0, False),  # unlikelier and good: the whole way back
        (0.5, -2.0, 1.6, 0.0, True),  # already unlikelier than 0.8 times: no more of it
        (1.2, 2.0, -2.4, -2.4, False),  # inside the asymmetric range, above 1 + clip_low
    ],
)
def test_clipping_worked_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: bool) -> None:
    output, gradient_N = loss_of(ratio=row(ratio), advantage=row(advantage), num_tokens=1)
    assert output.loss.item() == pytest.approx(loss, rel=1e-12)
    assert gradient_N == pytest.approx([gradient], rel=1e-12)
    assert output.clipped_N.tolist() == [clipped]


def test_a_token_without_advantage_is_never_counted_as_clipped() -> None:
    output, gradient = loss_of(ratio=row(1.5, 0.5), advantage=row(0.0, 0.0), num_tokens=2)
    assert (output.loss.item(), gradient, output.clipped_N.tolist()) == (0.0, [0.0, 0.0], [False, False])


def test_importance_weights_are_truncated_from_above_only() -> None:
    output, gradient = loss_of(ratio=row(1.0, 1.0, 1.0), weight=row(4.0, 1.5, 0.25), advantage=row(1.0, 1.0, -2.0), num_tokens=3)
    assert output.is_weight_N.tolist() == pytest.approx([2.0, 1.5, 0.25], rel=1e-12)
    assert output.loss.item() == pytest.approx(-(2.0 + 1.5 - 0.5) / 3, rel=1e-12)
    assert gradient == pytest.approx([-2 / 3, -1.5 / 3, 0.5 / 3], rel=1e-12)


def test_the_weight_multiplies_the_clipped_surrogate() -> None:
    output, gradient = loss_of(ratio=row(1.5, 1.1), weight=row(0.5, 3.0), advantage=row(2.0, 1.0), num_tokens=2)
    assert output.loss.item() == pytest.approx(-(0.5 * 2.56 + 2.0 * 1.1) / 2, rel=1e-12)
    assert gradient == pytest.approx([0.0, -2.0 * 1.1 / 2], rel=1e-12)


def test_without_correction_the_ratio_is_taken_against_the_behavior_policy() -> None:
    """pi / pi_behavior = rho · pi_prox / pi_behavior: 1.1·1.5 = 1.65, clipped at 1.28; 1.1·1.1 = 1.21, not
    clipped."""
    config = LossConfig(clip_low=0.2, clip_high=0.28, correction="none")
    output, gradient = loss_of(ratio=row(1.1, 1.1), weight=row(1.5, 1.1), advantage=row(1.0, 1.0), num_tokens=2, config=config)
    assert output.loss.item() == pytest.approx(-(1.28 + 1.21) / 2, rel=1e-12)
    assert gradient == pytest.approx([0.0, -1.21 / 2], rel=1e-12)
    assert output.is_weight_N.tolist() == [1.0, 1.0]
    assert output.clipped_N.tolist() == [True, False]


def test_the_importance_weight_has_no_gradient() -> None:
    """Proximal and current log-prob are one tensor, so the ratio has no gradient either. Any gradient would be the
    weight's."""
    logprob_N = row(-1.0).requires_grad_()
    inputs: dict[str, Any] = {"logprob_N": logprob_N, "proximal_logprob_N": logprob_N, "behavior_logprob_N": row(-1.5)}
    output = policy_loss(LossInputs(**inputs, advantage_N=row(1.0), num_tokens=1), CONFIG)
    output.loss.backward()
    assert output.is_weight_N.tolist() == pytest.approx([math.exp(0.5)])
    assert not output.is_weight_N.requires_grad and not output.clipped_N.requires_grad
    assert logprob_N.grad is not None and logprob_N.grad.item() == 0.0


@pytest.mark.parametrize("correction", ["truncated_is", "none"])
def test_losses_of_micro_batches_sum_to_the_loss_of_the_batch(correction: str) -> None:
    config = LossConfig.model_validate({"correction": correction})
    generator = torch.Generator().manual_seed(0)
    ratio, weight = (torch.rand(2, 9, generator=generator, dtype=torch.float64) + 0.5).unbind()
    advantage = torch.randn(9, generator=generator, dtype=torch.float64)
    whole, gradient = loss_of(ratio=ratio, weight=weight, advantage=advantage, num_tokens=9, config=config)
    parts = [slice(0, 2), slice(2, 3), slice(3, 9)]
    split = [loss_of(ratio=ratio[p], weight=weight[p], advantage=advantage[p], num_tokens=9, config=config) for p in parts]
    assert abs(whole.loss.item()) > 1e-3
    assert sum(output.loss.item() for output, _ in split) == pytest.approx(whole.loss.item(), rel=1e-12)
    assert [g for _, part in split for g in part] == pytest.approx(gradient, rel=1e-12)
