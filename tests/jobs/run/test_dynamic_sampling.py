"""Groups without a contrast make room for others, in whole runs."""

from collections import Counter

import pytest

from buffers.records import Problem, Verdict, VerdictStatus
from jobs.directory.events import EventKind
from tests.jobs.components_fixture import PROMPTS, RESPONSES, LocalRun, assert_same_state, small_config

pytestmark = pytest.mark.whole


class ProblemJudge:
    """Of every third problem half of the responses are right, of the others all or none."""

    def verify_batch(self, problem: Problem, batch) -> list[Verdict]:
        number = int(problem.problem_id.rpartition("/")[2].partition("-")[0])
        right = [(number % 3 == 0 and index % 2 == 0) or number % 3 == 1 for index in range(batch.num_rows)]
        return [Verdict(status=VerdictStatus.CORRECT if one else VerdictStatus.INCORRECT, reward=float(one)) for one in right]


@pytest.fixture
def start(tiny_model, tmp_path):
    def make(name: str = "run", *, judge=None, synchronous: bool = False, **values) -> LocalRun:
        base = {"dynamic_sampling": {"enabled": True, "max_batches": 9}, "bonus": {"enabled": False}}
        config = small_config(tiny_model, tmp_path / name, **{**base, **values})
        return LocalRun(config, judge=judge or ProblemJudge(), synchronous=synchronous)

    return make


def number_of(problem_id: str) -> int:
    return int(problem_id.rpartition("/")[2].partition("-")[0])


def check_books(run: LocalRun) -> int:
    """Every problem handed out is trained on, in flight or filtered, once; returns how many were filtered."""
    run.admission.check_valid()
    run.books.tokens.check_sums()
    ledger = run.admission.ledger
    dropped = [event["group_id"] for event in run.noted(EventKind.DROPPED, reason="filtered")]
    problems = {event["group_id"]: event["problem_id"] for event in run.noted(EventKind.ADMITTED)}
    ends = run.outcomes() + Counter((problems[group_id], "filtered") for group_id in dropped)
    assert Counter(problem for problem, _ in ends) == Counter(run.problems_handed_out())
    assert ledger.filtered == len(dropped)
    return ledger.filtered


@pytest.mark.parametrize("lag", [0, 1])
def test_only_groups_with_a_contrast_are_trained_on_and_the_others_are_counted(start, lag):
    run = start(max_policy_lag=lag, steps=4)
    assert run.train() == 4
    filtered = check_books(run)
    assert all(number_of(problem) % 3 == 0 for problem in run.trained_problems())
    assert len(run.trained_problems()) == 4 * PROMPTS
    assert all(metrics["groups/without_signal"] == 0 for _, metrics in run.reports)
    assert all(metrics["groups/dropped"] == 0 for _, metrics in run.reports)
    assert 0 < run.reports[-1][1]["groups/filtered"] <= filtered
    logged = run.logged("filtered")
    assert logged and all(number_of(row["problem_id"]) % 3 for row in logged)
    assert run.books.tokens.counts()["wasted_filtered"] >= sum(len(row["response_ids"]) for row in logged)


def test_at_a_lag_of_zero_it_is_the_synchronous_trainer(start, tmp_path):
    runs = [start(name, max_policy_lag=0, steps=3, synchronous=name == "synchronous") for name in ("asynchronous", "synchronous")]
    for run in runs:
        assert run.train() == 3
        check_books_of_both(run)
    assert runs[0].samples() == runs[1].samples()
    assert_same_state(runs[0].state(tmp_path / "a"), runs[1].state(tmp_path / "b"))


def check_books_of_both(run: LocalRun) -> None:
    run.admission.check_valid()
    run.books.tokens.check_sums()
    assert run.admission.ledger.filtered > 0


class SameJudge:
    """All is right: nothing has a contrast."""

    def verify_batch(self, problem: Problem, batch) -> list[Verdict]:
        return [Verdict(status=VerdictStatus.CORRECT, reward=1.0)] * batch.num_rows


def test_a_task_without_any_contrast_goes_on_and_costs_so_many_batches_a_step(start):
    run = start(judge=SameJudge(), max_policy_lag=0, steps=3, dynamic_sampling={"enabled": True, "max_batches": 3})
    assert run.train() == 3
    assert check_books(run) >= 2 * 3 * PROMPTS
    (replay,) = run.parts["replay"]
    assert len(replay._buffer.state_dict()["seen_ranges"]) <= 3, "a filtered group leaves no gap once the older ones are done with"
    assert [metrics["groups/filtered"] for _, metrics in run.reports] == [2 * PROMPTS * step for step in (1, 2, 3)]
    assert all(metrics["groups/without_signal"] == 1 for _, metrics in run.reports)


def test_max_batches_of_one_filters_nothing(start):
    run = start(judge=SameJudge(), steps=2, dynamic_sampling={"enabled": True, "max_batches": 1})
    assert run.train() == 2
    assert check_books(run) == 0


@pytest.mark.parametrize("lag", [1, 2])
def test_in_the_fixed_order_it_is_a_function_of_the_configuration(start, tmp_path, lag):
    settings = {"deterministic": True, "max_policy_lag": lag, "steps": 4, "checkpoint": {"every": 1}}
    straight = start("straight", **settings)
    straight.train()
    assert check_books(straight) > 0
    for last in (1, 3, 4):
        stopped = start("stopped", **settings, rollout={"workers": 2})
        stopped.on_report = lambda step, run=stopped, last=last: run.trainer.stop() if step == last else None
        assert stopped.train() == last
    assert stopped.samples() == straight.samples()
    assert len(straight.samples()) == 4 * PROMPTS * RESPONSES
    assert_same_state(straight.state(tmp_path / "a"), stopped.state(tmp_path / "b"))


def test_shaped_rewards_are_trained_on_and_reported_by_their_parts(start):
    run = start(steps=2, dynamic_sampling={}, reward={"format_penalty": 0.5, "overlong_tokens": 3, "overlong_penalty": 0.25})
    assert run.train() == 2
    run.check_valid()
    for row in run.logged():
        over = max(0, len(row["response_ids"]) - 3) / 3
        assert row["reward_length"] == pytest.approx(-0.25 * over)
        assert row["reward"] == (row["verdict_status"] == "correct") + row["reward_format"] + row["reward_length"]
    for _, metrics in run.reports:
        assert metrics["reward/length"] < 0 == metrics["reward/format"]
        assert metrics["reward/mean"] == pytest.approx(metrics["reward/task"] + metrics["reward/length"])
        assert metrics["reward/task"] == pytest.approx(metrics["reward/pass@1"])
