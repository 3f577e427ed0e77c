import json

import numpy as np
import pytest

from jobs.analysis.bootstrap import NUM_RESAMPLES, mean_estimate, resample_counts
from jobs.analysis.candidate_table import candidates_by_problem
from jobs.analysis.evaluation import evaluate_candidates, evaluate_outcomes
from jobs.analysis.outcomes import problem_outcomes
from jobs.analysis.pass_at_k import pass_at_k
from tests.jobs.samples_fixture import binomial_outcomes, candidates_of, outcomes_of, response_table


def test_outcomes_of_a_problem_by_hand():
    outcomes = outcomes_of("11xy?m")
    assert (outcomes.num_scored_P[0], outcomes.num_correct_P[0]) == (6, 2)
    assert outcomes.pass_PK[0].tolist() == pytest.approx([pass_at_k(6, 2, k) for k in range(1, 7)])
    assert outcomes.majority_PK[0, -1] == 1.0
    # Three answers; of two responses both state the same or a new one: 2/6 + 1/6 + 1/6 expected at k = 1, all at k = 6.
    assert outcomes.distinct_PK[0, [0, -1]].tolist() == pytest.approx([4 / 6, 3.0])


def test_what_could_not_be_scored_is_left_out_of_n_and_of_every_vote():
    with_errors, without = outcomes_of("1xte", max_k=4), outcomes_of("1x", max_k=4)
    assert with_errors.num_scored_P.tolist() == [2]
    for name in ("pass_PK", "majority_PK", "distinct_PK"):
        np.testing.assert_array_equal(getattr(with_errors, name), getattr(without, name))
    assert with_errors.pass_PK[0].tolist() == [0.5, 1.0, 1.0, 1.0]  # beyond n what n gives
    assert (with_errors.verdicts["timeout"], with_errors.verdicts["error"]) == (1, 1)


def test_a_problem_without_any_scored_response_is_in_no_statistic_of_verdicts():
    report = evaluate_outcomes(outcomes_of("tte", "1xx"))
    assert report.pass_at_k.at(1).value == pytest.approx(1 / 3)
    assert (report.num_problems, report.num_problems_unscored, report.num_problems_short) == (2, 1, 0)
    assert report.unscored == 0.5
    assert report.tokens.value == 3.0


def test_without_any_verdict_that_is_scored_there_is_no_pass_at_k():
    report = evaluate_outcomes(outcomes_of("tt", "ee"))
    assert (report.pass_at_k, report.majority_at_k, report.all_wrong) == (None, None, None)
    assert set(report.metrics()) == {"eval/tokens_mean", "eval/truncated", "eval/entropy", "eval/unscored", "eval/problems"}


def test_shares_of_problems_all_right_and_all_wrong():
    report = evaluate_outcomes(outcomes_of("11", "1x", "xx", "??", "11"))
    assert (report.all_correct.value, report.all_wrong.value) == (2 / 5, 2 / 5)


def test_entropy_is_of_tokens_and_base_log_probs_are_of_responses():
    """Two responses, of 1 and 3 tokens."""
    table = response_table(
        "m",
        "p0",
        "1x",
        response_ids=[[5], [5, 6, 7]],
        mean_logprob=[-2.0, -1.0],
        base_mean_logprob=[-4.0, -3.0],
        finish_reason=["stop", "length"],
    )
    report = evaluate_candidates(candidates_by_problem(table))
    assert report.entropy.value == pytest.approx((2.0 + 3 * 1.0) / 4)
    assert report.base_logprob.value == pytest.approx(-3.5)
    assert report.base_loglikelihood.value == pytest.approx((-4.0 - 9.0) / 2)
    assert report.base_logprob_correct.value == pytest.approx(-4.0)
    assert (report.tokens.value, report.truncated.value) == (2.0, 0.5)


def test_a_response_without_tokens_has_length_but_no_log_prob():
    table = response_table("m", "p0", "1?", response_ids=[[5, 6], []], mean_logprob=[-2.0, None], base_mean_logprob=[-1.0, None])
    report = evaluate_candidates(candidates_by_problem(table))
    assert (report.entropy.value, report.base_logprob.value, report.tokens.value) == (2.0, -1.0, 1.0)


