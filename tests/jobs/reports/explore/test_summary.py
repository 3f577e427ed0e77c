"""The sentence that says which order to use, and what is said of few prompts."""

from __future__ import annotations

from typing import Any

from jobs.analysis.candidate_table import candidates_by_problem
from jobs.analysis.order_statistics import explore_statistics
from jobs.analysis.recommended_order import recommend
from jobs.reports.explore.summary import notes, overview, summary_sentences
from tests.jobs.analysis.test_recommended_order import pools
from tests.jobs.candidates_fixture import realistic_table


def said(num: int, **first_correct: Any) -> list[str]:
    """The sentences about pools of 16 candidates, one of them correct, which each order meets at its place."""
    outcomes = pools(num, **first_correct)
    statistics = explore_statistics(outcomes, num_resamples=400)
    view = overview(candidates_by_problem(realistic_table(24, 32)))
    recommended = recommend(outcomes, num_resamples=400)
    return [*summary_sentences(view, statistics, recommended, {}), *notes(view, statistics, tuple(first_correct))]


def sentence_of(sentences: list[str], start: str) -> str:
    (found,) = [sentence for sentence in sentences if sentence.startswith(start)]
    return found


def test_an_order_that_is_shown_to_be_better_is_named_alone() -> None:
    found = sentence_of(said(12, repexp=2, longest=12), "Which order to use: ")
    assert "repexp" in found and "where random choice needs 8.5, and every other order is worse." in found


def test_where_every_order_is_worse_random_choice_is_named() -> None:
    found = sentence_of(said(12, repexp=12, longest=15), "Which order to use: ")
    assert found.startswith("Which order to use: random (exact), with 8.5") and found.endswith(", and every other order is worse.")


def test_an_order_that_is_shown_to_be_worse_is_never_recommended() -> None:
    lucky = [1, 16, 3, 15, 2, 11, 4, 9, 8, 6, 12, 7]
    found = sentence_of(said(12, longest=lucky, repexp=15), "Which order to use: ")
    assert found.startswith("Which order to use: none is shown to be better than random choice. The best was longest, with 7.8")
    assert "not told from it: random (exact)." in found and "epexp" not in found


def test_of_few_solvable_prompts_nothing_is_concluded() -> None:
    sentences = said(3, repexp=[1, 2, 1])
    assert "too few prompts to compare it with random choice" in sentence_of(sentences, "repexp (novelty):")
    assert any("Intervals over 3 prompts are rough" in sentence for sentence in sentences)
