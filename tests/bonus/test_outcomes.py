"""The bonuses from final answers, against what a person would count."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from bonus.base import StepRows
from bonus.config import BonusConfig
from bonus.methods import bonus_of
from bonus.outcome_batch import share_of_others
from bonus.outcome_ucb import AnswerCounts, absorb, counts_of, merge, nbytes
from tests.bonus.steps import all_equal, bonuses_of, make_step, through_files

VALID = torch.ones(1, 4, dtype=torch.bool)


def answered(answers: list[str | None], step: int = 1, key: str = "task/a") -> StepRows:
    """A step of one group of responses with tokens, with these answers."""
    return replace(make_step(step, groups=1), keys_G=[key], answers_GK=[answers], valid_GK=VALID, lengths_GK=torch.ones(1, 4))


# ---- outcome_batch ----


def slow_share(answers: list[str | None], place: int) -> float:
    others = [answer for other, answer in enumerate(answers) if other != place]
    if answers[place] is None or not others:
        return 0.0
    return sum(answer != answers[place] for answer in others) / len(others)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_that_of_the_other_responses_with_another_answer(seed: int) -> None:
    step = make_step(seed=seed)
    assert step.answers_GK is not None
    found = share_of_others(step.answers_GK, step.valid_GK)
    for group, answers in enumerate(step.answers_GK):
        places = [place for place in range(4) if step.valid_GK[group, place]]
        stated = [answers[place] for place in places]
        expected = [slow_share(stated, number) for number in range(len(stated))]
        assert found[group, places].tolist() == pytest.approx(expected)


def test_it_is_the_paper_s_penalty_up_to_a_factor_and_a_constant() -> None:
    answers = ["7", "7", "9", "7"]
    (found,), _ = bonuses_of(bonus_of(BonusConfig(kind="outcome_batch")), [answered(answers)])
    paper = torch.tensor([[-sum(other == answer for other in answers) + 1 for answer in answers]]) / 4
    torch.testing.assert_close(found, 1 + paper * 4 / 3, check_dtype=False)


@pytest.mark.parametrize("answers", [["7"] * 4, [None] * 4])
def test_equal_answers_have_no_contrast(answers: list[str | None]) -> None:
    (found,), _ = bonuses_of(bonus_of(BonusConfig(kind="outcome_batch")), [answered(answers)])
    assert found.tolist() == [[0.0] * 4]


def test_saying_nothing_is_never_rarer_than_an_answer() -> None:
    (found,), _ = bonuses_of(bonus_of(BonusConfig(kind="outcome_batch")), [answered(["7", "7", "7", None])])
    assert found[0, 3] == 0 < found[0, 0]


# ---- outcome_ucb ----


def test_counts_and_bonuses_of_a_run_are_those_of_a_slow_count() -> None:
    bonus, counts = bonus_of(BonusConfig(kind="outcome_ucb")), Counter[tuple[str, str | None]]()
    state = bonus.init_state()
    for number in range(1, 7):
        step = make_step(number, seed=number)
        assert step.answers_GK is not None
        pairs = [[(key, answer) for answer in answers] for key, answers in zip(step.keys_G, step.answers_GK, strict=True)]
        counts.update(pair for row in pairs for pair in row if pair[1] is not None)
        scores, state = bonus.score(step, state)
        expected = [[counts[pair] ** -0.5 if pair[1] is not None else 0.0 for pair in row] for row in pairs]
        assert scores.bonus_GK.tolist() == [pytest.approx(row) for row in expected]
        assert scores.metrics["remembered_answers"] == len(counts)
    assert sum(sum(known.values()) for known in state.of_problem.values()) == counts.total()


def test_the_three_variants_differ_by_what_is_subtracted() -> None:
    step = answered(["7", "7", "9", None])
    raw = torch.tensor([[2**-0.5, 2**-0.5, 1.0, 0.0]], dtype=torch.float64)
    expected = {"none": raw, "mean": raw - raw.mean(), "constant": raw - 0.5}
    for baseline, values in expected.items():
        (found,), _ = bonuses_of(bonus_of(BonusConfig(kind="outcome_ucb", outcome_ucb={"baseline": baseline})), [step])
        torch.testing.assert_close(found, values)


@pytest.mark.parametrize("baseline", ["mean", "constant"])
def test_no_variant_makes_it_pay_to_say_nothing_at_all(baseline: str) -> None:
    step = answered(["7", "7", None, None])
    step = replace(step, valid_GK=torch.tensor([[True, True, True, False]]))  # the last response is empty
    (found,), _ = bonuses_of(bonus_of(BonusConfig(kind="outcome_ucb", outcome_ucb={"baseline": baseline})), [step])
    assert found[0, 3] == found[0, 2] == found.min()


def test_at_half_an_answer_is_penalized_from_its_fifth_time_on() -> None:
    bonus = bonus_of(BonusConfig(kind="outcome_ucb", outcome_ucb={"baseline": "constant"}))
    found, _ = bonuses_of(bonus, [answered(["7", "8", "9", str(step)], step, "task/a") for step in range(10, 16)])
    assert [bonus_GK[0, 0].sign().item() for bonus_GK in found] == [1, 1, 1, 0, -1, -1]


def test_the_same_answer_to_another_problem_is_another_outcome() -> None:
    found, _ = bonuses_of(bonus_of(BonusConfig(kind="outcome_ucb")), [answered(["7"] * 4), answered(["7"] * 4, 2, "task/b")])
    assert found[0].tolist() == found[1].tolist() == [[0.5] * 4]


def test_the_least_recently_used_problems_are_forgotten_and_counted() -> None:
    counts, room = AnswerCounts(), nbytes({"task/0": {"7": 1}, "task/1": {"7": 1}})
    for number in range(4):
        counts = absorb(counts, [f"task/{number}"], [["7"]], max_bytes=room)
        assert nbytes(counts.of_problem) <= room
    assert (list(counts.of_problem), counts.num_evicted) == (["task/2", "task/3"], 2)
    counts = absorb(counts, ["task/2"], [["7"]], max_bytes=room)
    counts = absorb(counts, ["task/4"], [["8"]], max_bytes=room)
    assert dict(counts.of_problem) == {"task/2": {"7": 2}, "task/4": {"8": 1}}
    assert counts_of(counts, ["task/3", "task/2"], [["7"], ["7"]]).tolist() == [[0.0], [2.0]]


def test_the_problems_of_a_step_stay_even_if_they_alone_exceed_the_bound() -> None:
    counts = absorb(AnswerCounts(), ["task/0", "task/1"], [["7"], ["8"]], max_bytes=1)
    assert (set(counts.of_problem), counts.num_evicted) == ({"task/0", "task/1"}, 0)


def test_the_bound_and_the_evictions_are_reported() -> None:
    bonus = bonus_of(BonusConfig(kind="outcome_ucb", outcome_ucb={"memory_mib": 1}))
    state, long = bonus.init_state(), "9" * 300_000
    for number in range(1, 6):
        scores, state = bonus.score(answered([f"{long}{number}", None, None, None], number, f"task/{number}"), state)
        assert scores.metrics["remembered_mib"] <= 1
    assert (scores.metrics["remembered_prompts"], scores.metrics["evicted_prompts"]) == (3, 2)


def test_shards_add_up_to_one_history() -> None:
    steps = [make_step(number, seed=number) for number in range(1, 5)]
    shards = []
    for part in (steps[:2], steps[2:], steps):
        counts = AnswerCounts()
        for step in part:
            assert step.answers_GK is not None
            counts = absorb(counts, step.keys_G, step.answers_GK, max_bytes=10**6)
        shards.append(counts)
    merged = merge(shards[0], shards[1])
    assert {key: dict(known) for key, known in merged.of_problem.items()} == {
        key: dict(known) for key, known in shards[2].of_problem.items()
    }


def test_a_step_that_is_absorbed_again_after_a_restore_is_counted_once() -> None:
    bonus = bonus_of(BonusConfig(kind="outcome_ucb"))
    first, second = make_step(1), make_step(2)
    _, saved = bonuses_of(bonus, [first])
    files = through_files(bonus, saved)
    bonus.score(second, saved)  # scored, and lost with the process
    _, again = bonus.score(second, files)
    _, straight = bonuses_of(bonus, [first, second])
    assert all_equal(again, straight)
