from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from jobs import list as command
from jobs.cluster.remote import Cluster, job_of
from jobs.cluster.runs import run_places
from tests.jobs.runs_fixture import NOW, FakeClient, add_run, run_directory, running


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_runs_of_this_machine_with_their_phase_or_that_they_are_gone(tmp_path):
    alive = run_directory(tmp_path / "runs", "alive", updated=NOW - 1)
    gone = run_directory(tmp_path / "runs", "gone", updated=NOW - 600)
    done = run_directory(tmp_path / "home/repexp-runs", "done", phase="finished", step=40, updated=NOW - 9000)
    with running(alive):
        rows = command.local_rows([alive, done, gone], NOW)
    assert [(row["run"], row["phase"], row["step"], row["last word"]) for row in rows] == [
        ("alive", "training", "12/40", "1 s ago"),
        ("done", "finished", "40/40", "2.5 h ago"),
        ("gone", "gone", "12/40", "10 min ago"),
    ]


def test_both_places_are_looked_into_and_other_directories_are_not_runs(tmp_path, capsys):
    run_directory(tmp_path / "runs", "near")
    run_directory(tmp_path / "home/repexp-runs", "kept")
    (tmp_path / "runs/explored").mkdir()
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert "near" in out and "kept" in out and "explored" not in out


def test_without_runs_it_says_so(capsys):
    assert command.main([]) == 0
    assert capsys.readouterr().out == "no runs in ./runs or ~/repexp-runs\n"


def test_of_a_cluster_each_run_is_listed_once_by_its_newest_job():
    client = FakeClient()
    add_run(client, "b-1", "b", "STOPPED", end_time=5000)
    add_run(client, "a-1", "a", "SUCCEEDED", end_time=62_000)
    add_run(client, "b-2", "b", "RUNNING")
    rows = command.remote_rows(Cluster(client, "http://head:8265").jobs(), 123.0)
    assert [(row["run"], row["job"], row["state"], row["duration"]) for row in rows] == [
        ("a", "a-1", "succeeded", "60 s"),
        ("b", "b-2", "running", "2 min"),
    ]


def test_helpers_and_jobs_of_others_are_not_listed():
    client = FakeClient()
    add_run(client, "a-helper-1", "a", "RUNNING", metadata={"kind": "helper"})
    add_run(client, "other", "a", "RUNNING", metadata={"app": "another"})
    without = add_run(client, "plain", "a", "RUNNING")
    without.metadata = None
    assert [job_of(details) for details in client.list_jobs()] == [None] * 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_home_that_this_user_may_not_enter_holds_no_runs(tmp_path):
    run_directory(tmp_path / "home/repexp-runs", "kept")
    (tmp_path / "home").chmod(0o700)
    assert [str(place) for place in run_places()] == ["runs", str(tmp_path / "home/repexp-runs")]
    assert as_nobody(lambda: [str(place) for place in run_places()] == ["runs"])


def as_nobody(holds: Callable[[], bool]) -> bool:
    """Return what `holds` returns in a child process of the user nobody."""
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        os._exit(0 if holds() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
