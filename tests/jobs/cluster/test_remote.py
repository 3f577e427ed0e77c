from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp
import pytest
from ray.exceptions import AuthenticationError
from requests.exceptions import ConnectTimeout, ReadTimeout

from jobs import follow as follow_command
from jobs.cluster import remote
from jobs.cluster.remote import Cluster, address_of, connect, one_line, shell_path
from jobs.configuration.user_error import UserError
from jobs.status import look_on
from tests.jobs.runs_fixture import FakeClient, FakeState, add_run, status, ticking

ADDRESS = "http://head:8265"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def cluster(client: FakeClient, **options) -> Cluster:
    return Cluster(client, ADDRESS, **{"sleep": ticking(), **options})


@pytest.mark.parametrize(
    ("option", "variables", "address"),
    [
        (None, {}, None),
        ("http://head:8265/", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "http://head:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://head:8265", "RAY_ADDRESS": "http://other:1"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "https://head"}, "https://head"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, None),
    ],
)
def test_the_address_given_wins_over_the_environment(monkeypatch, option, variables, address):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert address_of(option) == address


def test_an_address_that_is_not_of_a_job_server_is_refused_before_anything_waits_for_it():
    with pytest.raises(UserError, match=r"head:6379 is not that of a job server: write it as http://HEAD:8265"):
        address_of("head:6379")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Failed to connect to Ray at address: http://head:8265."), "no cluster answers at http://head:8265:"),
        (ConnectTimeout("timed out"), "no cluster answers at http://head:8265 in time"),
        (ReadTimeout("Read timed out."), "in time"),
        (RuntimeError("Version check returned 404. Jobs API is not supported"), "is not the job server of a Ray cluster"),
        (
            AuthenticationError("Authentication required: Unauthorized: Missing authentication token\n\nToken"),
            "asks for a token: set RAY_AUTH_MODE",
        ),
        (AuthenticationError("Authentication failed: Forbidden: Invalid authentication token\n\nToken"), "refuses the token"),
        (AuthenticationError("RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: /x. Ensure"), "or is empty: /x)"),
    ],
)
def test_what_keeps_a_client_from_connecting_is_one_line(monkeypatch, error, words):
    def client(address: str):
        raise error

    monkeypatch.setattr(remote, "_client", client)
    with pytest.raises(UserError) as refused:
        connect(ADDRESS)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_traceback_from_the_job_server_is_cut_to_its_last_line():
    client = FakeClient()
    add_run(client, "mine-1", "mine", "RUNNING")
    with pytest.raises(UserError) as refused:
        cluster(client).submit(job_id="mine-1", entrypoint="true", runtime_env={}, metadata={"kind": "train"})
    assert str(refused.value).endswith(
        "refused: ValueError: Job with submission_id mine-1 already exists. Please use a different submission_id."
    )


def test_a_head_that_has_just_started_is_given_time_to_start_its_agent():
    client = FakeClient(without_agent=2)
    cluster(client).submit(job_id="mine-1", entrypoint="true", runtime_env={}, metadata={"kind": "train"})
    assert list(client.jobs) == ["mine-1"]


def test_a_head_whose_agent_does_not_start_is_told_which_port_is_taken_and_how_to_choose_another():
    client = FakeClient(without_agent=1000)
    times = iter(range(0, 10_000, 10))
    with pytest.raises(UserError, match=r"52365 .* is probably taken .* --dashboard-agent-listen-port=PORT") as refused:
        cluster(client, clock=lambda: float(next(times))).submit(
            job_id="mine-1", entrypoint="true", runtime_env={}, metadata={"kind": "train"}
        )
    assert "\n" not in str(refused.value)
    assert 1000 - client.without_agent == 3, "how often it was tried in 30 s"


def test_a_run_is_its_newest_job_and_an_unknown_one_is_refused_with_the_nearest_names():
    client = FakeClient()
    add_run(client, "mine-1", "mine", "FAILED")
    add_run(client, "mine-2", "mine", "SUCCEEDED")
    add_run(client, "other-1", "other", "RUNNING")
    assert cluster(client).newest("mine").id == "mine-2"
    with pytest.raises(UserError, match=r"no run 'mien' on the cluster at http://head:8265 \(there are: mine\)"):
        cluster(client).newest("mien")


def test_the_status_of_an_ended_run_is_still_read_and_needs_no_package():
    client = FakeClient(answers={"status.json": (status(phase="stopped").model_dump_json(indent=1), 0)})
    add_run(client, "mine-1", "mine", "FAILED", message="the driver was killed")
    look = look_on(cluster(client), "mine")
    assert look.status == status(phase="stopped") and not look.is_alive
    assert "mine-1 failed" in look.job and "the driver was killed" in look.job
    (helper,) = client.helpers
    assert helper.entrypoint == 'cat "$HOME"/repexp-runs/mine/status.json'
    assert helper.runtime_env == {}


def test_a_run_that_has_written_nothing_has_no_status():
    client = FakeClient(answers={"status.json": ("cat: No such file or directory\n", 1)})
    add_run(client, "mine-1", "mine", "RUNNING")
    look = look_on(cluster(client), "mine")
    assert look.status is None and look.is_alive


def test_the_last_word_of_the_job_before_is_not_that_of_a_job_which_resumes_it():
    client = FakeClient(answers={"status.json": (status(phase="failed").model_dump_json(indent=1), 0)})
    details = add_run(client, "mine-2", "mine", "RUNNING")
    details.start_time = int(1000 * (status().started + 60))
    look = look_on(cluster(client), "mine")
    assert look.status is None and look.is_alive
    details.start_time = int(1000 * (status().started - 1))
    assert look_on(cluster(client), "mine").status is not None


