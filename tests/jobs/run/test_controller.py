"""The loops of a run on real components, in this process and without Ray: end, bounds, equality, faults, random
schedules."""

import asyncio
import json
import math
import random
import re
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engine import EngineError
from actors.reference_engine import ReferenceEngine
from actors.replay import DrawnBatch, Replay
from actors.verifier import VerifierPool
from buffers.records import Verdict, VerdictStatus
from buffers.replay import InsertResult
from jobs.directory.events import EventKind
from jobs.processes.handles import DataLost
from jobs.processes.verdict_counter import VerifierFailure
from jobs.run.components import Scored
from jobs.screens.console import COLUMNS
from learners.checkpoint import CheckpointError, CheckpointManager
from learners.models import resolve_model
from tasks.base import TaskError
from tests.jobs.components_fixture import (
    PROMPTS,
    RESPONSES,
    CoinJudge,
    LocalRun,
    assert_same_state,
    random_delays,
    small_config,
)

pytestmark = pytest.mark.whole

PROMPT_S = 10.0
"""A failure must surface well before any deadline of `small_config`, which are a minute."""
METRICS_PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


@pytest.fixture
def config(tiny_model, tmp_path):
    """config(steps=5, learner={...}): a small run in this test's directory."""
    return lambda **values: small_config(tiny_model, tmp_path, **values)


# ---- a run that goes well ----


def test_run_with_the_real_verifiers_finishes_with_a_checkpoint(config):
    settings = config(steps=3)
    pool = VerifierPool(settings.task, settings.verifier)
    try:
        run = LocalRun(settings, judge=pool)
        assert run.train() == 3
    finally:
        pool.close()
    run.check_valid()
    assert [step for step, _ in run.reports] == [1, 2, 3]
    assert pool.stats().num_verdicts >= 3 * PROMPTS * RESPONSES
    assert pool.stats().error_rate == 0
    assert all(row["verdict_status"] in ("correct", "incorrect", "no_answer") for row in run.logged())
    assert {event["version"] for event in run.noted(EventKind.LOADED)} >= {1, 2}
    assert all(event["seconds"] > 0 for event in run.noted(EventKind.CHECKPOINT, step=3))


@pytest.mark.parametrize("bonus", [{"memory": "prompt"}, {"memory": "none", "source": "policy"}, {"staleness_discount": 0.5}], ids=str)
def test_every_kind_of_bonus_trains_a_whole_run(config, bonus):
    run = LocalRun(config(steps=3, bonus=bonus))
    run.train()
    run.check_valid()
    assert len(run.parts.get("encoder", [])) == (0 if bonus.get("source") == "policy" else 1)
    rows = run.logged()
    assert all(len(row["feature"]) == run.config.bonus.dim for row in rows)
    assert any(row["bonus"] > 0 for row in rows)
    assert all(dict(row["bonus_detail"]).keys() >= {"leverage", "group_effective_rank"} for row in rows)


def test_number_of_encoders_changes_nothing_of_what_is_learnt(config, tmp_path):
    one, three = (
        LocalRun(config(steps=3, max_policy_lag=0, encoder={"replicas": replicas}, run_dir=str(tmp_path / f"{replicas}")))
        for replicas in (1, 3)
    )
    for run in (one, three):
        run.train()
    assert len(three.parts["encoder"]) == 3
    assert_same_state(one.state(tmp_path / "a"), three.state(tmp_path / "b"))


def test_memory_of_prompts_is_saved_and_restored_with_the_run(config, tmp_path):
    settings = {"max_policy_lag": 0, "bonus": {"memory": "prompt"}, "checkpoint": {"every": 2}}
    straight = LocalRun(config(steps=4, run_dir=str(tmp_path / "straight"), **settings))
    straight.train()
    LocalRun(config(steps=2, run_dir=str(tmp_path / "stopped"), **settings)).train()
    resumed = LocalRun(config(steps=4, run_dir=str(tmp_path / "stopped"), **settings))
    resumed.train()
    assert_same_state(straight.state(tmp_path / "a"), resumed.state(tmp_path / "b"))
    assert resumed.state(tmp_path / "c")["bonus/prompts.count_P"].sum() == 4 * PROMPTS * RESPONSES


def test_every_step_learns_and_has_every_figure_of_the_console(config):
    run = LocalRun(config(steps=3))
    run.train()
    for step, metrics in run.reports:
        assert metrics["learner/grad_norm"] > 0
        missing = [name for _, name, _ in COLUMNS if not math.isfinite(metrics.get(name, math.nan))]
        assert not missing, f"step {step} lacks {missing}"


@pytest.mark.parametrize("synchronous", [False, True])
def test_every_metric_is_defined_in_the_documentation(config, synchronous):
    run = LocalRun(config(steps=2, max_policy_lag=0), synchronous=synchronous)
    run.train()
    reported = {name for _, metrics in run.reports for name in metrics}
    assert len(reported) > 30
    families = tuple(name.removesuffix("…") for name in defined_metrics() if name.endswith("/…") and not name.startswith("mismatch_lag0"))
    undefined = {name for name in reported - defined_metrics() if not name.startswith(families)}
    assert not undefined, sorted(undefined)


