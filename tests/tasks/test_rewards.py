"""Shaped rewards, by hand."""

from __future__ import annotations

import pytest

from buffers.records import Verdict, VerdictStatus
from tasks.rewards import RewardConfig, RewardTerms, reward_terms

SHAPED = RewardConfig(format_penalty=0.5, overlong_tokens=4, overlong_penalty=2.0)


def verdict(status: VerdictStatus) -> Verdict:
    reward = float(status is VerdictStatus.CORRECT) if status.is_scored else None
    return Verdict(status=status, reward=reward)


@pytest.mark.parametrize("status", list(VerdictStatus))
def test_by_default_a_reward_is_the_task_s_own(status: VerdictStatus) -> None:
    assert not RewardConfig().is_shaped
    assert reward_terms(verdict(status), 20, 20, RewardConfig()).total == verdict(status).reward


@pytest.mark.parametrize(
    ("status", "penalty"),
    [
        (VerdictStatus.CORRECT, 0.0),
        (VerdictStatus.INCORRECT, 0.0),
        (VerdictStatus.NO_ANSWER, -0.5),
        (VerdictStatus.MALFORMED, -0.5),
    ],
)
def test_only_a_response_without_an_answer_of_the_form_asked_for_loses_for_its_form(status: VerdictStatus, penalty: float) -> None:
    terms = reward_terms(verdict(status), 3, 10, SHAPED)
    assert terms == RewardTerms(task=verdict(status).reward, format=penalty, length=0.0)
    assert terms.total == verdict(status).reward + penalty


@pytest.mark.parametrize(("num_tokens", "penalty"), [(0, 0.0), (6, 0.0), (7, -0.5), (8, -1.0), (9, -1.5), (10, -2.0)])
def test_the_overlong_penalty_grows_over_the_last_tokens_to_its_full_size(num_tokens: int, penalty: float) -> None:
    """DAPO's equation 13 with T_max = 10 and B = 4, scaled by 2."""
    terms = reward_terms(verdict(VerdictStatus.CORRECT), num_tokens, 10, SHAPED)
    assert (terms.length, terms.total) == (penalty, 1.0 + penalty)


@pytest.mark.parametrize("status", [status for status in VerdictStatus if status.is_scored])
def test_where_only_correct_responses_lose_for_their_length_the_others_keep_what_they_have(status: VerdictStatus) -> None:
    config = RewardConfig(overlong_tokens=4, overlong_penalty=2.0, overlong_of="correct")
    assert reward_terms(verdict(status), 9, 10, config).length == (-1.5 if status is VerdictStatus.CORRECT else 0.0)


@pytest.mark.parametrize("status", [VerdictStatus.TIMEOUT, VerdictStatus.ERROR])
def test_what_could_not_be_scored_loses_and_gains_nothing(status: VerdictStatus) -> None:
    assert reward_terms(verdict(status), 10, 10, SHAPED) == RewardTerms(task=None, format=None, length=None)
    assert reward_terms(verdict(status), 10, 10, SHAPED).total is None
