"""Training on a cluster from outside of it: a real head with token authentication, real jobs, the tiny model and the
reference engine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.processes import MARK, REPOSITORY, is_alive, metrics_of, psutil_or_none, steps_of, tiny_settings, wait_until
from tests.jobs.comparison_fixture import write_comparison

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ENDLESS = ("--set", "steps=100000", "--set", "checkpoint.every=2")


class Head:
    """`ray start --head` in a directory, with a home and a token of its own; ends with every process that came of
    it."""

    def __init__(self, directory: Path, *, agent_port: int = 0) -> None:
        self._directory = directory
        self._mark = uuid.uuid4().hex
        self._seen: dict[int, psutil.Process] = {}
        self.home = directory / "home"
        self.home.mkdir()
        self.token = directory / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        port, client_port, dashboard_port = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard_port}"
        self._output = (directory / "head.txt").open("w+")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=8", "--disable-usage-stats"),
                *(f"--port={port}", f"--ray-client-server-port={client_port}", "--min-worker-port=0", "--max-worker-port=0"),
                *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"),
                *(
                    f"--dashboard-agent-listen-port={agent_port}",
                    "--dashboard-agent-grpc-port=0",
                    "--metrics-export-port=0",
                    "--runtime-env-agent-port=0",
                ),
                *(f"--temp-dir={directory / 'ray'}", f"--object-store-memory={256 << 20}"),
            ],
            env=self.environment() | {"HOME": str(self.home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def environment(self) -> dict[str, str]:
        """Of somebody who has the token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "OMP_NUM_THREADS": "1", MARK: self._mark}

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.processes()
            assert self._process.poll() is None, Path(self._output.name).read_text()[-3000:]
            return self.command("list", timeout_s=60).returncode == 0

        wait_until(ready, timeout_s=120, what="the job server")

    def command(self, name: str, *arguments: str, timeout_s: float = 150, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python -m jobs.NAME ARGUMENTS --address HERE`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", f"jobs.{name}", *arguments, "--address", self.address],
            cwd=REPOSITORY,
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )

    def done(self, name: str, *arguments: str, timeout_s: float = 150) -> str:
        """The output of a command that must succeed."""
        done = self.command(name, *arguments, timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        return done.stdout

    def refused(self, name: str, *arguments: str, **environment: str) -> str:
        """The one line of a command that must be refused."""
        done = self.command(name, *arguments, **environment)
        assert done.returncode == 2, done.stdout[-3000:] + done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    def status(self, run: str) -> dict:
        return json.loads(self.done("status", run, "--json"))

    def run_dir(self, run: str) -> Path:
        return self.home / "repexp-runs" / run

    def processes(self) -> list[psutil.Process]:
        """Told by descent, by the mark in their environment, or by the directory in their arguments (a title may hide
        the mark)."""
        head = psutil_or_none(self._process.pid)
        found = [head, *head.children(recursive=True)] if head is not None and self._process.poll() is None else []
        for process in [*found, *filter(self._is_ours, psutil.process_iter())]:
            self._seen.setdefault(process.pid, process)
        return [process for process in self._seen.values() if is_alive(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark or any(str(self._directory) in argument for argument in process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def end(self) -> None:
        def none_left() -> bool:
            left = self.processes()
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            return not left

        wait_until(none_left, timeout_s=30, what="the processes of the head to end")
        self._process.wait(30)
        self._output.close()


def free_ports(num: int) -> list[int]:
    """Bound all at once, so that they differ."""
    sockets = [socket.socket() for _ in range(num)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def started(*, agent_port: int = 0) -> Iterator[Head]:
    """Start a head in a directory with a short name, for Ray's sockets."""
    directory = Path(tempfile.mkdtemp(prefix="rxj-", dir="/tmp"))
    head = Head(directory, agent_port=agent_port)
    try:
        head.wait_ready()
        yield head
    finally:
        head.end()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started() as head:
        yield head


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(f'run_dir = "runs/tiny"\n{tiny_settings(tiny_model)}')
    return str(file)


def test_who_has_no_token_or_names_no_run_is_told_so_in_one_line(head, config):
    assert "refuses the token" in head.refused("list", RAY_AUTH_TOKEN="0" * 64)
    assert "asks for a token: set RAY_AUTH_MODE=token" in head.refused("submit", config, RAY_AUTH_MODE="disabled")
    assert "no token can be read" in head.refused("status", "tiny", RAY_AUTH_TOKEN_PATH="/nowhere/token")
    for command in (("status", "nobody"), ("scale", "nobody", "--rollout", "2"), ("stop", "nobody"), ("follow", "nobody")):
        assert "no run 'nobody' on the cluster" in head.refused(*command)


def test_a_head_whose_agent_s_port_is_taken_is_told_how_to_choose_another(config):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with started(agent_port=taken.getsockname()[1]) as head:
            line = head.refused("submit", config)
    assert "has no dashboard agent" in line and "--dashboard-agent-listen-port=PORT" in line


def test_a_run_is_submitted_watched_resized_stopped_and_resumed(head, config):
    submitted = head.done("submit", config, *ENDLESS)
    assert "submitted  tiny-1: run tiny, kept in ~/repexp-runs/tiny on the head" in submitted
    assert "run tiny is" in (refusal := head.refused("submit", config, *ENDLESS)) and "as job tiny-1" in refusal
    run_dir = head.run_dir("tiny")
    wait_until(lambda: len(steps_of(run_dir)) >= 3, timeout_s=150, what="three steps")

    status = head.status("tiny")
    assert status["alive"] and status["phase"] == "training" and status["step"] >= 3
    screen = head.done("status", "tiny")
    assert "rollout-0" in screen and "tiny-1 running" in screen
    (row,) = [line for line in head.done("list").splitlines() if "tiny" in line]
    assert row.split()[:3] == ["tiny", "tiny-1", "running"]

    for wanted in (2, 1):
        assert f"-> {wanted}" in head.done("scale", "tiny", "--rollout", str(wanted))
        wait_until(lambda wanted=wanted: serving(run_dir) == wanted, timeout_s=90, what=f"{wanted} rollout workers")

    head.done("stop", "tiny", "--wait")
    last = steps_of(run_dir)[-1]
    ended = head.status("tiny")
    assert not ended["alive"] and ended["phase"] == "stopped" and ended["step"] == ended["last_checkpoint"] == last
    assert "its last job tiny-1 has ended" in head.refused("scale", "tiny", "--rollout", "2")
    kept = metrics_of(run_dir)

    again = head.done("submit", config, "--set", f"steps={last + 2}", "--set", "checkpoint.every=2", "--follow")
    assert "submitted  tiny-2: resumes run tiny in ~/repexp-runs/tiny on the head" in again
    assert f"restoring the checkpoint of step {last}" in again
    assert again.splitlines()[-1] == "tiny-2: succeeded"
    assert metrics_of(run_dir)[:last] == kept
    assert steps_of(run_dir) == list(range(1, last + 3))
    assert [line.split()[:3] for line in head.done("list").splitlines() if "tiny" in line] == [["tiny", "tiny-2", "succeeded"]]


@pytest.mark.long
def test_a_run_that_is_stopped_while_it_starts_ends_too(head, config):
    head.done("submit", config, *ENDLESS, "--run", "early")
    head.done("stop", "early", "--wait")
    assert not head.status("early")["alive"]


@pytest.mark.long
def test_a_run_whose_driver_was_killed_is_said_to_be_gone(head, config):
    head.done("submit", config, *ENDLESS, "--run", "killed")
    file = head.run_dir("killed") / "status.json"
    wait_until(file.is_file, timeout_s=60, what="the first status")
    os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)
    assert head.command("follow", "killed").returncode == 1
    screen = head.done("status", "killed")
    assert "the process is gone" in screen and "killed-1 failed" in screen


@pytest.mark.long
def test_a_run_that_fails_shows_its_last_words_to_who_follows_it(head, config):
    failed = head.command("submit", config, "--run", "broken", "--set", "model=/nowhere/model", "--follow")
    assert failed.returncode == 1
    last = failed.stdout.splitlines()[-1]
    assert last.startswith("broken-1: failed (") and "/nowhere/model" in last


def serving(run_dir: Path) -> int:
    """Rollout workers that serve, by the run's own word."""
    workers = json.loads((run_dir / "status.json").read_text())["workers"]
    return sum(worker["role"] == "rollout" and worker["state"] == "serving" for worker in workers)


@pytest.mark.long
@pytest.mark.timeout(500)
def test_a_comparison_is_carried_out_as_jobs_side_by_side(head, tiny_model, tmp_path):
    file = write_comparison(tmp_path, tiny_model)
    settings = ("--set", "seeds=[0]", "--set", "steps=[1]", "--at-once", "2")
    said = head.done("compare", str(file), *settings, timeout_s=400)
    assert "repexp" in said and "pass@4" in said
    listed = [line.split()[:3] for line in head.done("list").splitlines() if "small-" in line]
    assert listed == [[f"small-{name}-0", f"small-{name}-0-1", "succeeded"] for name in ("grpo", "repexp")]
    record = json.loads((tmp_path / "small" / "report.json").read_text())
    assert list(record["statistics"]) == ["base", "grpo", "repexp"] and record["failures"] == {}
    head.done("compare", str(file), *settings)
    assert len([line for line in head.done("list").splitlines() if "small-" in line]) == 2
