"""The bonus from equal responses, against what a person would count, and as the limit of the elliptical bonus."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bonus.config import BonusConfig
from bonus.copies import copies_of, rarity
from bonus.elliptical import leverage
from bonus.methods import bonus_of
from tests.bonus.steps import bonuses_of, make_step

SEVEN, SEVEN_DOT, NOTHING = [7, 2], [7, 8, 2], list[int]()


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ([SEVEN, SEVEN, SEVEN, SEVEN_DOT], [1 / 12, 1 / 12, 1 / 12, 3 / 4]),
        ([SEVEN, SEVEN, SEVEN, NOTHING], [0, 0, 0, 0]),
        ([SEVEN, SEVEN_DOT, SEVEN, NOTHING], [1 / 6, 2 / 3, 1 / 6, 0]),
        ([[7], [8], [9], [7, 7]], [3 / 4] * 4),
        ([SEVEN, NOTHING, NOTHING, NOTHING], [0, 0, 0, 0]),
    ],
)
def test_a_response_counts_the_more_the_fewer_equals_it_has(responses: list[list[int]], expected: list[float]) -> None:
    valid_GK = torch.tensor([[len(tokens) > 0 for tokens in responses]])
    assert rarity([responses], valid_GK, copies_of([responses], valid_GK))[0].tolist() == pytest.approx(expected)


def test_it_is_the_leverage_of_a_small_ridge() -> None:
    """Distinct responses point in directions of their own, and equal ones in the same."""
    responses = [[5, 2], [6, 2], [5, 2], [7, 2], [5, 2], [6, 2], [8, 2], [9, 2]]
    of_token = dict(zip(range(5, 10), torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64), strict=True))
    features_GKD = torch.stack([of_token[tokens[0]] for tokens in responses])[None]
    valid_GK = torch.ones(1, 8, dtype=torch.bool)
    found_GK = rarity([responses], valid_GK, copies_of([responses], valid_GK))
    torch.testing.assert_close(found_GK, leverage(features_GKD, ridge=1e-5), rtol=0, atol=1e-5)


def test_it_is_shaped_as_the_elliptical_bonus_and_counts_what_it_saw() -> None:
    responses = [[SEVEN, SEVEN, SEVEN_DOT, [7, 8, 8, 8, 8]]]
    step = replace(
        make_step(groups=1),
        valid_GK=torch.ones(1, 4, dtype=torch.bool),
        correct_GK=torch.tensor([[True, True, True, False]]),
        ended_GK=torch.tensor([[True, True, True, False]]),
        lags_GK=torch.tensor([[0, 1, 0, 0]]),
        responses_GK=responses,
    )

    def found(**settings: object) -> list[float]:
        (bonus_GK,), _ = bonuses_of(bonus_of(BonusConfig.model_validate({"kind": "copies", **settings})), [step])
        return [round(value, 6) for value in bonus_GK[0].tolist()]

    assert found() == [0.25, 0.25, 0.75, 0.25]  # what was cut off is the least of those that ended
    assert found(cut_off="keep") == [0.25, 0.25, 0.75, 0.75]
    assert found(gate="correct_only", staleness_discount=0.5) == [0.25, 0.125, 0.75, 0.0]
    scores, _ = bonus_of(BonusConfig(kind="copies")).score(step, {})
    assert scores.metrics == {"distinct_responses": 3.0}