def defined_metrics() -> set[str]:
    """Names in the first column of docs/metrics.md; `a/b`, `/c` stands for a/b and a/c, `x/…` for every metric x/ may
    have."""
    names: set[str] = set()
    for row in re.findall(r"^\|([^|]*)\|", METRICS_PAGE.read_text(), re.MULTILINE):
        prefix = ""
        for name in re.findall(r"`([^`]+)`", row):
            if name.startswith("/"):
                names.add(prefix + name)
            else:
                prefix = name.partition("/")[0]
                names.add(name)
    suffixes = {name.partition("/")[2] for name in names if name.startswith("mismatch/")}
    return names | {f"mismatch_lag0/{suffix}" for suffix in suffixes if "mismatch_lag0/…" in names}


def test_run_without_the_bonus_needs_no_encoder(config):
    run = LocalRun(config(steps=2, bonus={"enabled": False}))
    assert run.train() == 2
    assert not {"encoder", "bonus"} & run.parts.keys()
    run.check_valid()
    assert {row["bonus"] for row in run.logged()} == {0.0}
    assert run.reports[-1][1]["learner/grad_norm"] > 0


def test_lag_of_one_is_used_and_never_exceeded(config):
    run = LocalRun(config(steps=6))
    run.train()
    run.check_valid()
    assert set(run.lags()) == {0, 1}
    assert {metrics["policy/lag_max"] for _, metrics in run.reports} <= {0.0, 1.0}


# ---- equality, bit for bit ----


def test_lag_of_zero_is_the_synchronous_trainer(config, tmp_path):
    settings = config(steps=4, max_policy_lag=0, checkpoint={"every": 2})
    initial = LocalRun(settings).state(tmp_path / "initial")
    runs = {}
    for kind in ("asynchronous", "synchronous"):
        mine = settings.model_copy(update={"run_dir": str(tmp_path / kind / "run")})
        runs[kind] = LocalRun(mine, synchronous=kind == "synchronous", around=random_delays(random.Random(kind)))
        assert runs[kind].train() == 4
        runs[kind].check_valid()
    one, other = runs.values()
    state = one.state(tmp_path / "one")
    assert not torch.equal(state["policy/model.norm.weight"], initial["policy/model.norm.weight"])
    assert state["bonus/covariance.second_moment_DD"].norm() > 0
    assert_same_state(state, other.state(tmp_path / "other"))
    assert one.samples() == other.samples()
    for (step, metrics), (other_step, other_metrics) in zip(one.reports, other.reports, strict=True):
        assert step == other_step
        shared = {name for name in metrics.keys() & other_metrics.keys() if not is_timing(name)}
        assert len(shared) > 25
        assert {name: metrics[name] for name in shared} == {name: other_metrics[name] for name in shared}


def test_bonus_off_is_plain_grpo(config, tmp_path):
    """Whether the bonus is switched off, weighs nothing, or its whole machinery is left out: the same parameters."""
    off = {"bonus": {"enabled": False}, "learner": {"advantage": {"beta": 0.5}}}
    weightless = {"bonus": {"memory": "prompt"}, "learner": {"advantage": {"beta": 0.0}}}
    weightless_in_reward = {"learner": {"advantage": {"beta": 0.0, "combine": "reward"}}}
    states = []
    for number, settings in enumerate((off, weightless, weightless_in_reward)):
        run = LocalRun(config(steps=3, max_policy_lag=0, run_dir=str(tmp_path / f"{number}"), **settings))
        run.train()
        state = run.state(tmp_path / f"state-{number}")
        states.append({name: tensor for name, tensor in state.items() if not name.startswith("bonus/")})
    assert_same_state(states[0], states[1])
    assert_same_state(states[0], states[2])


def is_timing(name: str) -> bool:
    """Or what depends on it: whether a load falls before or behind the report of its step."""
    return name.startswith(("time/", "publication/")) or name.endswith("_per_s") or name == "rollout/idle_s"


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_straight_run_is_a_run_cut_in_two(config, tmp_path, cut):
    settings = config(steps=4, max_policy_lag=0)
    straight = LocalRun(settings.model_copy(update={"run_dir": str(tmp_path / "straight")}))
    straight.train()
    first = LocalRun(settings.model_copy(update={"steps": cut}))
    assert first.train() == cut
    second = LocalRun(settings)
    assert second.train() == 4
    second.check_valid()
    assert [step for step, _ in second.reports] == list(range(cut + 1, 5))
    assert_same_state(straight.state(tmp_path / "one"), second.state(tmp_path / "other"))
    assert straight.samples() == second.samples()
    for (_, metrics), (_, other_metrics) in zip(straight.reports[cut:], second.reports, strict=True):
        learnt = [name for name in metrics if name.partition("/")[0] in ("learner", "policy", "bonus", "reward") and not is_timing(name)]
        assert len(learnt) > 15
        assert {name: metrics[name] for name in learnt} == {name: other_metrics[name] for name in learnt}


