import numpy as np
import pytest

from jobs.analysis.bootstrap import NUM_RESAMPLES, resample_counts
from jobs.analysis.comparison import compare, efficiency_curve, samples_to_reach
from tests.jobs.samples_fixture import binomial_outcomes, outcomes_of


def test_the_smallest_k_that_reaches_a_target_is_found_between_whole_numbers():
    curve = np.array([0.2, 0.4, 0.4, 0.8])
    targets = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 0.81])
    assert samples_to_reach(curve, targets).tolist() == pytest.approx([1, 1, 1.5, 2, 3.25, 4, np.inf])


def test_a_curve_that_is_flat_reaches_its_height_at_once_and_nothing_above():
    assert samples_to_reach(np.zeros(4), np.array([0.0, 0.1])).tolist() == [1.0, np.inf]
    assert samples_to_reach(np.ones(1), np.array([1.0, 0.5])).tolist() == [1.0, 1.0]


def test_efficiency_is_the_papers_ratio_on_hand_made_curves():
    """pass@4 of theirs, 0.4, is ours at 2: half the samples. Their pass@8, 0.9, we never reach."""
    ours = np.array([[0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])
    theirs = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9]])
    curve = efficiency_curve(ours, theirs, (1, 4, 5, 8), None)
    assert curve.ks == (1, 4, 5, 8)
    assert curve.value == pytest.approx((1.0, 2.0, 5 / 3, 0.0))
    assert curve.low is None


def test_what_they_have_not_solved_has_no_efficiency():
    assert efficiency_curve(np.ones((2, 3)), np.zeros((2, 3)), (1, 2), None) is None
    late = np.array([[0.0, 0.0, 1.0]])
    assert efficiency_curve(late, late, (1, 2, 3), None).ks == (3,)


def test_a_model_has_efficiency_1_against_itself_wherever_its_curve_rises():
    outcomes = binomial_outcomes(np.linspace(0.05, 0.6, 20), 16, np.random.default_rng(0))
    comparison = compare("a", outcomes, "a again", outcomes)
    assert comparison.efficiency.value == pytest.approx([1.0] * len(comparison.efficiency.ks))
    assert comparison.difference.low == pytest.approx([0.0] * len(comparison.difference.ks))
    assert comparison.difference.high == pytest.approx([0.0] * len(comparison.difference.ks))


def test_the_interval_of_the_efficiency_holds_its_value_and_grows_without_reach():
    better = binomial_outcomes(np.linspace(0.1, 0.8, 40), 32, np.random.default_rng(1))
    worse = binomial_outcomes(np.linspace(0.02, 0.4, 40), 32, np.random.default_rng(2))
    comparison = compare("better", better, "worse", worse)
    ratio, reverse = comparison.efficiency.at(8), comparison.reverse_efficiency.at(8)
    assert 1.5 < ratio.low < ratio.value < ratio.high < 8
    assert reverse.value == pytest.approx(1 / 2.5, rel=0.5)
    assert comparison.reverse_efficiency.at(32).low == 0.0


def test_resamples_in_which_they_solve_nothing_say_nothing_of_the_efficiency():
    """On a hard set one resample of twenty has no solved problem. Reaching nothing is no merit."""
    num_correct = np.array([1, 2, 3] + [0] * 27)
    curves = np.stack([1 - np.cumprod([1 - n / (64 - k) if 64 - k > n else 0.0 for k in range(64)]) for n in num_correct])
    counts = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=1000).astype(float)
    assert (counts[:, :3].sum(axis=1) == 0).mean() > 0.03
    found = efficiency_curve(curves, curves, (16, 64), counts)
    assert found.value == (1.0, 1.0) and min(found.low) == 1.0 and max(found.high) < 1.1


def test_comparison_is_paired():
    """Problems differ far more than models do: the paired interval is a fraction of what two separate ones would
    give."""
    rng = np.random.default_rng(0)
    rate = rng.beta(0.5, 0.5, 80)
    ours = binomial_outcomes(np.clip(rate + 0.05, 0, 1), 64, rng)
    theirs = binomial_outcomes(np.clip(rate - 0.05, 0, 1), 64, rng)
    paired = compare("a", ours, "b", theirs).difference.at(1)
    one, other = (resample_counts(80, NUM_RESAMPLES, seed) for seed in (1, 2))
    unpaired = np.quantile((one @ ours.pass_PK[:, 0] - other @ theirs.pass_PK[:, 0]) / 80, [0.025, 0.975])
    assert paired.low > 0.05
    assert paired.high - paired.low < 0.35 * (unpaired[1] - unpaired[0])


def test_problems_are_matched_by_their_ids_not_their_places():
    ours, theirs = outcomes_of("11", "xx", "1x"), outcomes_of("11", "xx", "1x")
    backwards = type(theirs)(
        **{
            name: value[::-1] if isinstance(value, (np.ndarray, tuple)) else value
            for name, value in ((name, getattr(theirs, name)) for name in theirs.__dataclass_fields__)
        }
    )
    assert compare("a", ours, "b", backwards).difference.value == (0.0, 0.0)


def test_problems_that_one_of_them_has_no_verdicts_on_are_left_out_of_both():
    comparison = compare("a", outcomes_of("11", "tt", "xx"), "b", outcomes_of("1x", "11", "te"))
    assert comparison.num_problems == 1
    assert comparison.difference.at(1).value == 0.5
    assert compare("a", outcomes_of("tt"), "b", outcomes_of("11")) is None


def test_less_likely_under_the_base_model_is_below_0():
    ours = outcomes_of("11", "1x", base_mean_logprob=-2.0)
    theirs = outcomes_of("11", "1x", base_mean_logprob=-1.5)
    assert compare("a", ours, "b", theirs).base_logprob_difference.value == pytest.approx(-0.5)
    assert compare("a", ours, "b", outcomes_of("11", "1x")).base_logprob_difference is None
