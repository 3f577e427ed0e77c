from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest

from jobs.analysis.pass_at_k import miss_at_k_curves, pass_at_k, pass_at_k_curves

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "repexp.npz"


def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_one():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15), (n, c, k)


def test_pass_at_k_is_exact_where_factorials_overflow_floats():
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert pass_at_k(10_000, 0, 9_999) == 0.0
    assert pass_at_k(10_000, 2, 9_999) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_the_impossible(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_curves_equal_the_scalar_estimator():
    counts = [(n, c) for n in range(1, 13) for c in range(n + 1)]
    curves = pass_at_k_curves([n for n, _ in counts], [c for _, c in counts], 12)
    assert curves.shape == (len(counts), 12)
    for (n, c), curve in zip(counts, curves, strict=True):
        np.testing.assert_allclose(curve[:n], [pass_at_k(n, c, k) for k in range(1, n + 1)], rtol=0, atol=1e-15)


def test_beyond_the_last_response_a_curve_stays_as_it_is():
    np.testing.assert_allclose(pass_at_k_curves([2, 2, 2], [0, 1, 2], 5), [[0] * 5, [0.5, 1, 1, 1, 1], [1] * 5])


def test_misses_are_exact_where_one_minus_pass_at_k_rounds_to_zero():
    miss = miss_at_k_curves([64], [32], 40)[0]
    assert miss[31] == pytest.approx(1 / comb(64, 32), rel=1e-13)
    assert 1.0 - pass_at_k_curves([64], [32], 40)[0][31] == 0.0
    assert (miss[32:] == 0.0).all()


def test_curves_are_stable_for_many_responses():
    curve = pass_at_k_curves([10_000], [3], 10_000)[0]
    ks = [1, 10, 1_000, 5_000, 9_000, 9_997]
    np.testing.assert_allclose(curve[np.array(ks) - 1], [pass_at_k(10_000, 3, k) for k in ks], rtol=1e-11)


@pytest.mark.parametrize(
    ("n", "c", "max_k", "named"),
    [
        ([4, 3], [1, 5], 2, "n=3, c=5"),
        ([4], [-1], 2, "c=-1"),
        ([0], [0], 2, "n=0"),
        ([4], [1], 0, "max_k=0"),
        ([4, 4], [1], 2, "2 n and 1 c"),
    ],
)
def test_curves_refuse_the_impossible(n, c, max_k, named):
    with pytest.raises(ValueError, match=named):
        miss_at_k_curves(n, c, max_k)


@pytest.mark.skipif(not VECTORS.is_file(), reason=f"{VECTORS} is not there")
def test_pass_at_k_agrees_with_the_shared_vectors():
    vectors = np.load(VECTORS)
    cases = zip(vectors["passk_n"], vectors["passk_c"], strict=True)
    value = [[pass_at_k(int(n), int(c), int(k)) for k in vectors["passk_k"]] for n, c in cases]
    assert vectors["passk_value"].size > 4
    np.testing.assert_allclose(value, vectors["passk_value"], rtol=0, atol=1e-12)
    curves = pass_at_k_curves(vectors["passk_n"], vectors["passk_c"], int(vectors["passk_k"].max()))
    np.testing.assert_allclose(curves[:, vectors["passk_k"] - 1], vectors["passk_value"], rtol=0, atol=1e-12)