def test_one_seed_is_one_run_and_another_seed_is_another(config, tmp_path):
    def train(name: str, seed: int) -> list[tuple]:
        run = LocalRun(config(steps=2, max_policy_lag=0, seed=seed, run_dir=str(tmp_path / name)))
        run.train()
        return run.samples()

    first = train("a", 3)
    assert train("b", 3) == first
    assert train("c", 4) != first


# ---- faults ----


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("component", "method"),
    [
        ("rollout-0", "generate"),
        ("rollout-0", "update"),
        ("verifier", "verify_batch"),
        ("encoder-0", "encode"),
        ("bonus", "score"),
        ("bonus", "save_part"),
        ("replay", "insert"),
        ("replay", "sample"),
        ("replay", "log"),
        ("learner", "step"),
        ("learner", "publish"),
        ("learner", "save_part"),
    ],
)
def test_error_of_a_component_ends_the_run_at_once_as_it_is(config, component, method):
    error = Broken(f"{component}.{method} broke")

    def broken(*args):
        raise error

    async def broken_async(*args):
        raise error

    def break_it(name, target):
        if name == component:
            setattr(target, method, broken_async if component in ("rollout-0", "encoder-0") else broken)

    run = LocalRun(config(steps=1000, checkpoint={"every": 2}), on_made=break_it)
    began = time.monotonic()
    with pytest.raises(Broken) as raised:
        run.train()
    assert raised.value is error
    assert time.monotonic() - began < PROMPT_S


@pytest.mark.parametrize("component", ["generate", "encode"])
def test_error_in_mid_run_leaves_the_last_checkpoint(config, component):
    calls = 0

    async def around(name, method, args, proceed):
        nonlocal calls
        calls += method == component
        if calls > 3 * PROMPTS:
            raise Broken(method)
        return await proceed()

    run = LocalRun(config(steps=1000, checkpoint={"every": 1}, max_policy_lag=0), around=around)
    with pytest.raises(Broken):
        run.train()
    assert len(run.reports) == 3
    assert run.checkpoints.latest() in (2, 3)  # the error may have met the last one half-written


def test_engines_that_die_over_and_over_end_the_run_with_what_they_died_of(config, monkeypatch):
    def step(self):
        raise MemoryError("no memory for the cache")

    monkeypatch.setattr(ReferenceEngine, "step", step)
    began = time.monotonic()
    run = LocalRun(config(supervision={"max_failures": 2, "backoff_s": 0.0, "max_group_tries": 100}))
    with pytest.raises(EngineError, match=r"the engine (has )?failed: MemoryError.*no memory for the cache"):
        run.train()
    assert time.monotonic() - began < PROMPT_S
    assert len(run.parts["rollout"]) == 3


IMPATIENT = {"heartbeat_s": 0.1, "hang_timeout_s": 5.0, "backoff_s": 0.0}


def test_a_group_of_which_nothing_is_sampled_goes_on_elsewhere_and_its_worker_stays(config):
    """rollout-1 takes two groups in and never begins them, until it is told to let go of them."""
    ignored = []

    def stall(name, target):
        if name != "rollout-1":
            return
        respond = target._respond

        async def stalling(group, response, prompt_ids):
            if group not in ignored and len(ignored) < 2:
                ignored.append(group)
            while group in ignored and not group.is_aborted:
                await asyncio.sleep(0.01)
            return await respond(group, response, prompt_ids)

        target._respond = stalling

    run = LocalRun(config(steps=8, rollout={"workers": 2, "group_timeout_s": 0.3}, supervision=IMPATIENT), on_made=stall)
    assert run.train() == 8
    run.check_valid()
    assert len(ignored) == 2 and len(run.parts["rollout"]) == 2
    assert run.admission.ledger.dropped == 0
    assert re.search(
        r"rollout-1 has sampled nothing of group \d+ for 0\.3 s \(rollout\.group_timeout_s\)$", "\n".join(run.run.faults.newest)
    )


def test_a_worker_that_does_not_give_back_a_group_is_lost_and_the_group_is_not(config):
    async def never(*args):
        await asyncio.Event().wait()

    def hang(name, target):
        if name == "rollout-1":
            target.generate = never

    limits = {"rollout": {"workers": 2, "group_timeout_s": 0.3}, "supervision": {**IMPATIENT, "hang_timeout_s": 1.0}}
    run = LocalRun(config(steps=8, late="wait", **limits), on_made=hang)
    assert run.train() == 8
    run.check_valid()
    assert run.admission.ledger.dropped == 0
    assert len(run.noted(EventKind.FAULT, role="rollout", kind="infrastructure")) == 1


@pytest.mark.parametrize(
    ("component", "method", "waited_for"),
    [
        ("verifier", "verify_batch", r"verdicts of group \d+"),
        ("encoder-0", "encode", r"features of group \d+"),
        ("bonus", "score", "the step's bonuses"),
        ("learner", "step", "training step 1"),
        ("replay", "sample", "a batch from replay"),
    ],
)
def test_component_that_never_answers_is_named_and_replaced(config, component, method, waited_for):
    hung = []

    def hang(name, target):
        if name == component and not hung:
            hung.append(target)
            setattr(target, method, never)
        elif target in hung:  # the judge outlives its process
            delattr(target, method)

    async def never(*args):
        await asyncio.Event().wait()

    run = LocalRun(config(wait_timeout_s=1.0, supervision={"backoff_s": 0.0}), on_made=hang)
    assert run.train() == 3
    run.check_valid()
    assert re.search(rf"{component}: {component}\.{method} took over 1 s: waited for {waited_for}", run.run.faults.newest[0])
    assert len(run.parts[component.partition("-")[0]]) == 2