def test_base_log_probs_are_absent_without_a_base_model():
    report = evaluate_outcomes(outcomes_of("1x", "xx"))
    assert (report.base_logprob, report.base_loglikelihood, report.base_logprob_correct) == (None, None, None)


def test_pools_that_were_not_judged_whole_are_refused():
    table = response_table("m", "p0", "1x", verdict_status=["correct", None])
    with pytest.raises(ValueError, match="not all responses to problem p0 of task sums have a verdict"):
        evaluate_candidates(candidates_by_problem(table))
    with pytest.raises(ValueError, match="no problems"):
        evaluate_candidates([])


def test_pools_may_come_one_at_a_time():
    problems = candidates_of("1x", "xx", "11")
    streamed = problem_outcomes(iter(problems), max_k=2)
    np.testing.assert_array_equal(streamed.pass_PK, problem_outcomes(problems, max_k=2).pass_PK)


def test_metrics_are_the_values_of_the_report():
    report = evaluate_outcomes(outcomes_of("1xxx", "11xx", "xxyz"), ks=(1, 4))
    metrics = report.metrics()
    assert metrics["eval/pass@1"] == pytest.approx((1 / 4 + 2 / 4 + 0) / 3)
    assert metrics["eval/pass@4"] == pytest.approx(2 / 3)
    assert metrics["eval/maj@4"] == pytest.approx((0 + 1 / 2 + 0) / 3)
    assert metrics["eval/distinct_answers"] == pytest.approx((2 + 2 + 3) / 3)
    assert metrics["eval/problems"] == 3.0
    assert report.pass_at_k is not None
    interval = report.pass_at_k.at(4)
    assert (metrics["eval/pass_low@4"], metrics["eval/pass_high@4"]) == (interval.low, interval.high)
    assert metrics["eval/pass_low@4"] < metrics["eval/pass@4"] < metrics["eval/pass_high@4"]
    assert "eval/pass@2" not in metrics
    assert not any("_low" in name for name in evaluate_outcomes(outcomes_of("1xxx")).metrics())  # one problem has no interval


def test_a_report_is_plain_json_and_the_same_for_the_same_seed():
    outcomes = outcomes_of("1xxx", "11xx", "xxyz")
    records = [json.dumps(evaluate_outcomes(outcomes, seed=seed).to_json(), allow_nan=False) for seed in (0, 0, 1)]
    assert records[0] == records[1] != records[2]


@pytest.mark.parametrize("k", [1, 8])
def test_intervals_hold_the_truth_as_often_as_they_say(k):
    """Problems with rates from Beta(1, 2), whose pass@k is known: 1 − E[(1 − p)^k] = 1 − 2 / (k + 2)."""
    truth, num_trials = 1 - 2 / (k + 2), 300
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(num_trials):
        pass_P = _pass_at_k_of(rng.beta(1, 2, size=60), num=16, k=k, rng=rng)
        interval = _interval_of(pass_P, seed=trial)
        held += interval.low <= truth <= interval.high
    assert 0.91 <= held / num_trials <= 0.98


def _pass_at_k_of(rate_P, *, num, k, rng):
    return np.array([pass_at_k(num, int(correct), k) for correct in rng.binomial(num, rate_P)])


def _interval_of(pass_P, *, seed):
    return mean_estimate(pass_P, resample_counts(len(pass_P), NUM_RESAMPLES, seed))


def test_the_interval_of_a_report_is_that_of_its_problems():
    """What the test above says of intervals holds for the report's: they are the same numbers."""
    outcomes = binomial_outcomes(np.linspace(0.1, 0.9, 12), 8, np.random.default_rng(3))
    report = evaluate_outcomes(outcomes, seed=5)
    expected = _interval_of(outcomes.pass_PK[:, 3], seed=5)
    found = report.pass_at_k.at(4)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
