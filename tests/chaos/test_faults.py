"""Whole runs in this process that lose each of their parts at each point, hang, or meet what cannot be used.

Faults come at the n-th call of a method, never after some time. At a lag of 0 and with the reference engine a run is a
function of its configuration, so whatever is lost, what is learnt must be the same, bit for bit."""

import asyncio
import errno
import os
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import count, product
from typing import Any

import pyarrow as pa
import pytest

from actors.reference_engine import ReferenceEngine
from actors.rollout import DataError
from actors.verifier import VerifierPool, VerifierPoolError
from buffers.rollout_log import RolloutLogError
from jobs.directory.events import EventKind
from learners.checkpoint import CheckpointError, CheckpointManager
from tests.chaos.chaos_fixture import POLICIES, PROGRESS, Chaos, Fault, How, check, check_every_token, quick_config
from tests.chaos.raising_task import make_raising_task
from tests.jobs.components_fixture import LocalRun, assert_same_state

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    """What a run of lag 0 learns and is trained on if nothing happens."""
    directory = tmp_path_factory.mktemp("undisturbed")
    run = LocalRun(quick_config(tiny_model, directory, max_policy_lag=0))
    run.train()
    run.check_valid()
    return run.state(directory / "state"), run.samples()


def points(who, method, *hows, nths=(1, 3)):
    """At the last of these calls in every run of the tests, at those before in `make chaos`."""
    faults = [Fault(who=who, method=method, nth=nth, how=how) for how in hows for nth in nths]
    return [pytest.param(fault, marks=() if fault.nth == nths[-1] else pytest.mark.long) for fault in faults]