def test_wait_that_no_deadline_ends_says_what_is_in_flight(config):
    """The backstop behind the calls' own deadlines: here they have none, because the handle is broken."""

    async def around(name, method, args, proceed):
        if method == "generate":
            await asyncio.Event().wait()
        return await proceed()

    run = LocalRun(config(wait_timeout_s=0.2, rollout={"group_timeout_s": 0.1}), around=around)
    with pytest.raises(RuntimeError, match=r"nothing has moved for 0\.5 s at step 0: 0 groups held.*in flight: 0 \(arithmetic/train/"):
        run.train()


def test_time_in_which_a_call_with_a_deadline_is_under_way_does_not_count_as_standstill(config):
    async def scenario() -> None:
        trainer = LocalRun(config()).trainer
        trainer._changes.stuck_after_s = 0.05
        with trainer.run.waits.ending():
            waiting = asyncio.create_task(trainer._changes.until(lambda: False))
            await asyncio.wait({waiting}, timeout=0.2)
            assert not waiting.done()
        with pytest.raises(RuntimeError, match=r"nothing has moved for 0\.05 s"):
            async with asyncio.timeout(PROMPT_S):
                await waiting

    asyncio.run(scenario())


def train_to_a_checkpoint_with_a_group(config) -> None:
    """Two steps; replay holds a group when the second one's checkpoint is written."""

    async def hold_back(name, method, args, proceed):
        while method == "save_part" and name == "replay" and not first.books.held:
            await asyncio.sleep(0.001)
        return await proceed()

    first = LocalRun(config(steps=2), around=hold_back)
    first.train()


def test_rows_of_a_checkpoint_are_let_go_of_once_none_of_them_is_held(config):
    train_to_a_checkpoint_with_a_group(config)
    run = LocalRun(config(steps=5))
    run.train()
    assert run.run.recovery.rows.restored is None


def test_a_lost_learner_may_take_longer_to_come_back_than_anything_else_may_stand_still(config):
    async def around(name, method, args, proceed):
        if method == "train_log":
            await asyncio.sleep(1.3)
        return await proceed()

    run = LocalRun(config(supervision={"backoff_s": 0.0}, checkpoint={"every": 100}), around=around)
    run.on_report = lambda step: run.handles["learner"].kill() if step == 2 else None
    run.trainer._changes.stuck_after_s = 1.0
    assert run.train() == 3
    assert len(run.parts["learner"]) == 2


def test_generation_may_take_longer_than_any_other_wait(config):
    """`rollout.group_timeout_s` is the bound of a group, also where it exceeds `wait_timeout_s`."""

    async def around(name, method, args, proceed):
        if method == "generate":
            await asyncio.sleep(1.0)
        return await proceed()

    run = LocalRun(config(steps=1, wait_timeout_s=0.3), around=around)
    assert run.train() == 1


def test_loop_that_is_woken_and_cancelled_at_once_is_cancelled(config):
    """What ends a run. A cancellation lost in the wait would hold the run up until the backstop, a minute here."""

    async def scenario(turns: int) -> bool:
        trainer = LocalRun(config()).trainer
        waiting = asyncio.create_task(trainer._changes.until(lambda: False))
        for _ in range(5):
            await asyncio.sleep(0)
        await trainer._changes.notify()
        for _ in range(turns):  # of the event loop
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=PROMPT_S)
        return waiting.cancelled()

    assert [asyncio.run(scenario(turns)) for turns in range(8)] == [True] * 8


def test_workers_share_the_groups(config):
    run = LocalRun(config(steps=6, rollout={"workers": 2}))
    run.train()
    shares = Counter(row["worker_id"] for row in run.logged())
    assert shares.keys() == {"rollout-0", "rollout-1"}
    assert min(shares.values()) >= sum(shares.values()) / 4, shares


class FailingJudge(CoinJudge):
    """Every `period`-th response cannot be scored."""

    def __init__(self, period: int) -> None:
        self.num = 0
        self.period = period

    def verdict(self, text: str) -> Verdict:
        self.num += 1
        if self.num % self.period == 0:
            return Verdict(status=VerdictStatus.ERROR, reward=None, detail="no such library")
        return super().verdict(text)


def test_verifier_that_often_fails_stops_the_run(config):
    judge = FailingJudge(4)
    run = LocalRun(config(steps=1000, verifier={"max_error_rate": 0.2}), judge=judge)
    with pytest.raises(VerifierFailure, match=r"could not be scored, more than verifier\.max_error_rate = 0\.2; the last: error \(no such"):
        run.train()
    assert judge.num < 200


