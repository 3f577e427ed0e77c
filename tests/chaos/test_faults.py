"""Whole runs in this process that lose each of their parts at each point, hang, or meet what cannot be used.

Faults come at the n-th call of a method, never after some time. At a lag of 0 and with the reference engine a run is a function of its
configuration, so whatever is lost, what is learnt must be the same, bit for bit.
"""

import pytest

from tests.chaos.chaos_fixture import PROGRESS, Chaos, Fault, How, check, check_every_token
from tests.jobs.components_fixture import LocalRun, assert_same_state

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    """What a run of lag 0 learns and is trained on if nothing happens."""
    from tests.chaos.chaos_fixture import quick_config

    directory = tmp_path_factory.mktemp("undisturbed")
    run = LocalRun(quick_config(tiny_model, directory, max_policy_lag=0))
    run.train()
    run.check_valid()
    return run.state(directory / "state"), run.samples()


def points(who, method, *hows, nths=(1, 3)):
    return [Fault(who=who, method=method, nth=nth, how=how) for how in hows for nth in nths]


LOSSES = [
    *points("learner", "step", How.BEFORE, How.AFTER, How.TOLD),
    *points("learner", "publish", How.BEFORE, How.AFTER, How.TOLD),
    *points("learner", "save_part", How.BEFORE, How.AFTER, How.HALFWAY, nths=(1, 2)),
    *points("bonus", "score", How.BEFORE, How.AFTER, How.TOLD),
    *points("bonus", "save_part", How.BEFORE, How.HALFWAY, nths=(1, 2)),
    *points("replay", "insert", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 2, 6)),
    *points("replay", "sample", How.BEFORE, How.AFTER, How.TOLD),
    *points("replay", "log", How.BEFORE, How.AFTER, How.TOLD, How.HALFWAY),
    *points("replay", "save_part", How.BEFORE, How.AFTER, How.HALFWAY, nths=(1, 2)),
    *points("encoder", "encode", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("verifier", "verify_batch", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("rollout", "generate", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("rollout", "update", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("rollout", PROGRESS, How.TOLD, How.AFTER, nths=(1, 2, 4, 7)),
]


@pytest.mark.parametrize("fault", LOSSES, ids=str)
def test_a_loss_changes_nothing_of_what_is_learnt(config, tmp_path, undisturbed, fault):
    chaos = Chaos(fault)
    run = chaos.start(config(max_policy_lag=0))
    assert run.train() == 3
    check(run, chaos, tmp_path)
    state, samples = undisturbed
    assert run.samples() == samples
    assert_same_state(run.state(tmp_path / "state"), state)


HANGS = [
    *points("learner", "step", How.HANGS, nths=(2,)),
    *points("learner", "publish", How.HANGS, nths=(1,)),
    *points("learner", "save_part", How.HANGS, nths=(1,)),
    *points("bonus", "score", How.HANGS, nths=(2,)),
    *points("replay", "insert", How.HANGS, nths=(3,)),
    *points("replay", "sample", How.HANGS, nths=(2,)),
    *points("replay", "log", How.HANGS, nths=(2,)),
    *points("encoder", "encode", How.HANGS, nths=(3,)),
    *points("verifier", "verify_batch", How.HANGS, nths=(3,)),
    *points("rollout", "watch", How.HANGS, nths=(3,)),
    *points("rollout", "update", How.HANGS, nths=(1,)),
    *points("rollout", "generate", How.HANGS, How.STALLS, nths=(1, 3)),
]


@pytest.mark.parametrize("fault", HANGS, ids=str)
def test_a_hang_changes_nothing_of_what_is_learnt(config, tmp_path, undisturbed, fault):
    chaos = Chaos(fault)
    limits = {"wait_timeout_s": 1.0, "supervision": {"backoff_s": 0.0, "heartbeat_s": 0.2, "hang_timeout_s": 0.8}}
    run = chaos.start(config(max_policy_lag=0, **limits))
    assert run.train() == 3
    check(run, chaos, tmp_path)
    state, samples = undisturbed
    assert run.samples() == samples
    assert_same_state(run.state(tmp_path / "state"), state)


def test_a_worker_that_hangs_for_longer_than_a_group_may_take(config, tmp_path):
    """Its groups are dropped for the time they take; the worker, which cannot let go of them either, is lost after that."""
    chaos = Chaos(Fault(who="rollout", method="generate", nth=2, how=How.HANGS))
    limits = {"rollout": {"group_timeout_s": 0.5}, "supervision": {"backoff_s": 0.0, "heartbeat_s": 0.2, "hang_timeout_s": 1.0}}
    run = chaos.start(config(steps=6, **limits))
    assert run.train() == 6
    run.check_valid()
