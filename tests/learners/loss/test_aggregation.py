"""From tokens to one number, worked by hand: responses of 1, 2 and 3 tokens, and an empty one."""

from __future__ import annotations

import pytest
import torch

from learners.loss.aggregation import AGGREGATIONS, Denominators, constant

VALUES = torch.tensor([6.0, 1.0, 3.0, 2.0, 2.0, 5.0], dtype=torch.float64)
RESPONSES = torch.tensor([4, 7, 7, 0, 0, 0])
OVER = Denominators(num_tokens=6, num_responses=3, constant_tokens=10)

GOLDEN = {
    "token_mean": (6 + 4 + 9) / 6,
    "sequence_mean": (6 / 1 + 4 / 2 + 9 / 3) / 3,
    "constant": (6 + 4 + 9) / (3 * 10),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_worked_by_hand(name: str) -> None:
    assert AGGREGATIONS[name](VALUES, RESPONSES, OVER).item() == pytest.approx(GOLDEN[name], rel=1e-12)  # type: ignore[index]


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_what_is_not_there_counts_in_the_denominator(name: str) -> None:
    """The batch has twice the tokens and responses, and the others have no gradient, so the value is halved."""
    twice = Denominators(num_tokens=12, num_responses=6, constant_tokens=10)
    assert AGGREGATIONS[name](VALUES, RESPONSES, twice).item() == pytest.approx(GOLDEN[name] / 2, rel=1e-12)  # type: ignore[index]


def test_a_constant_that_is_not_given_is_refused() -> None:
    with pytest.raises(ValueError, match="needs constant_tokens"):
        constant(VALUES, RESPONSES, Denominators(num_tokens=6, num_responses=3))