def test_helpers_are_marked_and_leave_nothing_behind():
    client = FakeClient(answers={"status.json": ("", 0)})
    add_run(client, "mine-1", "mine", "RUNNING")
    cluster(client).read_status(cluster(client).newest("mine"))
    (helper,) = client.helpers
    assert helper.metadata == {"app": "repexp", "kind": "helper", "run": "mine"}
    assert client.deleted == [helper.submission_id] and list(client.jobs) == ["mine-1"]


def test_a_helper_that_the_cluster_does_not_run_is_given_up_at_a_deadline():
    client = FakeClient(stays_pending=True)
    add_run(client, "mine-1", "mine", "RUNNING")
    times = iter(range(0, 10_000, 20))
    with pytest.raises(UserError, match=r"did not run a helper job within 90 s \(it is pending\)"):
        cluster(client, clock=lambda: float(next(times))).read_status(cluster(client).newest("mine"))
    assert client.stopped == [client.helpers[0].submission_id]


def test_a_log_is_followed_over_lost_connections_without_gaps_or_repeats():
    client = FakeClient(
        logs=[
            ["step 1\n", "step 2\n", RuntimeError("closed unexpectedly")],
            [OSError("no route")],
            ["step 1\nste", "p 2\nstep 3\n"],
            ["step 1\nstep 2\nstep 3\n"],
        ]
    )
    details = add_run(client, "mine-1", "mine", "RUNNING")
    texts = []
    for text in cluster(client).follow("mine-1"):
        texts.append(text)
        if "step 3" in text:
            details.status = FakeState("SUCCEEDED")
    assert "".join(texts) == "step 1\nstep 2\nstep 3\n"
    assert len(client.logs) == 1


def test_a_log_of_a_job_that_is_not_placed_yet_is_waited_for():
    """Ray ends the stream of a job that has no driver yet."""
    client = FakeClient(logs=[[], [], ["step 1\n"]])
    details = add_run(client, "mine-1", "mine", "PENDING")
    for text in cluster(client).follow("mine-1"):
        assert text == "step 1\n"
        details.status = FakeState("SUCCEEDED")
    assert not client.logs


def test_a_connection_that_stays_lost_ends_the_following():
    client = FakeClient(logs=[["step 1\n"], *[[OSError("no route")]] * 6])
    add_run(client, "mine-1", "mine", "RUNNING")
    with pytest.raises(UserError, match=r"cannot be followed any more: the connection .* was lost 6 times"):
        list(cluster(client).follow("mine-1"))


def test_a_head_that_is_gone_for_a_while_is_a_lost_connection(monkeypatch):
    client = FakeClient(logs=[["step 1\n", aiohttp.ServerDisconnectedError()], ["step 1\n"], ["step 1\nstep 2\n"]])
    details = add_run(client, "mine-1", "mine", "RUNNING")
    asked, follower = [], cluster(client)
    ask = client.get_job_info

    def gone_once(job_id: str) -> Any:
        asked.append(job_id)
        if len(asked) == 1:
            raise RuntimeError("Failed to connect to Ray at address: http://head:8265")
        if len(asked) == 2:
            details.status = FakeState("SUCCEEDED")
        return ask(job_id)

    monkeypatch.setattr(client, "get_job_info", gone_once)
    assert "".join(follower.follow("mine-1")) == "step 1\nstep 2\n"


def test_a_log_that_says_nothing_for_long_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.05)
    client = FakeClient(logs=[])
    details = add_run(client, "mine-1", "mine", "RUNNING")
    connections = []

    async def tail(job_id: str) -> Any:
        connections.append(job_id)
        yield "step 1\n"
        if len(connections) == 1:
            await asyncio.sleep(30)
        details.status = FakeState("SUCCEEDED")

    monkeypatch.setattr(client, "tail_job_logs", tail)
    assert list(cluster(client).follow("mine-1")) == ["step 1\n"] and len(connections) == 2


def test_ctrl_c_ends_the_following_at_once(monkeypatch):
    client = FakeClient(logs=[])
    add_run(client, "mine-1", "mine", "RUNNING")

    async def tail(job_id: str) -> Any:
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        await asyncio.sleep(30)
        yield "never"

    monkeypatch.setattr(client, "tail_job_logs", tail)
    with pytest.raises(KeyboardInterrupt):
        list(cluster(client).follow("mine-1"))


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("STOPPED", 1), ("FAILED", 1)])
def test_following_ends_with_the_state_of_the_job(capsys, state, code):
    client = FakeClient(logs=[["step 1\n"]])
    add_run(client, "mine-1", "mine", state, message="exit code 1, last available logs:\nstep 1\nerror: disk full")
    assert follow_command.follow(cluster(client), "mine-1") == code
    said = " (exit code 1: error: disk full)" if state == "FAILED" else ""
    assert capsys.readouterr().out == f"step 1\nmine-1: {state.lower()}{said}\n"


def test_paths_with_the_homes_of_the_head_and_with_spaces_are_words_of_a_shell():
    assert shell_path("~/repexp-runs", "mine", "status.json") == '"$HOME"/repexp-runs/mine/status.json'
    assert shell_path("/mnt/big disk", "mine") == "'/mnt/big disk/mine'"


def test_messages_of_ray_are_one_line():
    assert one_line("") == ""
    assert one_line("Job has not started yet.") == "Job has not started yet."
    assert one_line("failed with exit code 2, last available logs (truncated):\na\nerror: b\n\n") == "failed with exit code 2: error: b"
