"""Each surrogate, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from learners.config import LossConfig
from learners.loss.surrogates import SURROGATES, RatioInputs, SurrogateOutput

LOGPROB = -1.0


def surrogate(
    name: str, ratios: list[float], advantages: list[float], responses: list[int] | None = None, **settings: Any
) -> tuple[SurrogateOutput, list[float]]:
    """Return the output for pi(t) = e^−1 and pi / pi_anchor = `ratios`, and the gradient of its sum with respect to
    the log-probs."""
    logprob_N = torch.full((len(ratios),), LOGPROB, dtype=torch.float64, requires_grad=True)
    inputs = RatioInputs(
        logprob_N=logprob_N,
        anchor_logprob_N=logprob_N.detach() - torch.tensor(ratios, dtype=torch.float64).log(),
        advantage_N=torch.tensor(advantages, dtype=torch.float64),
        response_N=torch.tensor(responses or [0] * len(ratios)),
    )
    output = SURROGATES[name](inputs, LossConfig.model_validate({"surrogate": name, **settings}))
    output.value_N.sum().backward()
    assert logprob_N.grad is not None
    return output, logprob_N.grad.tolist()


GOLDEN: list[tuple[str, dict[str, Any], list[float], list[float], list[float], list[float], list[bool]]] = [
    # name, settings, ratios, advantages -> values, gradients, clipped
    ("clip", {"clip_high": 0.2}, [1.5, 1.5, 0.5, 0.5], [2, -2, 2, -2], [2.4, -3, 1, -1.6], [0, -3, 1, 0], [True, False, False, True]),
    ("clip", {"clip_high": 0.6}, [1.5], [2.0], [3.0], [3.0], [False]),  # clip-higher leaves it free
    ("clip", {"dual_clip": 3.0}, [4.0, 2.0, 4.0], [-2, -2, 2], [-6, -4, 2.56], [0, -4, 0], [True, False, True]),
    ("cispo", {"cispo_cap": 3.0}, [4.0, 2.0, 0.1], [2, -2, 2], [-6, 4, -0.2], [6, -4, 0.2], [True, False, False]),  # never 0
    ("reinforce", {}, [4.0, 0.1, 1.0], [2, -2, 0], [-2, 2, 0], [2, -2, 0], [False, False, False]),
    # two tokens of ratios 4 and 1: their geometric mean is 2 for both, the gradient of 2·2·A is 2·A for each
    ("gspo", {"gspo_clip_high": 2.0}, [4.0, 1.0], [3, 3], [6, 6], [6, 6], [False, False]),
    ("gspo", {"gspo_clip_high": 0.5}, [4.0, 1.0], [3, 3], [4.5, 4.5], [0, 0], [True, True]),
    ("gspo", {"gspo_clip_high": 0.5}, [4.0, 1.0], [-3, -3], [-6, -6], [-6, -6], [False, False]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "ratios", "advantages", "values", "gradients", "clipped"), GOLDEN)
def test_worked_by_hand(
    name: str,
    settings: dict[str, Any],
    ratios: list[float],
    advantages: list[float],
    values: list[float],
    gradients: list[float],
    clipped: list[bool],
) -> None:
    output, found = surrogate(name, ratios, advantages, **settings)
    assert output.value_N.tolist() == pytest.approx(values, rel=1e-12)
    assert found == pytest.approx(gradients, rel=1e-12)
    assert output.clipped_N.tolist() == clipped


def test_every_surrogate_is_worked_by_hand() -> None:
    assert {name for name, *_ in GOLDEN} == SURROGATES.keys()


@pytest.mark.parametrize("name", SURROGATES)
def test_on_policy_the_gradient_is_the_advantage(name: str) -> None:
    output, gradient = surrogate(name, [1.0] * 5, [2.0, 2.0, -1.0, -1.0, -1.0], [4, 4, 0, 0, 0])
    assert gradient == pytest.approx([2.0, 2.0, -1.0, -1.0, -1.0], rel=1e-12)
    assert not output.clipped_N.any()


def test_gspo_takes_the_mean_over_each_response_apart() -> None:
    """Ratios of response 3: e^0.2 and e^0.4, of 5: e^−0.3; the mean exponents are 0.3 and −0.3."""
    output, _ = surrogate(
        "gspo", [math.exp(0.2), math.exp(-0.3), math.exp(0.4)], [1.0] * 3, [3, 5, 3], gspo_clip_high=9.0, gspo_clip_low=0.9
    )
    assert output.value_N.tolist() == pytest.approx([math.exp(0.3), math.exp(-0.3), math.exp(0.3)], rel=1e-12)


def test_gspos_ranges_are_its_own_and_those_of_the_paper() -> None:
    for ratio, clipped in ((1.00041, True), (1.00039, False)):
        assert surrogate("gspo", [ratio], [1.0])[0].clipped_N.tolist() == [clipped]
    for ratio, clipped in ((1 - 3.1e-4, True), (1 - 2.9e-4, False)):
        assert surrogate("gspo", [ratio], [-1.0])[0].clipped_N.tolist() == [clipped]
