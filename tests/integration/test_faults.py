"""Faults in a run of real processes: the tiny model and the reference engine under real Ray."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from jobs.directory.events import EventKind, read_events
from jobs.directory.run_state import Desired, RunStatus, read_status, write_desired
from tests.integration.processes import Training, metrics_of, steps_of, wait_until
from tests.integration.test_ray_run import ENDLESS, K, P, assert_checkpoint_loads, checkpoints, config, run_dir
from tests.jobs.event_batches import batches

__all__ = ["config", "run_dir"]  # fixtures

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

QUICK = ("--set", "supervision.backoff_s=0.1", "--set", "supervision.heartbeat_s=0.5")
ROLES = {
    "rollout": "ray::RolloutWorker",
    "encoder": "ray::HiddenStateEncoder",
    "verifier": "ray::VerifierPool",
    "bonus": "ray::BonusScorer",
    "replay": "ray::Replay",
    "learner": "ray::Learner",
}


def faults_of(run_dir: Path) -> Counter:
    """Losses by role, from the event log."""
    file = run_dir / "events.jsonl"
    return Counter(event.fields["role"] for event in read_events(file) if event.kind is EventKind.FAULT) if file.exists() else Counter()


def status_of(run_dir: Path) -> RunStatus:
    status = read_status(run_dir)
    assert status is not None
    return status


def serving(run_dir: Path) -> list[str]:
    return [worker.name for worker in status_of(run_dir).workers if worker.role == "rollout" and worker.state == "serving"]


def wait_for(training: Training, condition, *, what: str, timeout_s: float = 90) -> None:
    def holds() -> bool:
        assert training.process.poll() is None, training.output()[-3000:]
        return condition()

    try:
        wait_until(holds, timeout_s=timeout_s, what=what)
    except AssertionError as error:
        raise AssertionError(f"{error}; {read_status(training.run_dir)}; {training.output()[-2000:]}") from None


def wait_for_more_steps(training: Training, num: int = 2) -> None:
    training.wait_for_steps(len(steps_of(training.run_dir)) + num)


def assert_accounted(run_dir: Path) -> None:
    """Every step once, every problem trained on once, no token beyond the bound, the tokens add up, the batches are
    those recorded."""
    records = metrics_of(run_dir)
    steps = [record["step"] for record in records]
    assert steps == list(range(1, len(steps) + 1))
    rows = [
        row for file in sorted((run_dir / "rollouts").iterdir()) for row in pq.read_table(file).to_pylist() if row["outcome"] == "trained"
    ]
    assert Counter(row["step"] for row in rows) == dict.fromkeys(steps, P * K)
    problems = [row["problem_id"] for row in rows[::K]]
    assert len(set(problems)) == len(problems), "a problem was trained on twice"
    trained = [(row["step"], version) for row in rows for version in row["version_values"] if version >= (row["trained_from_version"] or 0)]
    assert max(step - 1 - version for step, version in trained) <= 1
    last = records[-1]
    spent = (
        sum(value for name, value in last.items() if name.startswith("tokens/wasted_"))
        + last["tokens/trained"]
        + last["tokens/masked"]
        + last["tokens/in_flight"]
    )
    assert last["tokens/generated"] == spent
    assert last["tokens/trained"] + last["tokens/masked"] == sum(len(row["response_ids"]) for row in rows)
    recorded = batches(read_events(run_dir / "events.jsonl"))
    by_step: dict[int, list[int]] = {}
    for row in rows[::K]:
        by_step.setdefault(row["step"], []).append(row["group_id"])
    assert {step: recorded[step] for step in by_step} == by_step


def test_every_role_is_killed_once_and_the_run_goes_on(config, run_dir):
    with Training(config, run_dir, *ENDLESS, *QUICK) as training:
        training.wait_for_steps(3)
        for role, title in ROLES.items():
            os.kill(training.named(title).pid, signal.SIGKILL)
            wait_for(training, lambda role=role: faults_of(run_dir)[role] == 1, what=f"the loss of the {role} to be noticed")
            wait_for_more_steps(training)
        training.signal(signal.SIGINT)
        assert training.exit_code(timeout_s=60) == 130, training.output()
        training.assert_no_process_left()
    assert faults_of(run_dir) == dict.fromkeys(ROLES, 1)
    assert_accounted(run_dir)
    assert_checkpoint_loads(run_dir, steps_of(run_dir)[-1])
    assert "rollout-0 is replaced: " in training.output()
    assert "learner is replaced: " in training.output()


@pytest.mark.long
def test_roles_that_hang_are_found_and_replaced(config, run_dir):
    """Stopped processes answer nothing, and do not die either."""
    limits = ("--set", "supervision.hang_timeout_s=6", "--set", "wait_timeout_s=15")
    with Training(config, run_dir, *ENDLESS, *QUICK, *limits) as training:
        training.wait_for_steps(3)
        for role in ("rollout", "encoder", "learner"):
            os.kill(training.named(ROLES[role]).pid, signal.SIGSTOP)
            wait_for(training, lambda role=role: faults_of(run_dir)[role] >= 1, what=f"the hanging {role} to be noticed")
            wait_for_more_steps(training)
        training.signal(signal.SIGINT)
        assert training.exit_code(timeout_s=60) == 130, training.output()
        training.assert_no_process_left()
    assert_accounted(run_dir)
    assert_checkpoint_loads(run_dir, steps_of(run_dir)[-1])


@pytest.mark.long
def test_workers_come_and_go_as_asked_and_the_number_outlives_the_run(config, run_dir):
    with Training(config, run_dir, *ENDLESS, *QUICK) as training:
        training.wait_for_steps(2)
        assert status_of(run_dir).phase == "training"
        write_desired(run_dir, Desired(rollout=3, verifier=2, encoder=2))
        wait_for(training, lambda: len(serving(run_dir)) == 3, what="three workers to serve")
        wait_for(training, lambda: status_of(run_dir).desired == {"rollout": 3, "verifier": 2, "encoder": 2}, what="the desired numbers")
        wait_for(training, lambda: len(training.all_named("ray::HiddenStateEncoder")) == 2, what="a second encoder")
        wait_for_more_steps(training)
        joined = serving(run_dir)
        os.kill(training.all_named("ray::RolloutWorker")[0].pid, signal.SIGKILL)
        write_desired(run_dir, Desired(rollout=2, verifier=1, encoder=1))
        wait_for(training, lambda: len(serving(run_dir)) == 2 and faults_of(run_dir)["rollout"] == 1, what="two workers to be left")
        wait_for(training, lambda: len(training.all_named("ray::HiddenStateEncoder")) == 1, what="one encoder to be left")
        wait_for_more_steps(training)
        write_desired(run_dir, Desired(rollout=2, stop=True))
        assert training.exit_code(timeout_s=60) == 0, training.output()
        training.assert_no_process_left()
    assert len(joined) == 3
    assert status_of(run_dir).phase == "stopped"
    assert_accounted(run_dir)
    stopped_at = checkpoints(run_dir).latest()
    assert stopped_at == steps_of(run_dir)[-1]
    with Training(config, run_dir, "--set", f"steps={stopped_at + 3}", *QUICK) as training:
        assert training.exit_code() == 0, training.output()
        training.assert_no_process_left()
    assert json.loads((run_dir / "desired.json").read_text())["stop"] is False
    assert status_of(run_dir).phase == "finished"
    assert status_of(run_dir).desired["rollout"] == 2
    assert_accounted(run_dir)


# ---- nodes ----


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Cluster]:
    """A head with room for everything but a rollout worker, in a short temporary directory."""
    directory = tempfile.mkdtemp(prefix="rxn-", dir="/tmp")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", directory)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=len(ROLES) - 1, object_store_memory=200 * 2**20, include_dashboard=False)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def add_node(cluster: Cluster):
    """One with what Ray takes for a GPU, so that a rollout worker that asks for one goes there, and nobody else."""
    return cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 * 2**20, include_dashboard=False)


@pytest.mark.long
def test_a_worker_leaves_a_node_that_goes_and_survives_one_that_dies(config, run_dir, cluster):
    """First a notice: the worker drains, its place is taken on another node. Then that node dies with the worker on
    it."""
    first = add_node(cluster)
    elsewhere = ("--set", "rollout.num_gpus=1")
    with Training(config, run_dir, *ENDLESS, *QUICK, *elsewhere, environment={"RAY_ADDRESS": cluster.address}) as training:
        training.wait_for_steps(2)
        second = add_node(cluster)
        deadline_ms = int((time.time() + 60) * 1000)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        is_accepted, why_not = ray._raylet.GcsClient(address=cluster.address).drain_node(first.node_id, reason, "a test", deadline_ms)
        assert is_accepted, why_not
        wait_for(training, lambda: serving(run_dir) == ["rollout-1"], what="the worker to leave for the other node")
        assert "rollout-0" not in faults_names(run_dir), "it was let go, not lost"
        wait_for_more_steps(training)
        cluster.remove_node(second, allow_graceful=False)
        wait_for(training, lambda: faults_of(run_dir)["rollout"] >= 1, what="the dead node to be noticed")
        add_node(cluster)
        wait_for(training, lambda: serving(run_dir) not in ([], ["rollout-1"]), what="a worker on the third node")
        wait_for_more_steps(training)
        os.kill(training.process.pid, signal.SIGINT)
        assert training.exit_code(timeout_s=60) == 130, training.output()
    assert_accounted(run_dir)
    assert_checkpoint_loads(run_dir, steps_of(run_dir)[-1])


def faults_names(run_dir: Path) -> set[str]:
    return {event.fields["name"] for event in read_events(run_dir / "events.jsonl") if event.kind is EventKind.FAULT}
