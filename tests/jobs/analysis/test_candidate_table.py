import numpy as np
import pyarrow as pa
import pytest

from jobs.analysis.candidate_table import candidates_by_problem, label_of, order_names
from tests.jobs.candidates_fixture import as_table, row, small_table


def test_candidates_stand_by_their_sample_number_wherever_their_rows_stand():
    rows = [row(p, i, {"repexp": (i + 1) % 3}, response_text=f"{p}/{i}") for p in (0, 1) for i in range(3)]
    first, second = candidates_by_problem(as_table([rows[4], rows[2], rows[0], rows[3], rows[1], rows[5]]))
    assert (first.problem_id, list(first.texts)) == ("p1", ["1/0", "1/1", "1/2"])
    assert (second.problem_id, list(second.texts)) == ("p0", ["0/0", "0/1", "0/2"])
    assert first.picks("repexp").tolist() == [2, 0, 1]


def test_problems_of_two_tasks_may_share_an_id():
    problems = candidates_by_problem(as_table([row(0, 0, {}, task="a"), row(0, 0, {}, task="b")]))
    assert [candidates.task for candidates in problems] == ["a", "b"]


def test_timeouts_and_errors_are_verified_and_not_correct():
    (candidates,) = candidates_by_problem(small_table("10?te."))
    assert candidates.verified_N.tolist() == [True, True, True, True, True, False]
    assert candidates.correct_N.tolist() == [True, False, False, False, False, False]


def test_a_candidate_without_a_feature_has_a_row_of_nan():
    rows = [row(0, 0, {}, feature=[1.0, 2.0]), row(0, 1, {}), row(0, 2, {}, feature=[3.0, 4.0])]
    (candidates,) = candidates_by_problem(as_table(rows))
    np.testing.assert_array_equal(candidates.features_ND, [[1, 2], [np.nan, np.nan], [3, 4]])


def test_what_a_table_does_not_say_is_missing_not_zero():
    table = small_table("..", orders=("repexp",)).drop_columns(
        ["mean_logprob", "feature", "verdict_status", "reward", "verdict_answer", "score_repexp", "score_quality"]
    )
    (candidates,) = candidates_by_problem(table)
    assert candidates.features_ND is None
    assert np.isnan(candidates.mean_logprob_N).all()
    assert (list(candidates.statuses), list(candidates.answers), dict(candidates.scores)) == ([None, None], [None, None], {})


def test_answers_are_what_the_task_reads_or_else_what_the_verifier_read():
    table = small_table("10", verdict_answer="7")
    assert candidates_by_problem(table)[0].answers == ["7", "7"]
    table = table.append_column("final_answer", pa.array(["8", None]))
    assert candidates_by_problem(table)[0].answers == ["8", None]


def test_an_order_without_a_rank_for_every_candidate_is_left_out():
    table = small_table("10", "01").append_column("rank_kmeans", pa.array([0, 1, None, None], pa.int32()))
    assert order_names(table) == ("repexp", "quality")


def test_unknown_orders_come_last_by_name():
    assert order_names(small_table("10", orders=("zebra", "random", "ant", "repexp"))) == ("repexp", "random", "ant", "zebra")
    assert (label_of("ant_hill"), label_of("random")) == ("ant hill", "random (exact)")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([row(0, 0, {}), row(0, 2, {})], "problem p0 of task sums: the sample numbers are not 0 to 1"),
        ([row(0, 0, {"repexp": 1}), row(0, 1, {"repexp": 1})], "problem p0 of task sums: rank_repexp is not 0 to 1"),
        ([row(0, 0, {}, feature=[1.0]), row(0, 1, {}, feature=[1.0, 2.0])], "different sizes"),
        ([{"task": "sums", "index": 0}], "lacks the columns problem_id, question"),
    ],
)
def test_a_table_that_is_not_one_of_candidates_is_refused_by_name(rows, named):
    with pytest.raises(ValueError, match=named):
        candidates_by_problem(as_table(rows))