def test_verifier_that_seldom_fails_does_not(config):
    run = LocalRun(config(steps=8, verifier={"max_error_rate": 0.3}), judge=FailingJudge(4))
    assert run.train() == 8
    run.check_valid()
    unscored = [row for row in run.logged() if row["reward"] is None]
    assert len(unscored) > 8
    assert all(row["verdict_status"] == "error" for row in unscored)
    assert max(metrics["verifier/unscored"] for _, metrics in run.reports) > 0


# ---- stopping ----


def test_stop_between_two_steps_checkpoints_the_last_one(config):
    run = LocalRun(config(steps=1000, checkpoint={"every": 1000}))
    run.on_report = lambda step: run.trainer.stop() if step == 2 else None
    assert run.train() == 2
    assert run.checkpoints.steps() == [2]


def test_stop_in_mid_step_finishes_the_step_and_checkpoints_it(config):
    async def around(name, method, args, proceed):
        if method == "step" and len(run.reports) == 2:
            run.trainer.stop()
        return await proceed()

    run = LocalRun(config(steps=1000, checkpoint={"every": 1000}), around=around)
    assert run.train() == 3
    assert run.checkpoints.steps() == [3]
    assert [step for step, _ in run.reports] == [1, 2, 3]


def test_stop_while_an_engine_hangs_does_not_wait_for_it(config):
    async def around(name, method, args, proceed):
        if method == "generate" and args[0].group_id >= 2 * PROMPTS:
            run.trainer.stop()
            await asyncio.Event().wait()
        return await proceed()

    run = LocalRun(config(steps=1000, checkpoint={"every": 1000}), around=around)
    began = time.monotonic()
    step = run.train()
    assert time.monotonic() - began < PROMPT_S
    assert 1 <= step <= 2
    assert run.checkpoints.steps() == [step]


def test_stop_during_a_checkpoint_writes_it_whole_and_once(config):
    async def around(name, method, args, proceed):
        if method == "save_part":
            run.trainer.stop()
        return await proceed()

    run = LocalRun(config(steps=1000, checkpoint={"every": 2}), around=around)
    assert run.train() == 2
    assert run.checkpoints.steps() == [2]


def test_stopped_run_goes_on_to_its_end(config):
    settings = config(steps=5, checkpoint={"every": 1000}, max_policy_lag=2)
    first = LocalRun(settings)
    first.on_report = lambda step: first.trainer.stop() if step == 2 else None
    first.train()
    second = LocalRun(settings)
    assert second.train() == 5
    second.check_valid()
    assert [step for step, _ in second.reports] == [3, 4, 5]


def test_a_group_that_every_encoder_is_lost_with_is_dropped_and_the_run_goes_on(config):
    async def around(name, method, args, proceed):
        if method == "encode" and args[0].column("problem_id")[0].as_py() == deadly:
            run.handles["encoder-0"].kill()
        return await proceed()

    run = LocalRun(config(steps=5, max_attempts=2, supervision={"backoff_s": 0.0, "max_group_tries": 2}), around=around)
    deadly = next(run.task.problems("train")).problem_id
    assert run.train() == 5
    run.check_valid()
    assert run.admission.ledger.dropped_by_reason["lost"] >= 2
    assert deadly in [given_up.problem.problem_id for given_up in run.admission.quarantined]
    assert any("lost with features of group 0" in fault["error"] for fault in run.noted(EventKind.FAULT, role="group"))


def rows_of(directory: Path, *prompts: str) -> dict[str, Any]:
    """A task of these problems and no others."""
    path = directory / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in prompts))
    return {"name": "parquet", "parquet": {"path": str(path), "prompt_column": "prompt", "answer_column": "answer"}}


TOO_LONG, LIMIT = "x" * 300, {"max_prompt_tokens": 128}


def test_a_problem_that_was_given_up_is_told_and_left_out_of_the_epochs_to_come(config, tmp_path):
    run = LocalRun(config(steps=8, max_attempts=2, sampling=LIMIT, task=rows_of(tmp_path, "a", TOO_LONG, "b", "c")))
    assert run.train() == 8
    (given_up,) = run.admission.quarantined
    problem_id = given_up.problem.problem_id
    assert [event["attempt"] for event in run.noted(EventKind.ADMITTED, problem_id=problem_id)] == [0, 1]
    assert run.warnings == [f"problem {problem_id} is given up: 2 groups of it were dropped, the last for 'data' (max_attempts)"]


def test_a_run_that_has_given_up_every_problem_ends_and_says_so(config, tmp_path):
    run = LocalRun(
        config(steps=8, max_attempts=2, max_policy_lag=0, sampling=LIMIT, task=rows_of(tmp_path, TOO_LONG + "a", TOO_LONG + "b"))
    )
    with pytest.raises(TaskError, match=r"no problem is left to train on: all 2 were given up after max_attempts groups each, the last"):
        run.train()


# ---- rows that went with a node ----


def test_a_group_whose_rows_are_gone_when_it_is_to_go_into_replay_is_sampled_again(config):
    lost: list[int] = []

    async def around(name, method, args, proceed):
        if method == "insert" and not lost:
            lost.append(args[0].column("group_id")[0].as_py())
            raise DataLost("data that insert needs was lost")
        return await proceed()

    run = LocalRun(config(), around=around)
    assert run.train() == 3
    run.check_valid()
    assert [event["group_id"] for event in run.noted(EventKind.DISPATCHED)].count(lost[0]) == 2
    assert run.books.tokens.counts()["wasted_lost"] > 0


