from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate import pass_at_k

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors" / "repexp.npz"


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


@pytest.mark.skipif(not VECTORS.is_file(), reason=f"{VECTORS} is not there")
def test_pass_at_k_agrees_with_the_shared_vectors():
    vectors = np.load(VECTORS)
    cases = zip(vectors["passk_n"], vectors["passk_c"], strict=True)
    value = [[pass_at_k(int(n), int(c), int(k)) for k in vectors["passk_k"]] for n, c in cases]
    assert vectors["passk_value"].size > 4
    np.testing.assert_allclose(value, vectors["passk_value"], rtol=0, atol=1e-12)
