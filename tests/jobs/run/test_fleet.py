"""Workers desired and observed, without a clock and without workers."""

import random

import pytest

from jobs.config import SupervisionConfig
from jobs.processes.restart_budget import RestartBudget
from jobs.run.fleet import KEPT_DEAD, Fleet, WorkerState

CONFIG = SupervisionConfig(max_failures=3, backoff_s=1.0, backoff_max_s=4.0)


class Gone(RuntimeError):
    pass


def make_fleet(desired: int = 1, *, serving: int = 0) -> Fleet:
    """With so many workers that serve already."""
    fleet = Fleet("rollout", desired=max(desired, serving), config=CONFIG)
    for name in fleet.plan(0.0).start[:serving]:
        fleet.started(name, 0.0)
    fleet.desired = desired
    return fleet


def states(fleet: Fleet) -> dict[str, str]:
    return {name: member.state.value for name, member in fleet.members.items()}


def test_missing_workers_are_started_once():
    fleet = Fleet("rollout", desired=2, config=CONFIG)
    assert fleet.plan(0.0).start == ("rollout-0", "rollout-1")
    assert fleet.plan(0.0).start == ()
    assert states(fleet) == {"rollout-0": "starting", "rollout-1": "starting"}


def test_first_workers_serve_at_once_and_later_ones_need_the_newest_weights():
    fleet = make_fleet(serving=1)
    assert states(fleet) == {"rollout-0": "serving"}
    fleet.publish(3)
    fleet.desired = 2
    (joiner,) = fleet.plan(1.0).start
    fleet.started(joiner, 1.0)
    assert states(fleet)[joiner] == "stale"
    fleet.publish(4)
    fleet.holds(joiner, 3, 2.0)
    assert states(fleet)[joiner] == "stale", "what was newest when it began to load is not any more"
    fleet.holds(joiner, 4, 3.0)
    assert states(fleet)[joiner] == "serving"


def test_a_version_is_live_when_everyone_who_samples_holds_it():
    fleet = make_fleet(2, serving=2)
    fleet.publish(1)
    assert not fleet.is_published_everywhere(1)
    fleet.holds("rollout-0", 1, 1.0)
    assert not fleet.is_published_everywhere(1)
    fleet.lost("rollout-1", Gone(), "killed", 2.0)
    assert fleet.is_published_everywhere(1)
    (joiner,) = fleet.plan(10.0).start
    fleet.started(joiner, 10.0)
    assert fleet.is_published_everywhere(1), "a joiner samples nothing yet"


def test_one_who_leaves_still_samples_until_it_has_left():
    fleet = make_fleet(2, serving=2)
    fleet.desired = 1
    (leaver,) = fleet.plan(1.0).drain
    fleet.publish(1)
    fleet.holds("rollout-0", 1, 1.0)
    assert not fleet.is_published_everywhere(1)
    fleet.left(leaver, 2.0)
    assert fleet.is_published_everywhere(1)


def test_no_weights_older_than_the_newest_are_published():
    fleet = make_fleet(serving=1)
    fleet.publish(2)
    with pytest.raises(ValueError, match="version 1 is older than 2"):
        fleet.publish(1)


def test_those_least_ready_and_newest_leave_first():
    fleet = make_fleet(3, serving=3)
    fleet.publish(1)
    fleet.desired = 5
    stale, starting = fleet.plan(1.0).start
    fleet.started(stale, 1.0)
    fleet.desired = 2
    assert fleet.plan(2.0).drain == (starting, stale, "rollout-2")
    assert fleet.plan(2.0).drain == ()
    assert [member.name for member in fleet.serving] == ["rollout-0", "rollout-1"]


def test_one_that_is_sent_away_is_replaced():
    fleet = make_fleet(2, serving=2)
    assert fleet.drain("rollout-0", "its node is about to go", 1.0)
    assert not fleet.drain("rollout-0", "again", 1.0)
    assert fleet.plan(1.0).start == ("rollout-2",)
    assert fleet.members["rollout-0"].detail == "its node is about to go"


def test_a_lost_worker_is_replaced_after_a_delay_that_doubles():
    fleet = make_fleet(serving=1)
    fleet.lost("rollout-0", Gone(), "killed", 10.0)
    assert fleet.plan(10.5) == fleet.plan(10.9)
    assert fleet.plan(10.5).again_at == 11.0
    (second,) = fleet.plan(11.0).start
    fleet.lost(second, Gone(), "killed", 12.0)
    assert fleet.plan(13.9).start == ()
    (third,) = fleet.plan(14.0).start
    fleet.started(third, 14.0)
    fleet.worked()
    fleet.lost(third, Gone(), "killed", 20.0)
    assert fleet.plan(21.0).start, "a group was finished in between: the delay begins anew"


def test_names_are_never_used_twice():
    fleet = make_fleet(serving=1)
    fleet.lost("rollout-0", Gone(), "killed", 0.0)
    assert fleet.plan(9.0).start == ("rollout-1",)


