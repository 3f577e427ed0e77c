import pytest

from buffers.records import Verdict, VerdictStatus
from jobs.processes.verdict_counter import VerdictCounter, VerifierFailure


def verdicts(num_scored: int, num_unscored: int) -> list[Verdict]:
    scored = [Verdict(status=VerdictStatus.INCORRECT, reward=0.0)] * num_scored
    return scored + [Verdict(status=VerdictStatus.ERROR, reward=None, detail="no such library")] * num_unscored


def test_rate_above_the_bound_stops_the_run_with_the_numbers_and_the_last_cause():
    counter = VerdictCounter(max_error_rate=0.1)
    with pytest.raises(VerifierFailure, match=r"11 of 100 responses .*max_error_rate = 0\.1; the last: error \(no such library\)"):
        counter.add(verdicts(89, 11))


def test_rate_at_the_bound_does_not():
    counter = VerdictCounter(max_error_rate=0.1)
    counter.add(verdicts(90, 10))
    assert counter.num_verdicts == 100


def test_rate_is_of_the_newest_so_that_what_breaks_late_is_found_as_soon():
    counter = VerdictCounter(max_error_rate=0.1)
    for _ in range(100):
        counter.add(verdicts(1000, 0))
    counter.add(verdicts(0, 100))
    with pytest.raises(VerifierFailure, match="101 of 1000"):
        counter.add(verdicts(0, 1))


def test_what_failed_long_ago_does_not_count():
    counter = VerdictCounter(max_error_rate=0.1)
    for _ in range(20):
        counter.add(verdicts(0, 10) + verdicts(90, 0))
    counter.add(verdicts(1000, 0))
    counter.add(verdicts(0, 100))
    assert counter.num_verdicts == 3100


def test_too_few_verdicts_are_no_rate():
    counter = VerdictCounter(max_error_rate=0.1)
    counter.add(verdicts(0, VerdictCounter.MIN_VERDICTS - 1))
    with pytest.raises(VerifierFailure):
        counter.add(verdicts(0, 1))


def test_timeouts_count_and_wrong_answers_do_not():
    counter = VerdictCounter(max_error_rate=0.0)
    counter.add(verdicts(100, 0) + [Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)] * 100)
    with pytest.raises(VerifierFailure, match="1 of 201"):
        counter.add([Verdict(status=VerdictStatus.TIMEOUT, reward=None)])
