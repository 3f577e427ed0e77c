from itertools import combinations

import numpy as np
import pytest

from jobs.analysis.candidate_table import candidates_by_problem
from jobs.analysis.picks import FIRST_PICKS, mean_similarity, picks_of_order, unit_features
from tests.jobs.candidates_fixture import as_table, row


def candidates_of(num, **columns):
    """One pool whose order picks candidates as they stand; `columns` hold a value a candidate."""
    return candidates_by_problem(
        as_table([row(0, i, {"repexp": i}, **{name: values[i] for name, values in columns.items()}) for i in range(num)])
    )


def test_picks_are_measured_on_the_first_eight():
    tokens = [[1] * 5] * 8 + [[1] * 100] * 2
    picks = picks_of_order(candidates_of(10, response_ids=tokens, finish_reason=["length"] * 2 + ["stop"] * 8), "repexp")
    assert (picks.mean_tokens, picks.truncated_share) == (5.0, 0.25)


def test_random_picks_are_the_means_of_the_pool():
    picks = picks_of_order(candidates_of(10, response_ids=[[1] * i for i in range(10)], mean_logprob=[-1.0 * i for i in range(10)]), None)
    assert (picks.mean_tokens, picks.mean_logprob) == (4.5, -4.5)


def test_candidates_without_a_log_prob_are_left_out_of_its_mean():
    assert picks_of_order(candidates_of(3, mean_logprob=[-1.0, None, -3.0]), "repexp").mean_logprob == -2.0
    assert picks_of_order(candidates_of(2, mean_logprob=[None, None]), "repexp").mean_logprob is None


def test_different_answers_of_random_picks_are_the_mean_over_all_choices():
    answers = ["a", "a", "a", "b", "b", "c", None, "d", None, "a"]
    problems = candidates_of(10, verdict_answer=answers)
    counts = [len({answers[i] for i in chosen} - {None}) for chosen in combinations(range(10), FIRST_PICKS)]
    assert picks_of_order(problems, None).different_answers == pytest.approx(np.mean(counts))
    assert picks_of_order(problems, "repexp").different_answers == 4


def test_without_answers_there_is_no_number_of_different_ones():
    assert picks_of_order(candidates_of(3), "repexp").different_answers is None


def test_similarity_is_the_mean_cosine_of_pairs_of_centered_features():
    features = np.random.default_rng(0).normal(size=(6, 3))
    (candidates,) = candidates_of(6, feature=features.tolist())
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    expected = np.mean([unit[i] @ unit[j] for i, j in combinations([0, 2, 5], 2)])
    assert mean_similarity(candidates, np.array([0, 2, 5])) == pytest.approx(expected, abs=1e-6)


def test_candidates_without_a_feature_or_at_the_mean_are_like_no_other():
    (candidates,) = candidates_of(4, feature=[[1.0, 0.0], [-1.0, 0.0], None, [0.0, 0.0]])
    assert unit_features(candidates).tolist() == [[1, 0], [-1, 0], [0, 0], [0, 0]]
    assert mean_similarity(candidates, np.arange(4)) == -1.0
    assert mean_similarity(candidates, np.array([0, 2])) is None