PROCESS_FAILURES = [
    *points("learner", "step", How.BEFORE, How.AFTER, How.TOLD),
    *points("learner", "publish", How.BEFORE, How.AFTER, How.TOLD, nths=(2,)),
    *points("learner", "save_part", How.BEFORE, How.AFTER, How.HALFWAY, nths=(1, 2)),
    *points("bonus", "score", How.BEFORE, How.AFTER, How.TOLD),
    *points("bonus", "save_part", How.BEFORE, How.HALFWAY, nths=(1, 2)),
    *points("replay", "insert", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("replay", "sample", How.BEFORE, How.AFTER, How.TOLD),
    *points("replay", "log", How.BEFORE, How.AFTER, How.TOLD, How.HALFWAY, nths=(2, 3)),
    *points("replay", "save_part", How.BEFORE, How.AFTER, How.HALFWAY, nths=(1,)),
    *points("encoder", "encode", How.BEFORE, How.AFTER, How.TOLD, nths=(3,)),
    *points("verifier", "verify_batch", How.BEFORE, How.AFTER, How.TOLD, nths=(3,)),
    *points("rollout", "generate", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("rollout", "update", How.BEFORE, How.AFTER, How.TOLD, nths=(1, 4)),
    *points("rollout", PROGRESS, How.TOLD, How.AFTER, nths=(1, 2, 4, 7)),
]


def assert_as_undisturbed(run, undisturbed, tmp_path):
    """The same samples and the same state, bit for bit."""
    state, samples = undisturbed
    assert run.samples() == samples
    assert_same_state(run.state(tmp_path / "state"), state)


@pytest.mark.parametrize("fault", PROCESS_FAILURES, ids=str)
def test_a_loss_changes_nothing_of_what_is_learnt(config, tmp_path, undisturbed, fault):
    chaos = Chaos(fault)
    run = chaos.start(config(max_policy_lag=0))
    assert run.train() == 3
    check(run, chaos, tmp_path)
    assert_as_undisturbed(run, undisturbed, tmp_path)


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
    check(run, chaos, tmp_path, nothing_else=False)
    assert_as_undisturbed(run, undisturbed, tmp_path)


def test_a_worker_that_hangs_for_longer_than_a_group_may_take_is_lost_and_its_groups_are_not(config, tmp_path):
    chaos = Chaos(Fault(who="rollout", method="generate", nth=2, how=How.HANGS))
    limits = {"rollout": {"group_timeout_s": 0.5}, "supervision": {"backoff_s": 0.0, "heartbeat_s": 0.2, "hang_timeout_s": 1.5}}
    run = chaos.start(config(steps=6, **limits))
    assert run.train() == 6
    run.check_valid()
    assert len(run.noted(EventKind.FAULT, role="rollout", kind="infrastructure")) == 1


IN_RESTORING = [
    (Fault(who="learner", method="step", nth=3, how=How.BEFORE), Fault(who="learner", method="load_part", how=How.BEFORE)),
    (Fault(who="learner", method="publish", nth=3, how=How.BEFORE), Fault(who="learner", method="train_log", how=How.BEFORE)),
    (Fault(who="learner", method="step", nth=2, how=How.AFTER), Fault(who="learner", method="train_log", how=How.AFTER)),
    (Fault(who="bonus", method="score", nth=3, how=How.AFTER), Fault(who="bonus", method="load_part", how=How.AFTER)),
    (Fault(who="bonus", method="score", nth=2, how=How.BEFORE), Fault(who="bonus", method="absorb_log", how=How.AFTER)),
    (Fault(who="replay", method="insert", nth=4, how=How.TOLD), Fault(who="replay", method="take_over", how=How.AFTER)),
    (Fault(who="replay", method="sample", nth=2, how=How.AFTER), Fault(who="replay", method="insert", nth=5, how=How.BEFORE)),
    (Fault(who="encoder", method="encode", nth=3, how=How.BEFORE), Fault(who="encoder", method="ready", how=How.BEFORE)),
    (Fault(who="rollout", method=PROGRESS, nth=2, how=How.TOLD), Fault(who="rollout", method="start", nth=3, how=How.BEFORE)),
    (Fault(who="rollout", method="update", nth=1, how=How.AFTER), Fault(who="rollout-2", method="update", how=How.AFTER)),
]


@pytest.mark.parametrize("faults", IN_RESTORING, ids=lambda faults: "+".join(map(str, faults)))
def test_a_replacement_that_is_lost_too_changes_nothing_of_what_is_learnt(config, tmp_path, undisturbed, faults):
    chaos = Chaos(*faults)
    run = chaos.start(config(max_policy_lag=0))
    assert run.train() == 3
    check(run, chaos, tmp_path)
    assert_as_undisturbed(run, undisturbed, tmp_path)


IN_RESUMING = [
    *points("learner", "load_part", How.BEFORE, How.AFTER, How.TOLD, nths=(1,)),
    *points("bonus", "load_part", How.BEFORE, How.AFTER, How.TOLD, nths=(1,)),
    *points("replay", "load_part", How.BEFORE, How.AFTER, How.TOLD, nths=(1,)),
    *points("replay", "forget_log_after", How.BEFORE, How.AFTER, nths=(1,)),
    *points("replay", "held_rows", How.BEFORE, How.AFTER, How.TOLD, nths=(1,)),
    *points("learner", "publish", How.BEFORE, How.TOLD, nths=(1,)),
]


@pytest.mark.parametrize("fault", IN_RESUMING, ids=str)
def test_a_loss_while_a_run_is_resumed_changes_nothing_of_what_is_learnt(config, tmp_path, undisturbed, fault):
    LocalRun(config(steps=2, max_policy_lag=0)).train()
    chaos = Chaos(fault)
    run = chaos.start(config(max_policy_lag=0))
    assert run.train() == 3
    run.check_valid()
    assert chaos.fired
    assert_as_undisturbed(run, undisturbed, tmp_path)


@pytest.mark.parametrize(("lag", "late"), list(product([1, 2], POLICIES)))
def test_all_are_lost_in_one_run_and_every_token_is_what_its_weights_give(config, tmp_path, lag, late):
    chaos = Chaos(
        Fault(who="rollout", method=PROGRESS, nth=2, how=How.TOLD),
        Fault(who="encoder", method="encode", nth=3, how=How.AFTER),
        Fault(who="verifier", method="verify_batch", nth=4, how=How.BEFORE),
        Fault(who="replay", method="insert", nth=5, how=How.AFTER),
        Fault(who="bonus", method="score", nth=3, how=How.TOLD),
        Fault(who="learner", method="step", nth=3, how=How.AFTER),
        Fault(who="rollout", method=PROGRESS, nth=9, how=How.TOLD),
        Fault(who="rollout", method="update", nth=8, how=How.AFTER),
        Fault(who="replay", method="log", nth=5, how=How.HALFWAY),
        Fault(who="learner", method="save_part", nth=2, how=How.HALFWAY),
    )
    run = chaos.start(config(steps=6, max_policy_lag=lag, late=late))
    assert run.train() == 6
    check(run, chaos, tmp_path)
    check_every_token(run, chaos)
    assert run.noted(EventKind.DISPATCHED, tries=2), "no group was given to a second worker"


# ---- partial work ----


@pytest.mark.parametrize(("method", "how"), [(PROGRESS, How.TOLD), (PROGRESS, How.AFTER), ("generate", How.TOLD)])
def test_what_a_lost_worker_had_told_is_how_its_groups_begin_and_the_rest_is_wasted_to_the_token(config, tmp_path, method, how):
    """Both groups of the first step are its own. When one ends it says how many tokens it has sampled for both."""
    chaos = Chaos(Fault(who="rollout-0", method=method, nth=1 if method == "generate" else 3, how=how))
    settings = {"workers": 1, "progress_tokens": 3}
    run = chaos.start(config(max_policy_lag=0, sampling={"max_response_tokens": 24}, rollout=settings))
    assert run.train() == 3
    check(run, chaos, tmp_path)
    check_every_token(run, chaos)
    ended = {event["group_id"]: event["tokens"] for event in run.noted(EventKind.COMPLETED, worker="rollout-0")}
    told = [row for row in chaos.told["rollout-0"].to_pylist() if row["group_id"] not in ended]
    final = {(row["group_id"], row["index"]): row for row in run.logged()}
    assert told
    tokens_of: Counter[int] = Counter()
    for row in told:
        length = len(row["response_ids"])
        tokens_of[row["group_id"]] += length
        mine = final[row["group_id"], row["index"]]
        assert mine["response_ids"][:length] == row["response_ids"]
        assert mine["behavior_logprobs"][:length] == row["behavior_logprobs"]
        assert mine["worker_id"] == "rollout-1"
    for group_id, tokens in tokens_of.items():
        assert run.noted(EventKind.DISPATCHED, group_id=group_id, tries=2, worker="rollout-1", resumed_tokens=tokens)
    assert run.books.tokens.counts()["wasted_lost"] == chaos.reported["rollout-0"] - sum(ended.values()) - tokens_of.total()


# ---- engines, prompts, verifiers ----


def test_an_engine_that_fails_is_replaced_with_its_worker(config, tmp_path, undisturbed, monkeypatch):
    step, steps = ReferenceEngine.step, count(1)

    def fail_once(engine):
        if next(steps) == 20:
            raise MemoryError("no memory for the cache")
        return step(engine)

    monkeypatch.setattr(ReferenceEngine, "step", fail_once)
    run = LocalRun(config(max_policy_lag=0))
    assert run.train() == 3
    run.check_valid()
    (fault,) = run.noted(EventKind.FAULT, role="rollout", kind="infrastructure")
    assert "no memory for the cache" in fault["error"]
    assert_as_undisturbed(run, undisturbed, tmp_path)


def test_a_slow_worker_holds_up_no_step(config):
    """What it samples comes two versions late each time: it is dropped as stale and its problems are sampled by the
    other."""
    live = Progress()

    async def around(name, method, args, proceed):
        result = await proceed()
        if method == "update" and name == "rollout-0":
            await live.reach(args[0].version)
        if method == "generate" and name == "rollout-1":
            await live.until(args[0].admitted_version + 2)
        return result

    run = LocalRun(config(steps=6, max_policy_lag=1, rollout={"max_sequences": 4}), around=around)
    assert run.train() == 6
    run.check_valid()
    assert run.admission.ledger.dropped_by_reason.keys() == {"stale"}
    assert run.books.tokens.counts()["wasted_stale"] > 0
    assert not run.noted(EventKind.FAULT)


class Progress:
    """A number that rises, and who waits for it."""

    def __init__(self) -> None:
        self._reached = 0
        self._changed = asyncio.Condition()

    async def reach(self, number: int) -> None:
        async with self._changed:
            self._reached = max(self._reached, number)
            self._changed.notify_all()

    async def until(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._reached >= number)


def test_a_prompt_that_cannot_be_used_is_tried_so_often_then_named_and_left_out(config):
    poisoned = []

    def poison(name, target):
        if name.startswith("rollout"):
            generate = target.generate

            async def refuse(request, *args):
                poisoned.append(request.problem.problem_id)
                if request.problem.problem_id == poisoned[0]:
                    raise DataError(f"the prompt of problem {request.problem.problem_id} has 999 tokens")
                return await generate(request, *args)

            target.generate = refuse

    run = LocalRun(config(steps=6, max_attempts=3), on_made=poison)
    assert run.train() == 6
    run.check_valid()
    assert [(entry.problem.problem_id, entry.attempts, entry.reason) for entry in run.admission.quarantined] == [(poisoned[0], 3, "data")]
    faults = run.noted(EventKind.FAULT, role="group", kind="data")
    assert len(faults) == 3 and all(poisoned[0] in fault["error"] for fault in faults)
    assert run.reports[-1][1]["groups/quarantined"] == 1
    assert run.warnings == [f"problem {poisoned[0]} is given up: 3 groups of it were dropped, the last for 'data' (max_attempts)"]


def test_a_verifier_pool_that_gives_up_is_replaced(config, tmp_path, undisturbed):
    pools = []

    def give_up(*args):
        raise VerifierPoolError("no worker process can be started")

    def give_up_once(name, target):
        if name == "verifier":
            pools.append(target)
            if len(pools) == 1:
                target.verify_batch = give_up

    run = LocalRun(config(max_policy_lag=0), on_made=give_up_once)
    assert run.train() == 3
    run.check_valid()
    assert len(pools) == 2
    assert run.samples() == undisturbed[1]
    (fault,) = run.noted(EventKind.FAULT)
    assert fault == {"role": "verifier", "name": "verifier", "kind": "infrastructure", "error": "no worker process can be started"}


def test_a_verifier_that_raises_gives_no_reward_and_no_wrong_answer(config):
    settings = config(steps=4, verifier={"max_error_rate": 0.6})
    pool = VerifierPool(settings.task, settings.verifier, task_factory=make_raising_task)
    try:
        run = LocalRun(settings, judge=pool)
        assert run.train() == 4
    finally:
        pool.close()
    run.check_valid()
    unscored = [row for row in run.logged() if row["verdict_status"] == "error"]
    assert 0 < len(unscored) < len(run.logged())
    assert all(row["reward"] is None and zlib.crc32(row["response_text"].encode()) % 4 == 0 for row in unscored)
    assert not run.noted(EventKind.FAULT), "the pool is well"


# ---- disk and clock ----


@pytest.mark.parametrize("part", ["learner", "replay", "bonus"])
def test_a_disk_that_is_full_once_costs_one_checkpoint(config, tmp_path, part):
    chaos = DiskFull(part, times=1)
    run = LocalRun(config(steps=5, checkpoint={"every": 2, "keep": 9}), on_made=chaos.on_made)
    assert run.train() == 5
    run.check_valid()
    run.check_restorable(tmp_path)
    assert run.checkpoints.steps() == [4, 5]
    (fault,) = run.noted(EventKind.FAULT)
    assert (fault["role"], fault["name"]) == ("checkpoint", "checkpoint")
    assert "step_000002 could not be written ([Errno 28] No space left on device)" in fault["error"]
    assert not (tmp_path / "run" / "checkpoints" / "step_000002").exists(), "what was written of it still takes space"


def test_a_disk_that_is_full_when_the_manifest_is_written_costs_one_checkpoint(config, tmp_path, monkeypatch):
    commit, commits = CheckpointManager.commit, count(1)

    def fail_once(manager, step, files, meta):
        if next(commits) == 1:
            with manager._giving_up_whole(step):
                raise no_space()
        commit(manager, step, files, meta)

    monkeypatch.setattr(CheckpointManager, "commit", fail_once)
    run = LocalRun(config(steps=4, checkpoint={"every": 2, "keep": 9}))
    assert run.train() == 4
    run.check_valid()
    run.check_restorable(tmp_path)
    assert run.checkpoints.steps() == [4]
    assert len(run.noted(EventKind.FAULT, role="checkpoint")) == 1


def test_a_disk_that_stays_full_ends_the_run_and_leaves_the_last_checkpoint(config, tmp_path):
    chaos = DiskFull("bonus", after=1)
    settings = config(steps=9, max_policy_lag=0, checkpoint={"every": 1}, supervision={"max_failures": 2, "backoff_s": 0.0})
    run = LocalRun(settings, on_made=chaos.on_made)
    with pytest.raises(CheckpointError, match=r"step_000004 could not be written \(\[Errno 28\]"):
        run.train()
    assert run.checkpoints.steps() == [1]
    again = LocalRun(settings)
    assert again.train() == 9, "there is space again"
    again.check_valid()


def test_a_disk_that_is_full_at_the_end_ends_the_run_though_all_is_trained(config):
    run = LocalRun(config(steps=3, checkpoint={"every": 100}), on_made=DiskFull("learner").on_made)
    with pytest.raises(CheckpointError, match=r"step_000003 could not be written"):
        run.train()


class LogFull:
    """The rollout log cannot be written, so many times in a row from step 2 on."""

    def __init__(self, times: int) -> None:
        self.left = times

    def on_made(self, name: str, target: Any) -> None:
        if name != "replay":
            return
        append = target._log.append

        def refuse(step: int, batches: Sequence[pa.RecordBatch]) -> None:
            if step >= 2 and self.left > 0:
                self.left -= 1
                raise RolloutLogError(f"the rollout log of step {step} cannot be written: No space left on device")
            append(step, batches)

        target._log.append = refuse


def test_a_disk_that_is_full_for_the_rollout_log_is_waited_for_and_told(config, tmp_path):
    full = LogFull(times=3)
    run = LocalRun(config(steps=4), on_made=full.on_made)
    assert run.train() == 4
    run.check_valid()
    run.check_restorable(tmp_path)
    assert run.warnings == ["the rollout log of step 2 cannot be written: No space left on device"] * 3
    assert len(run.noted(EventKind.FAULT, role="rollout log")) == 3


def test_a_disk_that_stays_full_for_the_rollout_log_ends_the_run_which_resumes(config):
    settings = config(steps=5, max_policy_lag=0, checkpoint={"every": 1}, supervision={"max_failures": 2, "backoff_s": 0.0})
    run = LocalRun(settings, on_made=LogFull(times=100).on_made)
    with pytest.raises(RolloutLogError, match=r"step 2 cannot be written: No space left"):
        run.train()
    assert run.checkpoints.steps() == [1]
    again = LocalRun(settings)
    assert again.train() == 5, "there is space again"
    again.check_valid()


def test_a_rollout_log_at_its_cap_keeps_what_a_lost_learner_is_brought_back_from(config, tmp_path):
    settings = {"steps": 7, "max_policy_lag": 0, "checkpoint": {"every": 3}, "supervision": {"backoff_s": 0.0}}
    straight = LocalRun(config(run_dir=str(tmp_path / "straight"), **settings))
    straight.train()
    run = LocalRun(config(run_dir=str(tmp_path / "capped"), replay={"log_max_mib": 1e-6}, **settings))
    run.on_report = lambda step: run.handles["learner"].kill() if step == 5 else None
    assert run.train() == 7
    assert_same_state(straight.state(tmp_path / "a"), run.state(tmp_path / "b"))
    assert [metrics["replay/log_removed_steps"] for _, metrics in run.reports] == [0, 0, 0, 3, 3, 3, 6]
    (warning,) = run.warnings
    assert "has reached replay.log_max_mib" in warning


class DiskFull:
    """Saves of one part fail: all, or so many after the first few."""

    def __init__(self, part: str, *, after: int = 0, times: int = 10**6) -> None:
        self._part, self._after, self._left = part, after, times

    def on_made(self, name, target):
        if name != self._part:
            return
        save = target.save

        def fail(directory):
            save(directory)
            if self._after > 0:
                self._after -= 1
            elif self._left > 0:
                self._left -= 1
                raise no_space()

        target.save = fail


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_loses_nobody(config, tmp_path, undisturbed, monkeypatch, hours):
    """Nor the clock that is set back: nothing waits by the time of day."""
    now, offset_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + offset_s[0])
    run = LocalRun(config(max_policy_lag=0, wait_timeout_s=30.0))

    def jump(step):
        offset_s[0] += hours * 3600.0

    run.on_report = jump
    assert run.train() == 3
    run.check_valid()
    assert not run.noted(EventKind.FAULT)
    assert run.samples() == undisturbed[1]


# ---- more and fewer ----


@pytest.mark.parametrize(("lag", "late"), [(0, "mask"), *product([1, 2], POLICIES)])
def test_two_more_then_one_fewer_then_one_killed(config, tmp_path, lag, late):
    chaos = Chaos()
    run = chaos.start(config(steps=10, max_policy_lag=lag, late=late, sampling={"max_response_tokens": 8}))
    rollouts = run.trainer.rollouts
    tasks = []

    def change(step):
        if step == 2:
            tasks.append(asyncio.ensure_future(rollouts.scale(4)))
        elif step == 4:
            tasks.append(asyncio.ensure_future(rollouts.scale(3)))
        elif step == 6:
            victim = max(rollouts.fleet.serving, key=lambda member: len(rollouts.workers[member.name].groups))
            chaos.kill(victim.name)
        elif step == 8:
            (first, *_) = rollouts.fleet.serving
            tasks.append(asyncio.ensure_future(rollouts.drain(first.name, "its node is about to go", within_s=0.0)))

    run.on_report = change
    assert run.train() == 10
    run.check_valid()
    run.check_restorable(tmp_path)
    check_every_token(run, chaos)
    assert len(run.noted(EventKind.FAULT, role="rollout")) == 1
    assert len(run.noted(EventKind.WORKER, state="serving")) >= 5
    assert len(run.noted(EventKind.WORKER, state="draining")) == 2
    assert run.admission.ledger.dropped_by_reason.keys() <= {"stale"}
