from __future__ import annotations

import pytest

from jobs import stop as command
from jobs.cluster.remote import Cluster
from jobs.directory.run_state import DESIRED, Desired, read_desired, write_desired, write_status
from tests.jobs.runs_fixture import FakeClient, FakeState, add_run, run_directory, running, status, ticking


@pytest.fixture
def directory(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return run_directory(tmp_path / "runs")


def test_a_live_run_is_asked_to_stop_and_keeps_its_other_desires(directory, capsys):
    write_desired(directory, Desired(rollout=3))
    with running(directory):
        assert command.main(["mine"]) == 0
    assert read_desired(directory) == Desired(rollout=3, stop=True)
    assert "asked to stop" in capsys.readouterr().out


def test_a_run_that_has_ended_cannot_be_stopped(directory, capsys):
    assert command.main(["mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not running" in line and "there is nothing to stop" in line
    assert not (directory / DESIRED).exists()


@pytest.mark.parametrize(
    ("phase", "code", "words"),
    [
        ("stopped", 0, "mine: stopped at step 13"),
        ("finished", 0, "mine: finished"),
        ("failed", 1, "mine: failed"),
        ("training", 1, "without a word"),
    ],
)
def test_waiting_ends_with_the_process_and_tells_how_it_ended(directory, capsys, phase, code, words):
    ends = ends_after(directory, 3, phase)
    assert command.wait_ended(directory, ends) == code
    assert words in capsys.readouterr().out


def ends_after(directory, looks: int, phase: str):
    """A sleep during the last of which the run's process ends."""
    lock = running(directory)
    lock.__enter__()
    tick, left = ticking(), [looks]

    def sleep(seconds: float) -> None:
        tick(seconds)
        left[0] -= 1
        if left[0] == 0:
            write_status(directory, status(step=13, phase=phase))
            lock.__exit__(None, None, None)

    return sleep


def test_on_a_cluster_the_run_is_asked_by_a_helper_on_the_head(capsys):
    client = FakeClient(answers={"jobs.stop": ("mine: asked to stop\n", 0)})
    add_run(client, "mine-1", "mine", "RUNNING")
    assert command.stop_on(Cluster(client, "http://head:8265"), "mine", wait=False) == 0
    assert capsys.readouterr().out == "mine: asked to stop\n"
    assert client.stopped == []


def test_a_run_that_does_not_listen_yet_is_stopped_through_ray(capsys):
    client = FakeClient(answers={"jobs.stop": ("error: mine is only just starting\n", 2)})
    add_run(client, "mine-1", "mine", "RUNNING")
    assert command.stop_on(Cluster(client, "http://head:8265"), "mine", wait=True) == 0
    out = capsys.readouterr().out
    assert "SIGTERM (mine is only just starting)" in out and "mine-1: stopped" in out
    assert client.stopped == ["mine-1"]


def test_a_pending_job_is_stopped_through_ray_without_asking_it():
    client = FakeClient()
    add_run(client, "mine-1", "mine", "PENDING")
    assert command.stop_on(Cluster(client, "http://head:8265"), "mine", wait=False) == 0
    assert client.stopped == ["mine-1"] and not client.helpers


def test_waiting_for_a_job_that_fails_instead_is_no_success(capsys):
    client = FakeClient(answers={"jobs.stop": ("mine: asked to stop\n", 0)})
    details = add_run(client, "mine-1", "mine", "RUNNING", message="exit code 1, last available logs:\nstep 3\nerror: disk full")
    tick = ticking()

    def sleep(seconds: float) -> None:
        tick(seconds)
        details.status = FakeState("FAILED")

    assert command.stop_on(Cluster(client, "http://head:8265", sleep=sleep), "mine", wait=True) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "mine-1: failed (exit code 1: error: disk full)"
