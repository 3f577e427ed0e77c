"""A fixed order: what is trained on when, under which weights, is a function of the configuration alone."""

import random

import pytest

from actors.rollout import DataError
from buffers.admission import Admission
from buffers.records import Problem
from jobs.run.fixed_order import FixedOrder
from tests.jobs.components_fixture import PROMPTS, LocalRun, assert_same_state, random_delays, small_config

pytestmark = pytest.mark.whole

TIMING = ("time/", "memory/", "rollout/", "replay/", "publication/", "learner/tokens_per_s", "tokens/")
"""Metrics that say how fast things went, or what was under way."""


# ---- the state machine ----


class Schedule:
    """Admits, samples, scores, trains and publishes in a random order, each as soon as it is allowed to."""

    def __init__(self, rng: random.Random, *, prompts: int, lag: int) -> None:
        self._rng = rng
        self._prompts = prompts
        self._lag = lag
        self.admission = Admission(prompts_per_step=prompts, group_size=2, max_policy_lag=lag)
        self.order = FixedOrder(self.admission, prompts_per_step=prompts)
        self.unsampled: list[int] = []
        self.unheld: list[int] = []
        self.held: set[int] = set()
        self.trained: list[list[int]] = []
        self.sampled_under: dict[int, int] = {}
        self.admitted_under: dict[int, int] = {}
        self.pending = 0  # versions trained and not published

    def go(self, num_steps: int) -> None:
        actions = (self.admit, self.sample, self.hold, self.train, self.publish)
        while len(self.trained) < num_steps:
            possible = [action for action in actions if action(dry=True)]
            assert possible, "nothing can move"
            self._rng.choice(possible)(dry=False)
            self.admission.check_valid()

    def admit(self, *, dry: bool) -> bool:
        if not dry:
            number = self.admission.ledger.admitted
            problem = Problem(task="t", problem_id=str(number), question="", answer="")
            request = self.admission.admit(lambda: problem)
            self.admitted_under[request.group_id] = request.admitted_version
            self.order.submitted(request.group_id)
            self.unsampled.append(request.group_id)
        return self.admission.free_slots > 0

    def sample(self, *, dry: bool) -> bool:
        if not dry:
            group_id = self.unsampled.pop(self._rng.randrange(len(self.unsampled)))
            self.sampled_under[group_id] = self.admission.live_version
            self.unheld.append(group_id)
        return bool(self.unsampled)

    def hold(self, *, dry: bool) -> bool:
        if not dry:
            group_id = self.unheld.pop(self._rng.randrange(len(self.unheld)))
            self.held.add(group_id)
            self.order.settled(group_id)
        return bool(self.unheld)

    def train(self, *, dry: bool) -> bool:
        if not dry:
            batch = sorted(self.held)[: self._prompts]
            self.held.difference_update(batch)
            self.trained.append(batch)
            self.admission.trained(batch, version=len(self.trained))
            self.pending += 1
        return self.pending < 2 and self.order.next_batch_is_in(self.held)  # one handed over, one in the publisher's hands

    def publish(self, *, dry: bool) -> bool:
        if not dry:
            self.admission.published(self.admission.live_version + 1)
            self.pending -= 1
        return self.pending > 0 and self.order.may_publish()


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_whatever_comes_first_every_group_has_its_step_and_its_version(lag):
    for seed in range(70):
        schedule = Schedule(random.Random(f"{lag}/{seed}"), prompts=3, lag=lag)
        schedule.go(num_steps=8)
        assert schedule.trained == [[3 * step, 3 * step + 1, 3 * step + 2] for step in range(8)]
        for group_id, version in schedule.sampled_under.items():
            assert version == schedule.admitted_under[group_id] == max(0, group_id // 3 - lag), f"seed {seed}, group {group_id}"


def test_a_checkpoint_waits_until_its_version_is_live():
    schedule = Schedule(random.Random("save"), prompts=2, lag=1)
    schedule.go(num_steps=1)
    assert not schedule.order.may_save(1), "groups 2 and 3 may be under way, sampled under version 0"
    while schedule.admission.live_version < 1:
        next(action for action in (schedule.admit, schedule.sample, schedule.hold, schedule.publish) if action(dry=True))(dry=False)
    assert schedule.order.may_save(1)
    assert schedule.held >= {2, 3}


def test_a_dropped_group_is_waited_for_no_more():
    schedule = Schedule(random.Random("drop"), prompts=2, lag=0)
    for _ in range(2):
        schedule.admit(dry=False)
    schedule.order.settled(0)
    assert not schedule.order.may_publish()
    schedule.admission.drop(1, "timeout")
    schedule.order.dropped(1)
    assert not schedule.order.may_publish(), "its slot is free: who takes it belongs to this version"
    schedule.admit(dry=False)
    schedule.order.settled(2)
    assert schedule.order.may_publish()
    assert not schedule.order.next_batch_is_in({0})
    assert schedule.order.next_batch_is_in({0, 2})


# ---- a whole run ----


@pytest.fixture
def config(tiny_model, tmp_path):
    """config("name", steps=5, learner={...}): a small deterministic run in a directory of that name."""
    return lambda name, **values: small_config(tiny_model, tmp_path / name, **{"deterministic": True, "steps": 5, **values})


def learnt_metrics(run: LocalRun) -> list[tuple[int, dict[str, float]]]:
    """All that is not about time."""
    return [(step, {name: value for name, value in metrics.items() if not name.startswith(TIMING)}) for step, metrics in run.reports]


@pytest.mark.parametrize("lag", [1, 2])
def test_timing_and_number_of_workers_change_nothing_at_any_lag(config, tmp_path, lag):
    straight = LocalRun(config("straight", max_policy_lag=lag))
    straight.train()
    straight.check_valid()
    assert {row["step"] - 1 - version for row in straight.logged() for version in row["version_values"]} == set(range(lag + 1))
    assert all(len(row["version_values"]) <= 1 for row in straight.logged())
    for seed in range(3):
        rng = random.Random(f"{lag}/{seed}")
        settings = config(f"{seed}", max_policy_lag=lag, rollout={"workers": 1 + seed}, encoder={"replicas": 1 + seed % 2})
        run = LocalRun(settings, around=random_delays(rng, most_s=0.01))
        assert run.train() == 5
        run.check_valid()
        assert run.samples() == straight.samples()
        assert learnt_metrics(run) == learnt_metrics(straight)
        assert_same_state(straight.state(tmp_path / f"a{seed}"), run.state(tmp_path / f"b{seed}"))


@pytest.mark.parametrize("lag", [1, 2])
def test_stopped_and_resumed_over_and_over_it_ends_as_in_one_go(config, tmp_path, lag):
    straight = LocalRun(config("straight", steps=7, max_policy_lag=lag))
    straight.train()
    settings = config("stopped", steps=7, max_policy_lag=lag, rollout={"workers": 2}, checkpoint={"every": 3})
    reports = []
    for stop_after in (1, 3, 4, 7):
        run = LocalRun(settings, around=random_delays(random.Random(stop_after), most_s=0.005))
        run.on_report = lambda step, run=run, last=stop_after: run.trainer.stop() if step == last else None
        assert run.train() == stop_after
        reports += learnt_metrics(run)
    run.check_valid()
    assert run.admission.ledger.dropped == 0, "what was under way at a stop is sampled again under its own id"
    assert reports == learnt_metrics(straight)
    assert run.samples() == straight.samples()
    assert_same_state(straight.state(tmp_path / "a"), run.state(tmp_path / "b"))


def test_lost_workers_change_nothing(config, tmp_path):
    straight = LocalRun(config("straight", max_policy_lag=1))
    straight.train()
    run = LocalRun(config("lost", max_policy_lag=1, rollout={"workers": 2, "progress_tokens": 2}, supervision={"backoff_s": 0.0}))
    killed = {1: "rollout-0", 2: "learner", 3: "rollout-1"}
    run.on_report = lambda step: run.handles[killed[step]].kill() if step in killed else None
    assert run.train() == 5
    run.check_valid()
    assert len(run.parts["rollout"]) > 2
    assert run.samples() == straight.samples()
    assert_same_state(straight.state(tmp_path / "a"), run.state(tmp_path / "b"))


def test_isolated_groups_are_the_same_on_any_worker(config, monkeypatch):
    """As a vLLM engine samples them: one at a time, from a seed of its own."""
    monkeypatch.setattr("jobs.config.RunConfig.isolates_groups", property(lambda self: self.deterministic))
    runs = [LocalRun(config(f"{workers}", rollout={"workers": workers}, max_policy_lag=1)) for workers in (1, 3)]
    for run in runs:
        run.train()
        run.check_valid()
    assert runs[0].samples() == runs[1].samples()
    assert len({row["worker_id"] for row in runs[1].logged()}) > 1


def test_a_replay_that_cannot_hold_what_must_be_waited_for_is_told_at_once(config):
    run = LocalRun(config("full", max_policy_lag=2, replay={"max_bytes": 6000}))
    with pytest.raises(ValueError, match=r"replay is full.*replay\.max_bytes = 6000"):
        run.train()


def test_a_dropped_group_is_replaced_and_told_of(config):

    def refuse(name, target):
        if not name.startswith("rollout"):
            return
        generate = target.generate

        async def refusing(request, *args):
            if request.group_id == 3:
                raise DataError("it cannot be used")
            return await generate(request, *args)

        target.generate = refusing

    run = LocalRun(config("dropped", max_policy_lag=1), on_made=refuse)
    assert run.train() == 5
    run.check_valid()
    assert run.admission.ledger.dropped_by_reason == {"data": 1}
    (warning,) = run.warnings
    assert warning.startswith("group 3 was dropped (data): from here on another start may differ")
    assert len(run.trained_problems()) == 5 * PROMPTS