def test_a_checkpoint_during_which_rows_are_lost_can_be_resumed(config):
    """Replay is saved with a group, is lost before the checkpoint is whole, and the group's rows are gone. No lane is
    free, so that nobody has begun to sample it again by then."""
    lanes = {"rollout": {"max_sequences": 4}, "supervision": {"backoff_s": 0.0}}
    busy = asyncio.Event()
    lost: list[int] = []

    async def around(name, method, args, proceed):
        saving = method == "save_part" and run.run.step == 2
        if method == "generate" and run.run.step == 2 and run.books.held:
            busy.set()
            await asyncio.Event().wait()
        if saving and name == "replay" and not lost:
            while not run.books.held:
                await asyncio.sleep(0.001)
            await busy.wait()
        if saving and name == "bonus" and not lost:
            run.handles["replay"].kill()
            await run.run.call(run.run.replay, Replay.forget_log_after, 2, waiting_for="the new replay")
        if method == "insert" and len(args) == 3 and run.run.step == 2 and not lost:
            lost.append(args[0].column("group_id")[0].as_py())
            raise DataLost("data that insert needs was lost")
        return await proceed()

    run = LocalRun(config(steps=2, **lanes), around=around)
    assert run.train() == 2
    assert lost and lost[0] not in run.books.held
    resumed = LocalRun(config(steps=3, **lanes))
    assert resumed.train() == 3
    resumed.check_valid()


@pytest.mark.parametrize("deterministic", [False, True])
def test_groups_whose_rows_are_gone_when_replay_is_lost_are_sampled_again(config, deterministic):
    lost: list[int] = []

    async def around(name, method, args, proceed):
        is_restore = method == "insert" and len(args) == 3
        if method == "sample" and args[1] == 1 and len(run.parts["replay"]) == 1:
            run.handles["replay"].kill()
        if is_restore and not lost:
            lost.append(args[0].column("group_id")[0].as_py())
            raise DataLost("data that insert needs was lost")
        return await proceed()

    run = LocalRun(config(deterministic=deterministic, supervision={"backoff_s": 0.0}), around=around)
    assert run.train() == 3
    run.check_valid()
    assert len(run.parts["replay"]) == 2
    assert [event["group_id"] for event in run.noted(EventKind.DISPATCHED)].count(lost[0]) == 2
    assert any("another start may differ" in warning for warning in run.warnings) == deterministic


def test_restored_groups_whose_rows_are_gone_when_replay_is_lost_are_sampled_again(config):
    held: list[int] = []

    train_to_a_checkpoint_with_a_group(config)

    async def around(name, method, args, proceed):
        if method == "sample" and len(run.parts["replay"]) == 1:
            run.handles["replay"].kill()
        if method == "insert_rows" and not held:
            held.extend(args[1])
            raise DataLost("data that insert_rows needs was lost")
        return await proceed()

    run = LocalRun(config(steps=4, supervision={"backoff_s": 0.0}), around=around)
    assert run.train() == 4
    run.check_valid()
    assert held
    given = [event["group_id"] for event in run.noted(EventKind.DISPATCHED)]
    assert all(given.count(group_id) == 1 for group_id in held)


# ---- back-pressure and staleness ----


@pytest.fixture
def group_bytes(config, tmp_path) -> int:
    """What one group of a small run takes in replay."""
    sizes = []

    def measure_inserts(name, replay):
        if name != "replay":
            return
        insert = replay.insert

        def measure(*args):
            result = insert(*args)
            sizes.append(replay.sample(PROMPTS + 1, 0)[1].held_bytes)
            return result

        replay.insert = measure

    run = LocalRun(config(steps=1, max_policy_lag=0, run_dir=str(tmp_path / "measured")), on_made=measure_inserts)
    run.train()
    return sizes[0]


def test_run_with_a_replay_in_which_groups_must_wait_finishes(config, group_bytes):
    """The learner is held until a group was refused, so that they do wait."""
    refused = asyncio.Event()

    async def around(name, method, args, proceed):
        if method == "step":
            await refused.wait()
        result = await proceed()
        if method == "insert" and result is InsertResult.FULL:
            refused.set()
        return result

    run = LocalRun(config(steps=5, max_policy_lag=2, replay={"max_bytes": int(2.5 * group_bytes)}), around=around)
    assert run.train() == 5
    assert refused.is_set()
    run.check_valid()


