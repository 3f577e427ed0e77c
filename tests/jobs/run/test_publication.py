"""Weights on their way in whole runs in this process: what they cost in calls, and what becomes of those that are
damaged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs.directory.events import EventKind
from jobs.processes.failures import PublicationFailed
from learners.weight_check import WeightsRefused
from learners.weights import WeightSnapshot
from tests.jobs.components_fixture import LocalRun, assert_same_state, small_config

pytestmark = pytest.mark.whole

Proceed = Callable[[], Awaitable[Any]]
NORM = "model.norm.weight"


@pytest.fixture
def config(tiny_model, tmp_path):
    def make(name: str = "run", **values: Any):
        settings = {"max_policy_lag": 0, "supervision": {"backoff_s": 0.0, "max_failures": 3}, "encoder": {"tokens_per_batch": 1}}
        return small_config(tiny_model, tmp_path / name, **{**settings, **values})

    return make


def damaged(snapshot: WeightSnapshot) -> WeightSnapshot:
    """One byte changed on the way."""
    copy = replace(snapshot, buffer=snapshot.buffer.copy())
    copy.buffer[next(spec.offset for spec in snapshot.index if spec.name == NORM)] ^= 1
    return copy


class Damage:
    """Around every call: the learner's answers number `numbers` come damaged. Counts calls that are about weights."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.calls: Counter[str] = Counter()

    async def __call__(self, component: str, method: str, args: tuple[Any, ...], proceed: Proceed) -> Any:
        self.calls[f"{component}.{method}"] += 1
        result = await proceed()
        if method == "publish" and self.calls["learner.publish"] in self.numbers:
            return damaged(result[0]), result[1]
        return result


@pytest.mark.parametrize("workers", [1, 3])
def test_a_version_costs_one_call_of_the_learner_and_one_of_each_worker(config, workers):
    damage = Damage()
    run = LocalRun(config(rollout={"workers": workers}), around=damage)
    assert run.train() == 3
    run.check_valid()
    updates = {name: calls for name, calls in damage.calls.items() if name.endswith(".update")}
    assert damage.calls["learner.publish"] == 3
    assert all(calls <= 3 for calls in updates.values()) and len(updates) == workers
    for step, metrics in run.reports[1:]:
        assert metrics["publication/calls"] == 1 + workers, f"step {step}"
        assert metrics["publication/mib"] * 2**20 == sum(tensor.nbytes for _, tensor in run.the_learner.snapshot().tensors())
        assert metrics["publication/refused"] == 0
        assert min(metrics[f"time/{name}_s"] for name in ("publish", "check_weights", "load_weights")) > 0


@pytest.mark.parametrize("numbers", [(1,), (1, 2, 4)])
def test_damaged_weights_are_published_again_and_change_nothing_of_what_is_learnt(config, tmp_path, numbers):
    undisturbed = LocalRun(config("undisturbed"))
    undisturbed.train()
    run = LocalRun(config(), around=Damage(*numbers))
    assert run.train() == 3
    run.check_valid()
    assert run.samples() == undisturbed.samples()
    assert_same_state(run.state(tmp_path / "run_state"), undisturbed.state(tmp_path / "undisturbed_state"))
    faults = run.noted(EventKind.FAULT, role="publication", name="rollout-0", kind="infrastructure")
    assert len(faults) == len(run.warnings) == len(numbers) == run.reports[-1][1]["publication/refused"]
    assert run.warnings[0].startswith(
        "rollout-0 refuses version 1 and continues under version 0; it is published again: "
        f"version 1: tensor {NORM} is not as it was published (checksum "
    )
    assert len(run.parts["rollout"]) == 1, "nobody was replaced"


def test_with_a_lag_the_old_version_serves_until_the_new_one_is_whole(config):
    run = LocalRun(config(max_policy_lag=1, rollout={"workers": 2}), around=Damage(2, 3))
    assert run.train() == 3
    run.check_valid()
    assert run.trainer.rollouts.num_refused >= 2
    assert len(run.parts["rollout"]) == 2


def test_weights_that_are_always_damaged_end_the_run_with_worker_version_and_tensor(config):
    run = LocalRun(config(), around=Damage(*range(100)))
    with pytest.raises(
        PublicationFailed, match=rf"^rollout-0 refused weights 4 times in a row .* version 0; .* tensor {NORM} is not as it"
    ):
        run.train()
    assert run.admission.live_version == 0 and not run.noted(EventKind.PUBLISHED)


def test_a_deterministic_run_takes_no_newer_weights_instead_of_refused_ones(config):
    """The learner may be ahead by then, and whoever refused them on their way may take them the next time."""
    settings = {"max_policy_lag": 1, "deterministic": True}
    undisturbed = LocalRun(config("undisturbed", **settings))
    undisturbed.train()
    calls = Counter[str]()

    async def refused_twice(component: str, method: str, args: tuple[Any, ...], proceed: Proceed) -> Any:
        calls[method] += 1
        if method == "update" and calls[method] in (1, 3):
            raise WeightsRefused("damaged on the way")
        return await proceed()

    run = LocalRun(config(**settings), around=refused_twice)
    assert run.train() == 3
    assert run.trainer.rollouts.num_refused == 2
    assert run.samples() == undisturbed.samples()


def test_a_learner_that_is_lost_while_it_publishes_again_has_the_step_that_is_being_logged(config, tmp_path):
    undisturbed = LocalRun(config("undisturbed"))
    undisturbed.train()
    logs = Counter[str]()

    async def lost_while_logging(component: str, method: str, args: tuple[Any, ...], proceed: Proceed) -> Any:
        logs[method] += 1
        if method == "log" and logs[method] == 2:
            run.handles["learner"].kill()
            assert (await run.run.weights())[1] == 2  # as `Rollouts` asks for where weights were refused
        return await proceed()

    run = LocalRun(config(), around=lost_while_logging)
    assert run.train() == 3
    assert len(run.parts["learner"]) == 2
    assert run.samples() == undisturbed.samples()
    assert_same_state(run.state(tmp_path / "run_state"), undisturbed.state(tmp_path / "undisturbed_state"))


def test_a_learner_that_is_restored_while_a_step_is_logged_has_that_step_too(config, tmp_path):
    """The log is done while the new learner goes through the steps before."""
    undisturbed = LocalRun(config("undisturbed"))
    undisturbed.train()
    calls, tasks = Counter[str](), []

    async def lost_while_logging(component: str, method: str, args: tuple[Any, ...], proceed: Proceed) -> Any:
        calls[method] += 1
        if method == "log" and calls[method] == 2:
            run.handles["learner"].kill()
            tasks.append(asyncio.ensure_future(run.run.weights()))
            while not calls["train_log"]:
                await asyncio.sleep(0)
        result = await proceed()
        if method == "train_log" and calls[method] == 1:
            while run.run.step < 2:
                await asyncio.sleep(0)
        if method == "step" and calls[method] == 3:
            assert (await tasks[0])[1] == 2
        return result

    run = LocalRun(config(), around=lost_while_logging)
    assert run.train() == 3
    assert (len(run.parts["learner"]), calls["train_log"]) == (2, 2)
    assert run.samples() == undisturbed.samples()
    assert_same_state(run.state(tmp_path / "run_state"), undisturbed.state(tmp_path / "undisturbed_state"))
