from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest

from jobs.analysis.majority import majority_curve
from jobs.evaluation_config import MAX_RESPONSES


def by_enumeration(answers, correct, k) -> float:
    """Every choice of k responses; a tie is as many fractions of a win."""
    shares = {a: np.mean([ok for b, ok in zip(answers, correct, strict=True) if b == a]) for a in set(answers) - {None}}
    total = 0.0
    for chosen in combinations(range(len(answers)), k):
        votes = Counter(answers[i] for i in chosen if answers[i] is not None)
        if votes:
            winners = [answer for answer, count in votes.items() if count == max(votes.values())]
            total += np.mean([shares[answer] for answer in winners])
    return total / comb(len(answers), k)


def curve(letters: str, right: str = "a", max_k: int | None = None):
    answers = [None if letter == "?" else letter for letter in letters]
    return majority_curve(answers, np.array([letter == right for letter in letters]), max_k or len(letters))


@pytest.mark.parametrize("seed", range(25))
def test_majority_votes_equal_those_of_every_choice_of_responses(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 10))
    answers = [None if letter == "?" else letter for letter in rng.choice(list("abcd?"), num)]
    correct = np.array([answer == "a" or (answer == "b" and bool(rng.random() < 0.5)) for answer in answers])
    expected = [by_enumeration(answers, correct, k) for k in range(1, num + 1)]
    np.testing.assert_allclose(majority_curve(answers, correct, num), expected, rtol=0, atol=1e-12)


def test_a_tie_is_as_likely_to_go_either_way():
    np.testing.assert_allclose(curve("ab"), [1 / 2, 1 / 2])
    np.testing.assert_allclose(curve("abc"), [1 / 3, 1 / 3, 1 / 3])
    assert curve("aabbc")[-1] == pytest.approx(1 / 2)


def test_responses_without_an_answer_do_not_vote_and_nobody_voting_is_wrong():
    np.testing.assert_allclose(curve("a??"), [1 / 3, 2 / 3, 1.0])
    assert curve("???").tolist() == [0.0, 0.0, 0.0]


def test_beyond_the_last_response_all_vote():
    assert curve("aab", max_k=5).tolist() == pytest.approx([2 / 3, 2 / 3, 1.0, 1.0, 1.0])


def test_an_answer_judged_both_ways_counts_with_its_share():
    assert majority_curve(["a", "a", "a", "a"], np.array([True, True, True, False]), 2).tolist() == pytest.approx([0.75, 0.75])


def test_a_large_pool_agrees_with_drawing():
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcde"), 256, p=[0.3, 0.28, 0.2, 0.12, 0.1])
    exact = curve("".join(letters))
    for k in (5, 32, 128):
        drawn = [Counter(rng.choice(letters, k, replace=False)).most_common() for _ in range(2000)]
        won = np.mean([sum(c == votes[0][1] and a == "a" for a, c in votes) / sum(c == votes[0][1] for _, c in votes) for votes in drawn])
        assert exact[k - 1] == pytest.approx(won, abs=4 * 0.5 / 2000**0.5)


def test_the_largest_pool_stays_within_0_and_1():
    letters = "".join(np.random.default_rng(1).choice(list("abcdefgh"), MAX_RESPONSES))
    values = curve(letters, max_k=MAX_RESPONSES)
    assert values[0] == pytest.approx(letters.count("a") / MAX_RESPONSES)
    assert (values >= 0).all() and (values <= 1 + 1e-9).all()


@pytest.mark.parametrize("num", [0, MAX_RESPONSES + 1])
def test_too_many_responses_or_none_are_refused(num):
    with pytest.raises(ValueError, match=f"not {num}"):
        majority_curve(["a"] * num, np.ones(num, dtype=bool), 1)