def test_a_group_that_waits_for_room_is_let_in_when_a_draw_finds_nothing_but_stale_groups(config):
    """That draw is no step, and no step may follow it: the groups of the next one may all be waiting."""

    async def scenario() -> None:
        run = LocalRun(config())
        trainer, waiting = run.trainer, asyncio.Event()
        requests = [run.books.admit() for _ in range(PROMPTS + 1)]
        for request in requests:
            run.books.tokens.started("rollout-0", request.group_id)
        run.books.held = {request.group_id for request in requests[:-1]}
        results = iter([InsertResult.FULL, InsertResult.ACCEPTED])

        async def insert(scored, version):
            waiting.set()
            return next(results)

        async def draw(version):
            drawn = DrawnBatch(group_ids=(), masked_tokens=(), stale_ids=(0,), held_groups=1, held_bytes=0)
            run.books.drawn(drawn, step=1)
            return None, drawn

        run.run.insert, run.run.draw = insert, draw
        inserting = asyncio.create_task(trainer._insert(Scored(request=requests[-1], batch=None, verdicts=[], encode_s=0.0)))
        await waiting.wait()
        drawing = asyncio.create_task(trainer._next_batch())
        async with asyncio.timeout(PROMPT_S):
            await inserting
        drawing.cancel()
        assert run.books.held == {1, PROMPTS}

    asyncio.run(scenario())


@pytest.mark.parametrize("groups", [0.5, 1.5])
def test_replay_too_small_for_a_step_fails_at_once_and_names_the_key(config, group_bytes, groups):
    cap = int(groups * group_bytes)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"max_bytes = {cap}\b"):
        LocalRun(config(max_policy_lag=2, replay={"max_bytes": cap})).train()
    assert time.monotonic() - began < PROMPT_S


@pytest.mark.parametrize("late", ["mask", "drop"])
def test_group_that_comes_three_versions_late_is_dropped_counted_and_readmitted(config, late):
    """No token of it is young enough. The others go on meanwhile: one slow group holds up no step. Being late is no
    failure of its problem."""
    enough_live = asyncio.Event()
    attempts: list[tuple[int, int]] = []

    async def around(name, method, args, proceed):
        result = await proceed()
        if method == "update" and args[0].version >= 3:
            enough_live.set()
        if method == "generate":
            if args[0].problem.problem_id == slow:
                attempts.append((args[0].group_id, args[0].attempt))
            if args[0].group_id == 0:
                await enough_live.wait()
        return result

    run = LocalRun(config(steps=7, late=late, max_attempts=1), around=around)
    slow = next(run.task.problems("train")).problem_id
    assert run.train() == 7
    run.check_valid()
    assert attempts[0] == (0, 0)
    assert attempts[1][0] > 0
    assert attempts[1][1] == 0
    assert run.admission.ledger.dropped_by_reason == {"stale": 1} and not run.admission.quarantined
    assert run.reports[-1][1]["groups/dropped_stale"] == 1
    (attempt,) = {row["attempt"] for row in run.logged() if row["problem_id"] == slow}
    assert attempt == 0
    assert 0 not in {row["group_id"] for row in run.logged()}


def test_group_that_becomes_stale_in_replay_is_in_the_log_as_stale(config):
    """Group 0, sampled under version 0, enters replay while step 2 trains: then the bound holds, one step later it does
    not."""
    step_2_began, group_0_held = asyncio.Event(), asyncio.Event()

    async def around(name, method, args, proceed):
        if method == "step" and len(run.reports) == 1:
            step_2_began.set()
            await group_0_held.wait()
        result = await proceed()
        if method == "generate" and args[0].group_id == 0:
            await step_2_began.wait()
        if method == "insert" and args[0].column("group_id")[0].as_py() == 0:
            assert result is InsertResult.ACCEPTED
            group_0_held.set()
        return result

    run = LocalRun(config(steps=6), around=around)
    slow = next(run.task.problems("train")).problem_id
    assert run.train() == 6
    run.check_valid()
    stale = run.logged("stale")
    assert [(row["group_id"], row["problem_id"], row["step"], row["index"]) for row in stale] == [
        (0, slow, 3, index) for index in range(RESPONSES)
    ]
    assert all(row["advantage"] is None for row in stale)
    assert slow in run.trained_problems()
    assert run.admission.ledger.dropped_by_reason == {"stale": 1}


@pytest.mark.parametrize("late", ["mask", "drop"])
def test_problem_that_is_always_too_late_is_tried_again_and_never_given_up(config, late):
    """Whatever is sampled for the first problem comes back three versions later; the others suffice for every step."""
    live = {"version": 0}
    changed = asyncio.Condition()

    async def around(name, method, args, proceed):
        result = await proceed()
        if method == "update":
            async with changed:
                live["version"] = args[0].version
                changed.notify_all()
        if method == "generate" and args[0].problem.problem_id == slow:
            async with changed:
                await changed.wait_for(lambda: live["version"] >= args[0].admitted_version + 3)
        return result

    run = LocalRun(config(steps=16, max_attempts=2, late=late), around=around)
    slow = next(run.task.problems("train")).problem_id
    assert run.train() == 16
    run.check_valid()
    assert run.admission.ledger.dropped_by_reason["stale"] >= 3 and not run.admission.quarantined
    assert run.reports[-1][1]["late/dropped_tokens_mean"] > 0
    assert slow not in run.trained_problems()


