from __future__ import annotations

import pytest

from jobs import scale as command
from jobs.directory.job_dir import LOCK
from jobs.directory.run_state import DESIRED, Desired, read_desired, write_desired
from tests.jobs.runs_fixture import FakeClient, add_run, run_directory, running


@pytest.fixture
def directory(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return run_directory(tmp_path / "runs")


def refusal(capsys, *arguments: str) -> str:
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_live_run_is_asked_for_other_numbers(directory, capsys):
    with running(directory):
        assert command.main(["mine", "--rollout", "8", "--encoder", "2"]) == 0
    assert read_desired(directory) == Desired(rollout=8, encoder=2, serial=1)
    assert capsys.readouterr().out == "mine: asked for rollout 2 -> 8, encoder 1 -> 2\n"


def test_roles_that_are_not_named_stay_as_they_were_asked_for(directory):
    write_desired(directory, Desired(rollout=4, verifier=3))
    with running(directory):
        assert command.main(["mine", "--rollout", "2"]) == 0
    assert read_desired(directory) == Desired(rollout=2, verifier=3, serial=1)


def test_a_run_that_has_ended_cannot_be_scaled(directory, capsys):
    assert "is not running, its last word was 'training' at step 12" in refusal(capsys, "mine", "--rollout", "2")
    assert not (directory / DESIRED).exists()


def test_a_run_whose_process_has_not_spoken_yet_is_asked_later(directory, capsys):
    """The status is that of an earlier process, and the new one takes back what it finds asked."""
    (directory / LOCK).write_text("1")
    with running(directory):
        assert "only just starting" in refusal(capsys, "mine", "--rollout", "2")
    assert not (directory / DESIRED).exists()


def test_a_run_at_its_end_is_not_asked(tmp_path, directory, capsys):
    ending = run_directory(tmp_path / "runs", "ending", phase="finished")
    with running(ending):
        assert "is at its end (finished)" in refusal(capsys, "ending", "--rollout", "2")


def test_encoders_of_a_run_without_any_cannot_be_scaled(tmp_path, directory, capsys):
    without = run_directory(tmp_path / "runs", "without", desired={"rollout": 1, "encoder": 0})
    with running(without):
        assert "has no encoders" in refusal(capsys, "without", "--encoder", "2")


def test_desires_that_are_damaged_are_not_written_over(directory, capsys):
    (directory / DESIRED).write_text("{")
    with running(directory):
        assert "is damaged" in refusal(capsys, "mine", "--rollout", "2")


@pytest.mark.parametrize(("arguments", "why"), [([], "nothing is asked for"), (["--rollout", "0"], "--rollout 0: at least 1")])
def test_numbers_that_make_no_sense_are_refused(directory, capsys, arguments, why):
    assert why in refusal(capsys, "mine", *arguments)


def test_on_a_cluster_the_head_is_asked_with_the_code_of_the_run(monkeypatch, capsys):
    client = FakeClient(answers={"jobs.scale": ("mine: asked for rollout 1 -> 2\n", 0)})
    add_run(client, "mine-1", "mine", "RUNNING")
    connected(monkeypatch, client)
    assert command.main(["mine", "--rollout", "2", "--address", "http://head:8265"]) == 0
    assert capsys.readouterr().out == "mine: asked for rollout 1 -> 2\n"
    (helper,) = client.helpers
    assert helper.entrypoint == 'exec env -u RAY_API_SERVER_ADDRESS python -m jobs.scale "$HOME"/repexp-runs/mine --rollout 2'
    assert helper.runtime_env == {"working_dir": "gcs://_ray_pkg_1.zip"}


def test_a_refusal_on_the_head_is_the_refusal_here(monkeypatch, capsys):
    client = FakeClient(answers={"jobs.scale": ("error: mine is only just starting\n", 2)})
    add_run(client, "mine-1", "mine", "RUNNING")
    connected(monkeypatch, client)
    assert refusal(capsys, "mine", "--rollout", "2", "--address", "http://head:8265") == "error: mine is only just starting"


def test_a_job_that_has_ended_cannot_be_scaled(monkeypatch, capsys):
    client = FakeClient()
    add_run(client, "mine-1", "mine", "FAILED")
    connected(monkeypatch, client)
    assert "its last job mine-1 has ended (failed)" in refusal(capsys, "mine", "--rollout", "2", "--address", "http://head:8265")
    assert not client.helpers


def connected(monkeypatch, client: FakeClient) -> None:
    from jobs.cluster.remote import Cluster

    monkeypatch.setattr(command, "connect", lambda address: Cluster(client, address))
