"""A learner of several ranks under real Ray: the tiny model and the reference engine."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from buffers.records import Problem, Verdict
from jobs.config import RunConfig, load_config
from jobs.directory.events import EventKind, read_events
from tasks.registry import make_task
from tests.integration.processes import Training, tiny_settings
from tests.integration.test_ray_run import RAYS_OWN_AGENTS, assert_checkpoint_loads, assert_policy_is_that_of_step, checkpoints
from tests.jobs.components_fixture import LocalRun

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

STEPS = 3
TWO_RANKS = ("--set", "learner.ranks=2", "--set", "supervision.backoff_s=0.1")


@pytest.fixture
def config(tmp_path: Path, tiny_model: str) -> Path:
    """At lag 0 a run is a function of its configuration. Without an encoder it is there sooner."""
    file = tmp_path / "tiny.toml"
    settings = tiny_settings(tiny_model).replace('memory = "run"', 'memory = "none"\nsource = "policy"')
    file.write_text(f"steps = {STEPS}\nmax_policy_lag = 0\n{settings}")
    return file


class TaskJudge:
    """The task's own verdicts, in this process."""

    def __init__(self, config: RunConfig) -> None:
        self._task = make_task(config.task)

    def verify_batch(self, problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        return [self._task.verify(problem, text) for text in batch.column("response_text").to_pylist()]


def run_of_one(config: Path, run_dir: Path) -> LocalRun:
    """The same run with one learner, in this process."""
    settings = load_config(str(config), [f"run_dir={run_dir}"])
    finished = LocalRun(settings, judge=TaskJudge(settings))
    assert finished.train() == STEPS
    return finished


def sampled(run_dir: Path) -> list[Any]:
    columns = ["step", "problem_id", "index", "response_ids", "reward"]
    return [pq.read_table(file, columns=columns).to_pylist() for file in sorted((run_dir / "rollouts").iterdir())]


def learnt(run_dir: Path) -> dict[str, torch.Tensor]:
    state = load_file(run_dir / f"checkpoints/step_{STEPS:06d}/learner/optimiser.safetensors")
    return {name: value for name, value in state.items() if name.startswith("master/")}


def assert_same_run(found: Path, expected: Path) -> None:
    """The samples to the token, the policy to float32."""
    assert sampled(found) == sampled(expected)
    masters, others = learnt(found), learnt(expected)
    assert masters.keys() == others.keys() and len(masters) > 10
    for name, master in masters.items():
        torch.testing.assert_close(master, others[name], rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kills", [0, pytest.param(1, marks=pytest.mark.long)])
def test_two_ranks_train_what_one_learner_does_though_one_be_killed(config: Path, tmp_path: Path, kills: int) -> None:
    run_dir = tmp_path / "run"
    with Training(config, run_dir, *TWO_RANKS) as training:
        training.wait_for_steps(1)
        ranks = training.all_named("ray::LearnerRank")
        assert len(ranks) == 2
        for rank in ranks[:kills]:
            os.kill(rank.pid, signal.SIGKILL)
        assert training.exit_code() == 0, training.output()
        training.assert_no_process_left()
        assert ("learner is replaced: " in training.output()) == bool(kills)
    faults = [event.fields for event in read_events(run_dir / "events.jsonl") if event.kind is EventKind.FAULT]
    assert [(fault["role"], fault["kind"]) for fault in faults] == [("learner", "infrastructure")] * kills
    assert_checkpoint_loads(run_dir, STEPS)
    assert_policy_is_that_of_step(run_dir, STEPS)
    one = run_of_one(config, tmp_path / "one")
    assert_same_run(run_dir, Path(one.config.run_dir))


@pytest.mark.long
def test_the_number_of_ranks_may_change_whenever_a_run_is_resumed(config: Path, tmp_path: Path) -> None:
    """Two ranks, whose driver is killed; then one; then three."""
    run_dir = tmp_path / "run"
    with Training(config, run_dir, *TWO_RANKS, "--set", "checkpoint.every=1", "--set", "steps=100000") as training:
        training.wait_for_steps(2)
        training.signal(signal.SIGKILL)
        training.exit_code(timeout_s=60)
        training.assert_no_process_left(timeout_s=60, but=RAYS_OWN_AGENTS)
        saved = checkpoints(run_dir).latest()
        assert saved is not None
        for ranks, steps in ((1, saved + 1), (3, saved + 2)):
            settings = ("--set", f"learner.ranks={ranks}", "--set", f"steps={steps}")
            with Training(config, run_dir, *settings) as resumed:
                assert resumed.exit_code() == 0, resumed.output()
                resumed.assert_no_process_left()
            assert_checkpoint_loads(run_dir, steps)
            assert_policy_is_that_of_step(run_dir, steps)
        training.assert_no_process_left(timeout_s=90)