def test_too_many_losses_in_a_row_raise_the_last_one():
    budget = RestartBudget("rollout", CONFIG)
    assert [budget.failed(Gone(str(number))) for number in range(3)] == [1.0, 2.0, 4.0]
    with pytest.raises(Gone, match="the last"):
        budget.failed(Gone("the last"))
    budget.worked()
    assert budget.failed(Gone()) == 1.0
    assert budget.total == 5


def test_workers_that_are_lost_together_count_as_one_loss():
    """A node may take more workers with it than may be lost in a row."""
    fleet = make_fleet(16, serving=16)
    for number in range(8):
        fleet.lost(f"rollout-{number}", Gone(), "node died", 1.0 + number / 10)
    assert fleet.budget.in_a_row == 1
    plan = fleet.plan(2.0)
    assert len(plan.start) == 8, "after the delay of one loss"
    fleet.lost(plan.start[0], Gone(), "again", 3.0)
    fleet.lost(plan.start[1], Gone(), "again", 3.0)
    assert fleet.budget.in_a_row == 2, "they were started after the first loss"
    fleet.worked()
    fleet.lost("rollout-9", Gone(), "later", 4.0)
    assert fleet.budget.in_a_row == 1


def test_one_that_has_left_and_is_forgotten_cannot_be_sent_away_again():
    """Of a node that goes, every worker leaves, and closes for some seconds, in which the node still goes."""
    fleet = make_fleet(8, serving=8)
    names = [member.name for member in fleet.serving]
    for name in names:
        assert fleet.drain(name, "its node is about to go", 1.0)
    for name in names:
        fleet.left(name, 2.0)
    assert len(names) > KEPT_DEAD
    assert not any(fleet.drain(name, "its node is about to go", 3.0) for name in names)


def test_what_cannot_start_at_all_is_not_tried_again():
    fleet = Fleet("rollout", desired=1, config=CONFIG)
    (name,) = fleet.plan(0.0).start
    with pytest.raises(Gone, match="no memory"):
        fleet.lost(name, Gone("no memory"), "no memory", 1.0)


def test_few_of_the_dead_are_kept():
    fleet = make_fleet(serving=1)
    for round_ in range(10):
        (name,) = [member.name for member in fleet.serving]
        fleet.worked()
        fleet.lost(name, Gone(), f"loss {round_}", 100.0 * round_)
        (name,) = fleet.plan(100.0 * round_ + 50).start
        fleet.started(name, 100.0 * round_ + 50)
    dead = fleet.states(WorkerState.DEAD)
    assert len(dead) == KEPT_DEAD
    assert dead[-1].detail == "loss 9"


def test_the_last_to_die_is_kept_though_it_was_the_first_to_start():
    fleet = make_fleet(serving=KEPT_DEAD + 1)
    first, *others = [member.name for member in fleet.serving]
    for at, name in enumerate([*others, first]):
        fleet.worked()
        fleet.lost(name, Gone(), "gone", float(at))
    assert {member.name for member in fleet.states(WorkerState.DEAD)} == {first, *others[1:]}


@pytest.mark.parametrize("block", range(20))
def test_no_schedule_breaks_an_invariant_and_rest_brings_the_desired_number(block):
    """200 random lives: whatever happens, nobody serves under old weights when it joins, and peace brings what is
    wanted."""
    for seed in range(block * 10, block * 10 + 10):
        rng = random.Random(seed)
        fleet = Fleet("rollout", desired=rng.randint(1, 4), config=SupervisionConfig(max_failures=10**6, backoff_s=1.0))
        now, version = 0.0, 0
        first = fleet.plan(now).start[0]
        fleet.started(first, now)
        began_to_serve = {first: 0}
        for _ in range(rng.randint(20, 80)):
            now += rng.random()
            living = [m for m in fleet.members.values() if m.state is not WorkerState.DEAD]
            member = rng.choice(living) if living else None
            match rng.randrange(8):
                case 0:
                    fleet.desired = rng.randint(1, 4)
                case 1:
                    version += 1
                    fleet.publish(version)
                case 2 if member:
                    fleet.lost(member.name, Gone(), "killed", now)
                case 3 if member and member.state is WorkerState.STARTING:
                    fleet.started(member.name, now)
                case 4 if member and member.state is not WorkerState.STARTING:
                    fleet.holds(member.name, rng.randint(max(member.version, 0), version), now)
                case 5 if member and member.state is WorkerState.DRAINING:
                    fleet.left(member.name, now)
                case 6 if member:
                    fleet.drain(member.name, "its node goes", now)
                case _:
                    fleet.plan(now)
            for serving in fleet.serving:
                if serving.name not in began_to_serve:
                    began_to_serve[serving.name] = serving.version
                    assert serving.version == version, f"seed {seed}: {serving.name} joined with version {serving.version} of {version}"
            fleet.check_valid()
        for _ in range(40):  # peace
            now += 100.0
            fleet.plan(now)
            for member in list(fleet.members.values()):
                if member.state is WorkerState.STARTING:
                    fleet.started(member.name, now)
                elif member.state is WorkerState.DRAINING:
                    fleet.left(member.name, now)
                elif member.state is not WorkerState.DEAD:
                    fleet.holds(member.name, version, now)
        assert len(fleet.serving) == fleet.desired, f"seed {seed}: {states(fleet)}"
        assert fleet.is_published_everywhere(version)
