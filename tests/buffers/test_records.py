"""The vocabulary of verdicts."""

from __future__ import annotations

import pytest

from buffers.records import Verdict, VerdictStatus


@pytest.mark.parametrize("status", list(VerdictStatus))
def test_a_verdict_has_a_reward_exactly_where_something_was_judged(status: VerdictStatus) -> None:
    reward = 0.0 if status.is_scored else None
    assert Verdict(status=status, reward=reward).reward == reward
    with pytest.raises(ValueError, match=str(status)):
        Verdict(status=status, reward=None if status.is_scored else 0.0)


def test_what_could_not_be_scored_is_neither_wrong_nor_without_an_answer() -> None:
    unscored = {status for status in VerdictStatus if not status.is_scored}
    assert unscored == {VerdictStatus.TIMEOUT, VerdictStatus.ERROR}


def test_the_status_of_older_logs_is_read() -> None:
    assert VerdictStatus("unparsed") is VerdictStatus.NO_ANSWER
    with pytest.raises(ValueError, match="nonsense"):
        VerdictStatus("nonsense")
