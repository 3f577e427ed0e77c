"""The tracker "wandb": refused in one line where it cannot work; offline, a whole run is on disk and nothing is left
behind. W&B's own reader (`wandb leet inspect`) reads what was written."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from buffers.extensions import ExtensionError
from jobs.config import RunConfig
from jobs.directory.trackers import RunInfo, Trackers, load_trackers
from jobs.train import main

ROOT = Path(__file__).parents[3]
SERVICE = "wandb-core"
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the package wandb: make wandb")
CONFIG = RunConfig(steps=7, model="my/model", trackers=("wandb",))

RUN = """
import signal, sys
from pathlib import Path
looked_for = []
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and looked_for.append(args))
from jobs.config import RunConfig
from jobs.directory.trackers import RunInfo, Trackers, load_trackers
trackers = Trackers(load_trackers(["wandb"], {"wandb": {"mode": "offline"}}), RunInfo.of(Path(sys.argv[1]), RunConfig()), warn=print)
trackers.write(1, {"reward/mean": 0.5})
print("started", flush=True)
"""
KILLED = RUN + "signal.pause()"
CLOSED = RUN + "trackers.close(); print([where for where in looked_for if '127.0.0.1' not in str(where) and '/' not in str(where[1])])"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that knows no account of W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def commit_of_the_code() -> str | None:
    """None where this is no clone."""
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None


def started(run_dir: Path, *, resume_step: int = 0, warn: Any = pytest.fail, **options: Any) -> Trackers:
    made = load_trackers(["wandb"], {"wandb": {"mode": "offline", **options}})
    return Trackers(made, RunInfo.of(run_dir, CONFIG, resume_step=resume_step), warn=warn)


def records(file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def history(found: list[dict[str, Any]]) -> list[dict[str, float]]:
    rows = [row["item"] for row in of_type(found, "history")]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def services(of: psutil.Process) -> list[psutil.Process]:
    return [child for child in of.children(recursive=True) if child.name() == SERVICE]


def test_without_the_package_the_command_refuses_with_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python itself sets for a package that must not be found
    assert main([str(ROOT / "configs/quickstart.toml"), "--set", 'trackers=["wandb"]', "--set", f"run_dir={tmp_path}/run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f'error: trackers has "wandb", and the package is not installed: {sys.executable} -m pip install wandb'
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "ofline"}, 'wandb.mode = \'ofline\' must be "online" or "offline"'),
        ({"project": 3}, "wandb.project = 3 must be text"),
        ({"tags": "one"}, "wandb.tags = 'one' must be a list"),
        ({"projct": "mine"}, "projct"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_line(options, why):
    with pytest.raises(ExtensionError, match=why) as refusal:
        load_trackers(["wandb"], {"wandb": options})
    assert "\n" not in str(refusal.value)


@needs_wandb
def test_online_without_an_account_is_refused_before_anything_starts():
    with pytest.raises(ExtensionError, match=r"no credentials of W&B are here: run `wandb login`, set WANDB_API_KEY, or"):
        load_trackers(["wandb"])
    assert not services(psutil.Process())


@needs_wandb
def test_offline_the_run_is_on_disk_with_every_metric_its_configuration_and_the_commit_and_a_resume_has_its_id(tmp_path):
    run_dir = tmp_path / "run"
    for resume_step, steps in ((0, (1, 2)), (2, (3,))):
        trackers = started(run_dir, resume_step=resume_step, project="mine", group="seeds", tags=["a", "b"])
        for step in steps:
            trackers.write(step, {"reward/mean": step / 10, "mismatch/mean": 0.5})
        trackers.write(steps[0], {"eval/pass@1": 0.25})  # of an earlier step, as evaluations are
        trackers.close()
    first, second = (records(file) for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")))
    (run,), (resumed,) = of_type(first, "run"), of_type(second, "run")
    assert (run["project"], run["run_group"], run["tags"], run["display_name"]) == ("mine", "seeds", ["a", "b"], "run")
    assert run["run_id"] == resumed["run_id"]
    config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
    assert config == CONFIG.model_dump(mode="json")
    assert run.get("git", {}).get("commit") == commit_of_the_code()
    both = {"mismatch/mean": 0.5}
    assert history(first) == [
        {"step": 1, "reward/mean": 0.1, **both},
        {"step": 2, "reward/mean": 0.2, **both},
        {"step": 1, "eval/pass@1": 0.25},
    ]
    assert history(second) == [{"step": 3, "reward/mean": 0.3, **both}, {"step": 3, "eval/pass@1": 0.25}]
    assert of_type(first, "metric")[0]["step_metric"] == "step"
    assert [record["exit_code"] for record in of_type(first, "exit") + of_type(second, "exit")] == [0, 0]
    assert not services(psutil.Process())


@needs_wandb
def test_a_run_that_fails_counts_as_failed_and_leaves_no_process(tmp_path):
    trackers = started(tmp_path / "run")
    with pytest.raises(RuntimeError, match="mine"), closing(trackers):
        trackers.write(1, {"reward/mean": 0.5})
        raise RuntimeError("mine")
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    found = records(file)
    assert history(found) == [{"step": 1, "reward/mean": 0.5}]
    assert [record["exit_code"] for record in of_type(found, "exit")] == [1]
    assert not services(psutil.Process())


@needs_wandb
def test_a_fresh_start_in_the_same_directory_is_another_run(tmp_path):
    for _ in range(2):
        started(tmp_path / "run").close()
    ids = {file.stem for file in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")}
    assert len(ids) == 2


@needs_wandb
def test_a_start_that_fails_is_told_and_leaves_no_process(tmp_path):
    warnings: list[str] = []
    trackers = started(tmp_path / "run", warn=warnings.append, project="no/slash")
    trackers.write(1, {"reward/mean": 0.5})
    trackers.close()
    (warning,) = warnings
    assert "tracker wandb failed and gets no more metrics" in warning
    assert not services(psutil.Process())


@needs_wandb
def test_a_run_goes_on_and_ends_when_the_process_of_wandb_is_killed(tmp_path):
    warnings: list[str] = []
    trackers = started(tmp_path / "run", warn=warnings.append)
    (service,) = services(psutil.Process())
    service.send_signal(signal.SIGKILL)
    service.wait(30)
    for step in (1, 2, 3):
        trackers.write(step, {"reward/mean": 0.5})
    trackers.close()
    assert len(warnings) == 1, "told once"
    assert not services(psutil.Process())


@needs_wandb
def test_offline_no_host_is_looked_for(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CLOSED, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["started", "[]"], done.stderr


@needs_wandb
def test_the_process_of_wandb_ends_with_a_run_that_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any(line == "started\n" for line in run.stdout)
        (service,) = services(psutil.Process(run.pid))
        run.kill()
    service.wait(30)
