"""Commands as jobs of a cluster, of which only the job server's answers are made up."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cluster.package import Package
from jobs.cluster.remote import Cluster
from jobs.compare_config import CompareConfig
from jobs.comparison import on_cluster
from jobs.comparison.experiment import Experiment, resolve
from jobs.comparison.on_cluster import ClusterExecutor
from jobs.comparison.units import Command, units_of
from jobs.configuration.files import load
from tests.jobs.comparison_fixture import write_comparison
from tests.jobs.runs_fixture import FakeClient, FakeDetails, FakeState


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr(on_cluster, "POLL_S", 0.01)
    file = write_comparison(tmp_path, tiny_model)
    return resolve(load(CompareConfig, str(file)), source=file.name)


def executor(experiment: Experiment, client: FakeClient, say: Callable[[str], None] = lambda text: None) -> ClusterExecutor:
    package = Package(root=experiment.out.parent, sizes={})
    return ClusterExecutor(experiment, Cluster(client, "http://head:8265"), package, at_once=4, python="python", say=say)


def commands(experiment: Experiment) -> list[Command]:
    """The first command of every unit."""
    return [command for unit in units_of(experiment) if (command := unit.next_command()) is not None]


def end(client: FakeClient, job_id: str, state: str, message: str | None = None, *, after_s: float = 0.0) -> threading.Thread:
    """End a job as soon as it is there, but not before `after_s` seconds, from another thread."""

    def wait_and_end() -> None:
        time.sleep(after_s)
        while job_id not in client.jobs:
            time.sleep(0.005)
        client.jobs[job_id].message = message
        client.jobs[job_id].status = FakeState(state)

    thread = threading.Thread(target=wait_and_end)
    thread.start()
    return thread


def test_a_run_is_a_job_that_the_other_commands_know(experiment: Experiment) -> None:
    client, run = FakeClient(), commands(experiment)[1]
    ending = end(client, "small-grpo-0-1", "SUCCEEDED")
    assert executor(experiment, client).execute(run) is None
    ending.join()
    (details,) = client.jobs.values()
    assert details.entrypoint == f"exec python -m jobs.train {experiment.out}/configs/small-grpo-0.toml"
    assert details.metadata is not None
    assert (details.metadata["kind"], details.metadata["run"]) == ("train", "small-grpo-0")
    assert details.metadata["storage"] == str(experiment.out / "runs")


def test_an_evaluation_is_a_job_and_no_run(experiment: Experiment) -> None:
    client, base = FakeClient(), commands(experiment)[0]
    ending = end(client, "small-base-1", "SUCCEEDED")
    assert executor(experiment, client).execute(base) is None
    ending.join()
    assert client.jobs["small-base-1"].entrypoint.startswith("exec python -m jobs.evaluate ")
    assert Cluster(client, "x").jobs() == []
    assert [job.run for job in Cluster(client, "x").jobs("evaluate")] == ["small-base"]


def test_a_job_that_fails_says_why(experiment: Experiment) -> None:
    client, run = FakeClient(), commands(experiment)[1]
    ending = end(client, "small-grpo-0-1", "FAILED", "it failed, last available logs:\nerror: no disk")
    assert executor(experiment, client).execute(run) == "job small-grpo-0-1 failed (it failed: error: no disk)"
    ending.join()


@pytest.mark.parametrize(("failures", "given_up"), [(3, False), (1000, True)])
def test_a_poll_without_an_answer_is_made_again(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, failures: int, given_up: bool
) -> None:
    """The job goes on meanwhile, so nothing else may begin in its place."""
    monkeypatch.setattr(on_cluster, "UNANSWERED", 5)
    client, run, polls = FakeClient(), commands(experiment)[1], itertools.count()
    known = client.get_job_info

    def get_job_info(job_id: str) -> FakeDetails:
        number = next(polls)
        if 1 <= number <= failures:
            raise ConnectionError("the head is busy")
        if number > failures:
            client.jobs[job_id].status = FakeState("SUCCEEDED")
        return known(job_id)

    monkeypatch.setattr(client, "get_job_info", get_job_info)
    reason = executor(experiment, client).execute(run)
    assert (reason is not None and "no cluster answers" in reason) == given_up
    assert next(polls) == (6 if given_up else 5)


def test_a_job_of_an_earlier_start_is_waited_for_and_not_submitted_again(experiment: Experiment) -> None:
    client, run, said = FakeClient(), commands(experiment)[1], []
    first = executor(experiment, client)
    work = threading.Thread(target=first.execute, args=(run,))
    work.start()
    while not client.jobs:
        time.sleep(0.005)
    first.stop(2)
    work.join(10)
    assert not work.is_alive() and not client.stopped
    ending = end(client, "small-grpo-0-1", "SUCCEEDED", after_s=0.5)
    assert executor(experiment, client, said.append).execute(run) is None
    ending.join()
    assert len(client.jobs) == len(said) == 1
    assert "small-grpo-0-1 of an earlier start is at work on this" in said[0]


def test_a_job_of_another_comparison_of_that_name_is_told_apart(experiment: Experiment, tmp_path: Path, tiny_model: str) -> None:
    client, run = FakeClient(), commands(experiment)[1]
    (tmp_path / "other").mkdir()
    other_file = write_comparison(tmp_path / "other", tiny_model)
    other = resolve(load(CompareConfig, str(other_file)), source="x")
    theirs = executor(other, client)
    work = threading.Thread(target=theirs.execute, args=(commands(other)[1],))
    work.start()
    while not client.jobs:
        time.sleep(0.005)
    why = executor(experiment, client).execute(run)
    assert why is not None and "give this comparison another name by the last part of out" in why
    theirs.stop(2)
    work.join(10)


def test_a_cluster_that_refuses_is_a_reason(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    client, run = FakeClient(), commands(experiment)[1]

    def refuse(**options: object) -> None:
        raise RuntimeError("Request failed with status code 500: no room")

    monkeypatch.setattr(client, "submit_job", refuse)
    why = executor(experiment, client).execute(run)
    assert why is not None and "no room" in why
