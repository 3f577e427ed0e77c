import numpy as np
import pytest

from jobs.analysis.bootstrap import mean_estimate
from jobs.analysis.pass_at_k import pass_at_k_curves
from jobs.analysis.seeds import area_weights, crossed_counts, holm, two_sided_p


def test_a_resample_draws_seeds_and_problems_apart():
    counts = crossed_counts(2, 3, 40, 0).reshape(40, 2, 3)
    assert (counts.sum(axis=(1, 2)) == 6).all()
    for counts_SP in counts:
        assert np.linalg.matrix_rank(counts_SP) <= 1, "a row counts as often as its seed times as often as its problem"
    assert {tuple(row) for row in counts.sum(axis=2)} == {(6.0, 0.0), (3.0, 3.0), (0.0, 6.0)}


def test_two_seeds_and_two_problems_by_hand():
    """Values 0, 0 for one seed and 1, 1 for the other: problems do not matter, and of two drawn seeds the mean is 0,
    1/2 or 1 with chances of 1/4, 1/2, 1/4."""
    counts = crossed_counts(2, 2, 4000, 0)
    means = counts @ np.array([0.0, 0.0, 1.0, 1.0]) / 4
    assert set(means) == {0.0, 0.5, 1.0}
    assert (means == 0.5).mean() == pytest.approx(0.5, abs=0.03)
    assert (means == 0.0).mean() == pytest.approx(0.25, abs=0.03)


def test_two_seeds_that_agree_leave_the_spread_of_problems():
    """Values 0 and 1 of two problems, the same for both seeds."""
    means = crossed_counts(2, 2, 4000, 0) @ np.array([0.0, 1.0, 0.0, 1.0]) / 4
    assert (means == 0.5).mean() == pytest.approx(0.5, abs=0.03)


def test_one_seed_is_the_bootstrap_over_problems_and_one_problem_that_over_seeds():
    assert (crossed_counts(1, 5, 20, 0).sum(axis=1) == 5).all()
    assert (crossed_counts(5, 1, 20, 0).sum(axis=1) == 5).all()
    assert crossed_counts(1, 1, 20, 0) is None


def test_the_same_seed_draws_the_same_problems_whatever_the_number_of_seeds():
    one, three = crossed_counts(1, 4, 10, 7), crossed_counts(3, 4, 10, 7).reshape(10, 3, 4)
    np.testing.assert_allclose(three.sum(axis=1) / 3, one)


def test_the_area_by_hand():
    """Over log k the interval from 1 to 2 is as wide as that from 2 to 4, and half of the whole."""
    assert area_weights(1) == pytest.approx([1.0])
    assert area_weights(2) @ [0.2, 0.6] == pytest.approx(0.4)
    one, two, three, four = 0.1, 0.3, 0.5, 0.7
    first = 0.5 * (one + two) / 2
    rest = (np.log(3 / 2) * (two + three) / 2 + np.log(4 / 3) * (three + four) / 2) / np.log(4)
    assert area_weights(4) @ [one, two, three, four] == pytest.approx(first + rest)


def test_the_area_of_a_flat_curve_is_its_height_and_better_curves_have_more():
    assert area_weights(100).sum() == pytest.approx(1.0)
    curves = pass_at_k_curves([64, 64], [3, 9], 64)
    low, high = curves @ area_weights(64)
    assert curves[0, 0] < low < high < curves[1, -1]


def test_p_values_by_hand():
    """Of 99 resamples 4 lie at or below 0: 2 · (4 + 1) / 100."""
    samples = np.array([-0.1] * 3 + [0.0] + [0.2] * 95)
    assert two_sided_p(samples) == pytest.approx(0.1)
    assert two_sided_p(-samples) == pytest.approx(0.1)
    assert two_sided_p(np.zeros(9)) == 1.0
    assert two_sided_p(np.ones(1999)) == pytest.approx(0.001)
    assert two_sided_p(None) == 1.0


def test_a_p_value_below_five_percent_is_an_interval_that_leaves_out_0():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.normal(0.25, 1.0, 60)
        counts = crossed_counts(1, 60, 1999, 0)
        found = mean_estimate(values, counts)
        p = two_sided_p(counts @ values / 60)
        if abs(p - 0.05) > 0.002:
            assert (p < 0.05) == (found.low > 0 or found.high < 0)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.04: times 3, 2, 1, and never less than the one before."""
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.02})
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.04})
    assert list(adjusted) == ["a", "b", "c"]
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.03}) == {"a": 0.03}
    assert holm({}) == {}


def test_holm_keeps_the_chance_of_any_false_find():
    """Ten methods without a difference, a thousand times: some p-value is below 5 % in 40 % of cases, some adjusted one
    in 5 %."""
    rng = np.random.default_rng(0)
    p_values = rng.random((1000, 10))
    plain = (p_values.min(axis=1) < 0.05).mean()
    found = np.mean([min(holm(dict(enumerate(map(float, row)))).values()) < 0.05 for row in p_values])  # type: ignore[arg-type]
    assert plain > 0.3 and found < 0.07


def coverage(num_seeds: int, spread: float) -> float:
    """How often the interval of a difference of 0.1 over 100 problems holds it. Problems differ by 0.3, a problem
    between runs by 0.25, and seeds by `spread`."""
    rng = np.random.default_rng(0)
    held = []
    for trial in range(200):
        own_SP = rng.normal(0, spread, (num_seeds, 1)) + rng.normal(0, 0.25, (num_seeds, 100))
        found = mean_estimate((0.1 + rng.normal(0, 0.3, 100) + own_SP).ravel(), crossed_counts(num_seeds, 100, 300, trial))
        held.append(found.low <= 0.1 <= found.high)
    return float(np.mean(held))


def test_intervals_hold_the_truth_as_often_as_the_page_says():
    """docs/compare.md: about 95 % where seeds differ little; where they differ much, the less the fewer seeds."""
    assert 0.92 <= coverage(3, 0.0) <= 1.0
    assert 0.78 <= coverage(2, 0.08) < coverage(5, 0.08) <= 0.98
