"""A curriculum in whole runs: what is asked next follows from what was trained on, and from nothing else."""

import random

import pytest

from buffers.records import Problem, Verdict, VerdictStatus
from tests.jobs.components_fixture import CoinJudge, LocalRun, assert_same_state, random_delays, small_config

pytestmark = pytest.mark.whole


class SumsAreEasy(CoinJudge):
    """All answers to sums are right, of the others about half."""

    def verify_batch(self, problem: Problem, batch) -> list[Verdict]:
        if problem.meta["kind"] == "sum":
            return [Verdict(status=VerdictStatus.CORRECT, reward=1.0)] * batch.num_rows
        return super().verify_batch(problem, batch)


@pytest.fixture
def start(tiny_model, tmp_path):
    def make(name, *, around=None, **values):
        base = {
            "task": {"curriculum": {"enabled": True}},
            "deterministic": True,
            "max_policy_lag": 1,
            "steps": 6,
            "checkpoint": {"every": 2},
        }
        return LocalRun(small_config(tiny_model, tmp_path / name, **{**base, **values}), around=around, judge=SumsAreEasy())

    return make


def test_what_is_asked_depends_on_the_measured_rates_and_not_on_timing_or_restarts(start, tmp_path):
    straight = start("straight")
    straight.train()
    straight.admission.check_valid()
    assert straight.stream.num_passed_over > 0
    assert straight.stream.pass_rates["arithmetic/sum"] == 1.0
    _, metrics = straight.reports[-1]
    assert metrics["curriculum/passed_over"] > 0
    for last in (1, 3, 6):
        stopped = start("stopped", around=random_delays(random.Random(last), most_s=0.005), rollout={"workers": 2})
        stopped.on_report = lambda step, run=stopped, last=last: run.trainer.stop() if step == last else None
        assert stopped.train() == last
    assert stopped.samples() == straight.samples()
    assert stopped.stream.state_dict() == straight.stream.state_dict()
    assert_same_state(straight.state(tmp_path / "a"), stopped.state(tmp_path / "b"))


def test_at_a_lag_of_zero_it_is_the_synchronous_trainer(start, tiny_model, tmp_path):
    asynchronous = start("asynchronous", deterministic=False, max_policy_lag=0)
    asynchronous.train()
    settings = asynchronous.config.model_copy(update={"run_dir": str(tmp_path / "synchronous")})
    synchronous = LocalRun(settings, synchronous=True, judge=SumsAreEasy())
    synchronous.train()
    assert synchronous.samples() == asynchronous.samples()


def test_without_a_curriculum_nothing_is_passed_over_or_reported(start):
    run = start("without", task={}, steps=2)
    run.train()
    assert run.stream.num_passed_over == 0 and not run.stream.pass_rates
    assert not [name for _, metrics in run.reports for name in metrics if name.startswith("curriculum/")]
