from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.records import Problem
from tasks.curriculum import Curriculum, CurriculumConfig, PassRate, bucket, expected_rate, sampling_weight


def problem(name: str, kind: str | None = None) -> Problem:
    return Problem(task="sums", problem_id=f"sums/{name}", question="?", answer="!", meta={} if kind is None else {"kind": kind})


def observed(curriculum: Curriculum, verdicts: Iterable[tuple[Problem, int, int]], *, recurs: bool = True) -> Curriculum:
    for about, num_correct, num_scored in verdicts:
        curriculum.observe(about, num_correct=num_correct, num_scored=num_scored, recurs=recurs)
    return curriculum


@pytest.mark.parametrize(("rate", "weight"), [(0.0, 0.2), (1.0, 0.2), (0.5, 1.0), (0.25, 0.2 + 0.8 * 0.75), (0.75, 0.2 + 0.8 * 0.75)])
def test_weight_is_one_at_a_half_and_the_floor_at_the_ends(rate: float, weight: float) -> None:
    assert sampling_weight(rate, floor=0.2) == pytest.approx(weight, abs=1e-15)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_weights_keep_to_the_floor_and_fall_with_the_distance_from_a_half(one: float, other: float, floor: float) -> None:
    weights = [sampling_weight(rate, floor=floor) for rate in (one, other)]
    assert all(floor - 1e-12 <= weight <= 1 + 1e-12 for weight in weights)
    if abs(one - 0.5) < abs(other - 0.5):
        assert weights[0] >= weights[1] - 1e-12


def test_rate_is_drawn_towards_its_kind_and_the_kind_towards_a_half() -> None:
    """By hand: p_kind = (1 + 2) / (8 + 4) = 1/4; p = (8 + 4/4) / (8 + 4) = 3/4."""
    own, kind = PassRate(correct=8, scored=8), PassRate(correct=1, scored=8)
    assert expected_rate(own, kind, prior_responses=4) == pytest.approx(0.75)
    assert expected_rate(PassRate(), kind, prior_responses=4) == pytest.approx(0.25)
    assert expected_rate(PassRate(), PassRate(), prior_responses=4) == 0.5


def test_older_observations_count_less() -> None:
    rate = PassRate().observed(correct=8, scored=8, decay=0.5).observed(correct=0, scored=8, decay=0.5)
    assert rate == PassRate(correct=4, scored=12)


def test_kind_of_a_problem_is_its_task_and_what_the_task_calls_it() -> None:
    assert bucket(problem("1", "hard")) == "sums/hard"
    assert bucket(problem("1")) == "sums"


def test_what_nothing_is_known_of_is_always_taken() -> None:
    curriculum = Curriculum(CurriculumConfig(enabled=True), seed=0)
    assert curriculum.weight(problem("1", "hard")) == 1
    assert all(curriculum.accepts(problem(str(position)), position) for position in range(100))


def test_problems_are_taken_in_proportion_to_their_weights() -> None:
    kinds = {"never": 0, "seldom": 1, "half": 4, "always": 8}
    verdicts = [(problem("0", kind), num_correct, 8) for kind, num_correct in kinds.items() for _ in range(100)]
    curriculum = observed(Curriculum(CurriculumConfig(enabled=True, floor=0.05, decay=1.0), seed=0), verdicts, recurs=False)
    taken = Counter(kind for position in range(8000) if curriculum.accepts(problem("1", kind := list(kinds)[position % 4]), position))
    for kind in kinds:
        assert taken[kind] / 2000 == pytest.approx(curriculum.weight(problem("1", kind)), abs=0.035)
    assert taken["half"] > taken["seldom"] > taken["never"] > 0 and taken["always"] > 0


def test_problem_that_recurs_has_a_rate_of_its_own() -> None:
    known, other = problem("known", "hard"), problem("other", "hard")
    verdicts = [(known, 8, 8), (other, 4, 8)]
    recurring = observed(Curriculum(CurriculumConfig(enabled=True), seed=0), verdicts)
    assert recurring.weight(known) < recurring.weight(other)
    fleeting = observed(Curriculum(CurriculumConfig(enabled=True), seed=0), verdicts, recurs=False)
    assert fleeting.weight(known) == fleeting.weight(other)


def test_memory_is_bounded_and_the_least_recent_is_forgotten() -> None:
    config = CurriculumConfig(enabled=True, max_problems=3)
    curriculum = observed(Curriculum(config, seed=0), [(problem(name), 1, 8) for name in "abcad"])
    assert [key for key, _, _ in curriculum.state_dict()["problems"]] == ["sums:sums/c", "sums:sums/a", "sums:sums/d"]


def test_responses_without_a_score_say_nothing() -> None:
    curriculum = observed(Curriculum(CurriculumConfig(enabled=True), seed=0), [(problem("1"), 0, 0)])
    assert curriculum.state_dict() == {"buckets": [], "problems": []} and curriculum.rates() == {}


def test_rates_are_shares_of_correct_responses_by_kind() -> None:
    verdicts = [(problem("1", "easy"), 6, 8), (problem("2", "hard"), 1, 8)]
    assert observed(Curriculum(CurriculumConfig(enabled=True), seed=0), verdicts).rates() == {"sums/easy": 0.75, "sums/hard": 0.125}


@pytest.mark.parametrize(("num_correct", "num_scored"), [(-1, 8), (9, 8), (1, 0)])
def test_impossible_counts_are_refused(num_correct: int, num_scored: int) -> None:
    with pytest.raises(ValueError, match=f"{num_correct} correct of {num_scored} scored responses to 'sums/1'"):
        observed(Curriculum(CurriculumConfig(enabled=True), seed=0), [(problem("1"), num_correct, num_scored)])


VERDICTS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, "easy", "hard"]), st.integers(0, 8)), max_size=40)


@given(VERDICTS, VERDICTS, st.integers(1, 6))
def test_state_is_exact_through_json(before: list[tuple[int, str, int]], after: list[tuple[int, str, int]], max_problems: int) -> None:
    config = CurriculumConfig(enabled=True, max_problems=max_problems)

    def group(verdict: tuple[int, str, int]) -> tuple[Problem, int, int]:
        return problem(str(verdict[0]), verdict[1]), verdict[2], 8

    saved = observed(Curriculum(config, seed=0), map(group, before))
    restored = Curriculum(config, seed=0)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    for curriculum in (saved, restored):
        observed(curriculum, map(group, after))
    assert restored.state_dict() == saved.state_dict()
    candidates = [problem(str(name), kind) for name in range(12) for kind in (None, "easy")]
    assert [restored.weight(one) for one in candidates] == [saved.weight(one) for one in candidates]


@pytest.mark.parametrize("rate", [["a", 2.0, 1.0], ["a", -1.0, 1.0], ["a", 0.0, 0.0]])
def test_damaged_state_is_refused(rate: list[object]) -> None:
    with pytest.raises(ValueError, match="no share of scored responses"):
        Curriculum(CurriculumConfig(enabled=True), seed=0).load_state_dict({"buckets": [rate], "problems": []})
