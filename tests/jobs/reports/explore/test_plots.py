import numpy as np
import pytest

from bonus.orders import ORDERS
from jobs.analysis.candidate_table import candidates_by_problem
from jobs.analysis.order_statistics import explore_statistics, judge
from jobs.reports.explore.plots import STYLES, efficiency_figure, first_correct_figure, pass_at_k_figure, style_of
from tests.jobs.candidates_fixture import small_table


def judged(*verdicts, orders=("repexp", "quality")):
    return judge([candidates.judged() for candidates in candidates_by_problem(small_table(*verdicts, orders=orders))])


def figures(*verdicts, **options):
    outcomes = judged(*verdicts, **options)
    statistics = explore_statistics(outcomes, num_resamples=50)
    return pass_at_k_figure(statistics), first_correct_figure(outcomes), efficiency_figure(statistics)


def test_lines_that_share_a_style_differ_in_marker():
    looks = [(str(style.line), style.marker) for style in STYLES.values()]
    assert set(STYLES) == set(ORDERS)
    assert len(set(looks)) == len(looks)


def test_the_legend_lists_the_best_order_first():
    drawing, _, _ = figures("1000", "1000")
    assert drawing.numbers["order_of_legend"] == ["repexp", "random", "quality"]


def test_the_scatter_counts_prompts_on_each_side_of_the_diagonal():
    """repexp takes candidates as they stand, first correct at 1, 2, 3, 1 against 2.5, 2.5, 2.5, 1."""
    _, drawing, _ = figures("1000", "0100", "0010", "1111", "0000")
    assert drawing.numbers["repexp"] == {"random_expected": [2.5, 2.5, 2.5, 1.0], "order": [1, 2, 3, 1], "below": 2, "above": 1}


def test_numbers_of_the_efficiency_keep_the_zero_that_a_logarithmic_axis_cannot_show():
    _, _, drawing = figures("0001", "0001")
    assert drawing.numbers["repexp"]["value"] == pytest.approx([0.0, 0.0, 0.0, 1.0])


def test_orders_by_novelty_that_are_not_there_have_no_panel():
    passk, first, efficiency = figures("10", "01", orders=("likeliest",))
    assert set(passk.numbers["curves"]) == {"likeliest", "random"}
    assert (first, efficiency) == (None, None)


def test_names_of_unknown_orders_are_drawn_as_they_are():
    drawing, _, _ = figures("10", "01", orders=("my_$order$ {x",))
    assert drawing.png.startswith(b"\x89PNG")
    assert style_of("my_$order$ {x") == style_of("my_$order$ {x")


def test_a_figure_is_the_same_bytes_every_time():
    first, again = figures("010", "100")[0], figures("010", "100")[0]
    assert first.png == again.png
    assert np.array_equal(first.numbers["curves"]["random"]["value"], again.numbers["curves"]["random"]["value"])
