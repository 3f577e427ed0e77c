import pytest

from jobs.analysis.candidate_table import candidates_by_problem
from jobs.analysis.order_statistics import judge
from jobs.reports.explore.examples import choose_examples, first_picks
from jobs.reports.text import visible_text
from tests.jobs.candidates_fixture import as_table, row, small_table


def chosen(*verdicts):
    problems = candidates_by_problem(small_table(*verdicts))
    return [(example.kind, example.problem_id) for example in choose_examples(problems, judge([p.judged() for p in problems]), "repexp")]


def test_prompts_where_novelty_helped_most_come_first_then_those_where_it_hurt_most():
    """First correct at 1, 2, 3, 4 against 5/3 or 5/2 expected: ratios 0.6, 1.2, 0.4, 0.4, 1.6, 1.2; none for the
    unsolvable."""
    assert chosen("1010", "0110", "1000", "1000", "0001", "0000", "0010") == [
        ("helped", "p2"),
        ("helped", "p3"),
        ("helped", "p0"),
        ("hurt", "p4"),
        ("hurt", "p1"),
        ("hurt", "p6"),
    ]


def test_a_prompt_is_not_shown_as_helped_where_it_was_not():
    assert chosen("0001", "11") == [("hurt", "p0")]


@pytest.mark.parametrize("verdicts", [("00", "00", "00", "00"), ("1.", "..", "1.", "10"), ("11", "11", "11", "11")])
def test_where_verdicts_do_not_tell_the_first_prompts_are_shown(verdicts):
    assert chosen(*verdicts) == [("first", "p0"), ("first", "p1"), ("first", "p2")]


def test_examples_count_verifications():
    problems = candidates_by_problem(small_table("0001"))
    (example,) = choose_examples(problems, judge([problems[0].judged()]), "repexp")
    assert (example.first_correct, example.random_first_correct) == (4, 2.5)


def test_a_pick_names_the_earlier_pick_it_is_most_like():
    features = [[2.0, 0.0], [0.0, 2.0], [1.9, 0.1], [-3.9, -2.1]]
    candidates = candidates_by_problem(
        as_table([row(0, i, {"repexp": i}, feature=f, score_repexp=4.0 - i) for i, f in enumerate(features)])
    )[0]
    picks = first_picks(candidates, "repexp")
    assert [pick.nearest_place for pick in picks] == [None, 1, 1, 2]
    assert [pick.score for pick in picks] == [4.0, 3.0, 2.0, 1.0]
    assert picks[0].similarity is None
    assert picks[2].similarity > 0.99


def test_the_first_five_picks_are_shown_in_their_order():
    candidates = candidates_by_problem(small_table("000000000"))[0]
    assert [pick.index for pick in first_picks(candidates, "quality")] == [8, 7, 6, 5, 4]
    assert [pick.place for pick in first_picks(candidates, "quality")] == [1, 2, 3, 4, 5]


def test_long_text_is_cut_and_says_so():
    assert visible_text("a" * 12, 10) == "aaaaaaaaaa … (2 more characters)"
    assert visible_text("a" * 10, 10) == "a" * 10


def test_characters_that_steer_or_reorder_a_screen_are_spelled_out():
    assert visible_text("a\x1b[2J\u202eb\r\n\tc\x00é→😀", 100) == "a\\u{1b}[2J\\u{202e}b\\u{d}\n\tc\\u{0}é→😀"
