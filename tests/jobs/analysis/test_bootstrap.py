import numpy as np
import pytest

from jobs.analysis.bootstrap import Curve, Estimate, mean_curve, mean_estimate, resample_counts


def test_the_interval_of_two_prompts_spans_both():
    """Resamples of {0, 1} have mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    estimate = mean_estimate(np.array([0.0, 1.0]), resample_counts(2, 500, 0))
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_intervals_of_many_prompts_are_those_of_the_normal_law():
    values = np.random.default_rng(1).random(400)
    estimate = mean_estimate(values, resample_counts(400, 4000, 0))
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_resample_has_as_many_prompts_as_there_are():
    counts = resample_counts(7, 50, 0)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_one_prompt_cannot_be_resampled():
    assert resample_counts(1, 50, 0) is None
    assert mean_estimate(np.array([3.0]), None) == Estimate(value=3.0, low=None, high=None)


def test_a_curve_has_the_interval_of_each_k():
    values = np.random.default_rng(0).random((30, 2))
    counts = resample_counts(30, 100, 0)
    curve = mean_curve([4, 9], values, counts)
    alone, found = mean_estimate(values[:, 1], counts), curve.at(9)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert curve.at(5) is None


def test_a_curve_without_intervals_has_values():
    assert Curve(ks=(2,), value=(0.5,), low=None, high=None).at(2) == Estimate(value=0.5, low=None, high=None)
