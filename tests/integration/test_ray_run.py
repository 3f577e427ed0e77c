"""A run through `python -m jobs.train`: real Ray, real processes, the tiny model and the reference engine."""

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from buffers.schema import ROLLOUT_SCHEMA, check_schema, validate_groups
from jobs.configuration.user_error import UserError
from jobs.processes import build
from jobs.processes.build import ray_session
from learners.checkpoint import CheckpointManager
from tests.integration.processes import PROMPTS as P
from tests.integration.processes import RESPONSES as K
from tests.integration.processes import Training, metrics_of, steps_of, tiny_settings, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RAYS_OWN_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They hold nothing of ours and outlive a killed driver by a minute: Ray 2.60 has them report to the dead GCS with that
timeout."""
PORTS_OF_A_HEAD = {6379, 8265, 10001, 52365, 44217, 44227}
"""Ports that `ray start --head` takes unless told otherwise: GCS, dashboard, client, dashboard agent, and metrics."""
ENDLESS = ("--set", "steps=100000", "--set", "checkpoint.every=2")


@pytest.fixture
def config(tmp_path, tiny_model) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(f"steps = 3\n{tiny_settings(tiny_model)}")
    return file


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return tmp_path / "run"


def checkpoints(run_dir: Path) -> CheckpointManager:
    return CheckpointManager(str(run_dir / "checkpoints"), keep=2)


def assert_policy_is_that_of_step(run_dir: Path, step: int) -> None:
    """The exported directory loads by itself and equals the policy of the checkpoint."""
    final = AutoModelForCausalLM.from_pretrained(run_dir / "policy").state_dict()
    saved = AutoModelForCausalLM.from_pretrained(run_dir / f"checkpoints/step_{step:06d}/learner/policy").state_dict()
    assert final.keys() == saved.keys()
    assert all(torch.equal(final[name], saved[name]) for name in final)
    assert AutoTokenizer.from_pretrained(run_dir / "policy")("2 + 2")["input_ids"]


def assert_checkpoint_loads(run_dir: Path, step: int) -> None:
    """Whole, by its manifest and checksums."""
    manager = checkpoints(run_dir)
    assert manager.latest() == step
    assert manager.meta(step)["stream"]["cursor"] >= step * P
    for part in ("learner", "replay", "bonus"):
        manager.restore(step, part, lambda directory: None)


def test_run_then_nothing_to_do_then_more_steps(config, run_dir, tiny_model):
    with Training(config, run_dir) as training:
        assert training.exit_code() == 0, training.output()
        training.assert_no_process_left()
        assert "3 of 3 steps trained" in training.output()
    first = metrics_of(run_dir)
    assert [record["step"] for record in first] == [1, 2, 3]
    assert all(record["learner/grad_norm"] > 0 for record in first)
    assert_checkpoint_loads(run_dir, 3)
    assert_policy_is_that_of_step(run_dir, 3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    final = AutoModelForCausalLM.from_pretrained(run_dir / "policy").state_dict()
    assert any(not torch.equal(base[name], final[name]) for name in base)
    for step in (1, 2, 3):
        table = pq.read_table(run_dir / f"rollouts/step_{step:06d}.parquet")
        check_schema(table.schema)
        assert table.schema.names == ROLLOUT_SCHEMA.names
        validate_groups(table.combine_chunks().to_batches()[0], K)
        assert table.num_rows == P * K
        assert set(table.column("step").to_pylist()) == {step}
        columns = zip(table.column("version_values").to_pylist(), table.column("trained_from_version").to_pylist(), strict=True)
        lags = [step - 1 - version for versions, first in columns for version in versions if version >= (first or 0)]
        assert 0 <= min(lags) <= max(lags) <= 1

    with Training(config, run_dir) as training:
        assert training.exit_code() == 0
        assert "nothing to do" in training.output()
        assert "--set steps=23" in training.output()
    assert metrics_of(run_dir) == first

    with Training(config, run_dir, "--set", "steps=5", "--set", "logs.format=json") as training:
        assert training.exit_code() == 0, training.output()
        training.assert_no_process_left()
    records = [json.loads(line) for line in training.output().splitlines() if line.startswith('{"timestamp"')]
    assert {record["run"] for record in records} == {"run"}
    assert {record["worker"] for record in records if record["message"] == "dispatched"} == {"rollout-0"}
    assert [record["step"] for record in records if record["message"].startswith("step ")] == [4, 5]
    assert metrics_of(run_dir)[:3] == first
    assert steps_of(run_dir) == [1, 2, 3, 4, 5]
    assert_checkpoint_loads(run_dir, 5)
    assert_policy_is_that_of_step(run_dir, 5)
    trained = [pq.read_table(file, columns=["problem_id"]) for file in sorted((run_dir / "rollouts").iterdir())]
    problems = [problem for table in trained for problem in table.column("problem_id").to_pylist()[::K]]
    assert len(set(problems)) == len(problems) == 5 * P, "a problem was trained on twice"


def test_ctrl_c_checkpoints_and_leaves_no_process(config, run_dir):
    """The interrupt reaches every process of the terminal's group, as Ctrl-C does. Meanwhile nobody else may use the
    directory, and a head may start beside it."""
    with Training(config, run_dir, *ENDLESS) as training:
        training.wait_for_steps(1)
        with Training(config, run_dir, *ENDLESS) as second:
            assert second.exit_code(timeout_s=60) == 2
            (line,) = second.output().splitlines()
            assert f"{run_dir} is in use by process {training.process.pid}" in line
        assert training.process.poll() is None
        assert not training.ports() & PORTS_OF_A_HEAD, "a head on this machine would lack them"
        training.signal(signal.SIGINT, group=True)
        assert training.exit_code(timeout_s=60) == 130, training.output()
        training.assert_no_process_left()
    assert_checkpoint_loads(run_dir, steps_of(run_dir)[-1])
    assert not (run_dir / "policy").exists()


@pytest.mark.long
def test_sigterm_checkpoints_and_leaves_no_process(config, run_dir):
    with Training(config, run_dir, *ENDLESS) as training:
        training.wait_for_steps(1)
        training.signal(signal.SIGTERM)
        assert training.exit_code(timeout_s=60) == 143, training.output()
        training.assert_no_process_left()
    assert_checkpoint_loads(run_dir, steps_of(run_dir)[-1])


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    monkeypatch.setattr(build, "OBJECT_STORE_BYTES", 1)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine \(.*object store.*\): ") as refused, ray_session("test", []):
        pass
    assert "\n" not in str(refused.value)


def test_interrupt_during_the_start_leaves_no_process(config, run_dir):
    with Training(config, run_dir, *ENDLESS) as training:
        wait_until(lambda: len(training.processes()) >= 5, timeout_s=60, what="Ray to start")
        assert not steps_of(run_dir)
        training.signal(signal.SIGINT)
        assert training.exit_code(timeout_s=60) != 0
        training.assert_no_process_left()


@pytest.mark.long
def test_killed_driver_leaves_no_process_and_the_next_start_resumes(config, run_dir):
    with Training(config, run_dir, *ENDLESS) as training:
        training.wait_for_steps(5)
        training.signal(signal.SIGKILL)
        assert training.exit_code(timeout_s=60) == -signal.SIGKILL
        training.assert_no_process_left(timeout_s=30, but=RAYS_OWN_AGENTS)
        saved = checkpoints(run_dir).latest()
        assert saved is not None
        kept = [record for record in metrics_of(run_dir) if record["step"] <= saved]
        with Training(config, run_dir, "--set", f"steps={saved + 2}", "--set", "checkpoint.every=2") as restarted:
            assert restarted.exit_code() == 0, restarted.output()
            restarted.assert_no_process_left()
        training.assert_no_process_left(timeout_s=90)
    assert metrics_of(run_dir)[:saved] == kept
    assert steps_of(run_dir) == list(range(1, saved + 3))
    assert_checkpoint_loads(run_dir, saved + 2)
    files = sorted(file.name for file in (run_dir / "rollouts").iterdir())
    assert files == [f"step_{step:06d}.parquet" for step in range(1, saved + 3)]


@pytest.mark.long
def test_several_encoders_and_a_memory_of_prompts_train(config, run_dir):
    with Training(config, run_dir, "--set", "encoder.replicas=2", "--set", "bonus.memory=prompt", "--set", "steps=2") as training:
        assert training.exit_code() == 0, training.output()
        training.assert_no_process_left()
    records = metrics_of(run_dir)
    assert [record["bonus/remembered_prompts"] for record in records] == [P, 2 * P]
    assert all(record["bonus/evicted_prompts"] == 0 for record in records)


@pytest.mark.long
def test_features_of_the_policy_itself_need_no_encoder(config, run_dir):
    settings = ("--set", "bonus.source=policy", "--set", "bonus.memory=none", "--set", "steps=2")
    with Training(config, run_dir, *settings) as training:
        training.wait_for_steps(1)
        assert not [process for process in training.processes() if "encoder" in " ".join(process.cmdline()).lower()]
        assert training.exit_code() == 0, training.output()
    table = pq.read_table(run_dir / "rollouts")
    assert table.column("feature").null_count == 0 and table.column("bonus_detail").null_count == 0