def test_with_wait_the_learner_waits_for_the_groups_that_would_be_too_old_and_drops_none(config):
    """The first group comes back once the steps before its last chance are done. Otherwise it would be dropped."""
    done: list[int] = []

    async def around(name, method, args, proceed):
        result = await proceed()
        if method == "generate" and args[0].group_id == 0:
            while len(done) < 1:  # S = 1: step 2 is its last chance
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
        return result

    run = LocalRun(config(steps=6, late="wait"), around=around)
    run.on_report = done.append
    assert run.train() == 6
    run.check_valid()
    assert run.admission.ledger.dropped == 0
    (step,) = {row["step"] for row in run.logged() if row["group_id"] == 0}
    assert step == 2


# ---- random schedules ----


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_no_schedule_breaks_an_invariant_or_stops_the_run(config, tmp_path, lag):
    seen_lags: set[int] = set()
    for seed in range(7):
        rng = random.Random(f"{lag}/{seed}")
        settings = config(
            steps=4,
            max_policy_lag=lag,
            seed=seed,
            run_dir=str(tmp_path / str(seed)),
            rollout={"workers": rng.choice([1, 2]), "max_sequences": rng.choice([4, 8, 64])},
            checkpoint={"every": rng.choice([1, 3, 100])},
        )
        run = LocalRun(settings, around=random_delays(rng, most_s=0.008))
        assert run.train() == 4, f"seed {seed}"
        run.check_valid()
        assert [step for step, _ in run.reports] == [1, 2, 3, 4]
        stale = run.admission.ledger.dropped_by_reason.get("stale", 0)
        assert run.reports[-1][1]["groups/dropped_stale"] <= stale
        seen_lags |= set(run.lags())
    assert seen_lags >= set(range(min(lag, 1) + 1)), "the schedules tried nothing"


def test_tiny_model_is_a_model_like_any_other(tiny_model):
    assert resolve_model(tiny_model) == tiny_model


def test_snapshots_that_fail_now_and_then_end_no_run(config, monkeypatch):
    """One in two, more often in all than `supervision.max_failures` in a row would be allowed."""
    commit, commits = CheckpointManager.commit, count(1)

    def flaky(manager, step, files, meta):
        if "snapshots" in manager.uri and next(commits) % 2:
            raise CheckpointError("a moment's trouble")
        commit(manager, step, files, meta)

    monkeypatch.setattr(CheckpointManager, "commit", flaky)
    run = LocalRun(config(steps=7, checkpoint={"every": 100, "learner_every": 1}, supervision={"max_failures": 2, "backoff_s": 0.0}))
    assert run.train() == 7
    assert run.warnings == ["a moment's trouble"] * 4


def test_a_lost_learner_comes_back_from_its_newest_snapshot_and_trains_only_the_steps_since(config, tmp_path):
    """Without one it would train from the beginning: there is no checkpoint yet. What comes out is the same bit for
    bit."""
    settings = {"steps": 7, "max_policy_lag": 0, "checkpoint": {"every": 100, "learner_every": 2}, "supervision": {"backoff_s": 0.0}}
    undisturbed = LocalRun(config(run_dir=str(tmp_path / "undisturbed"), **settings))
    undisturbed.train()
    learners: list[Any] = []
    steps_of_second: list[int] = []

    def count_steps(name, part):
        if name != "learner":
            return
        learners.append(part)
        step = part.step

        def counted(batch, version=None):
            if part is not learners[0]:
                steps_of_second.append(part.version)
            return step(batch, version)

        part.step = counted

    run = LocalRun(config(run_dir=str(tmp_path / "lost"), **settings), on_made=count_steps)
    run.on_report = lambda step: run.handles["learner"].kill() if step == 5 else None
    assert run.train() == 7
    run.check_valid()
    assert steps_of_second == [4, 5, 6], "step 5 again, from the snapshot of step 4; then the rest"
    assert_same_state(undisturbed.state(tmp_path / "a"), run.state(tmp_path / "b"))


def test_with_wait_a_full_replay_holds_up_no_group_for_ever(config):
    """Replay has room for one step's groups, and the group that the learner waits for comes while others wait for room,
    which only a step makes."""
    one_waits, first_has_come = asyncio.Event(), asyncio.Event()

    async def around(name, method, args, proceed):
        if method == "insert" and run.books.held and len(run.books.held) >= PROMPTS:
            one_waits.set()
            return InsertResult.FULL
        result = await proceed()
        if method == "generate" and args[0].group_id == 0:
            await one_waits.wait()
            first_has_come.set()
        return result

    run = LocalRun(config(steps=6, max_policy_lag=2, late="wait"), around=around)
    assert run.train() == 6
    assert first_has_come.is_set() and not run.admission.quarantined


def test_a_worker_without_work_does_not_hide_a_standstill(config):
    async def around(name, method, args, proceed):
        if method == "generate" and name == "rollout-0":
            await asyncio.Event().wait()
        return await proceed()

    limits = {"rollout": {"workers": 2, "max_sequences": 64, "group_timeout_s": 20.0}, "supervision": {"heartbeat_s": 0.05}}
    run = LocalRun(config(steps=50, max_policy_lag=0, **limits), around=around)
    run.trainer._changes.stuck_after_s = 1.0
    with pytest.raises(RuntimeError, match=r"nothing has moved for 1 s"):
        run.train()
