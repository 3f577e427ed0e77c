"""Commands as processes: what they say when they fail, what a signal does, and what an earlier start left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import Experiment, resolve
from jobs.comparison.local import LocalExecutor, reason_in
from jobs.comparison.units import Command
from jobs.configuration.files import load
from jobs.directory.job_dir import LOCK
from tests.jobs.comparison_fixture import write_comparison
from tests.jobs.runs_fixture import running

HOLDS_A_LOCK = """
import fcntl, sys, time
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""
STOPS_GRACEFULLY = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint('ready', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: str) -> Experiment:
    file = write_comparison(tmp_path, tiny_model)
    found = resolve(load(CompareConfig, str(file)), source=file.name)
    found.out.mkdir()
    found.write_files()
    return found


def command(experiment: Experiment, module: str, *arguments: str) -> Command:
    return Command(name="mine", title="mine", module=module, arguments=arguments, directory=experiment.out / "runs" / "mine")


def executor(experiment: Experiment) -> LocalExecutor:
    return LocalExecutor(experiment, say=lambda text: None)


def test_a_command_that_ends_well_has_no_reason_and_its_output_is_kept(experiment: Experiment) -> None:
    assert executor(experiment).execute(command(experiment, "jobs.train", "--keys", "steps")) is None
    assert "Training steps of the whole run" in experiment.log_file("mine").read_text()


def test_a_command_that_is_refused_says_why(experiment: Experiment) -> None:
    one = executor(experiment)
    assert one.execute(command(experiment, "jobs.train", "nowhere.toml")) == (
        f"config file nowhere.toml does not exist (there are: {', '.join(sorted(map(str, Path('configs').glob('*.toml'))))})"
    )
    assert one.execute(command(experiment, "jobs.train", "--keys", "nothing")).startswith("unknown key 'nothing'")  # type: ignore[union-attr]


def test_the_reason_is_the_last_error_or_the_last_line() -> None:
    assert reason_in("error: old\nstep 1\nerror: the run failed: no disk\nTraceback\n\n") == "the run failed: no disk"
    assert reason_in("step 1\nKilled\n\n") == "Killed"
    assert reason_in("\n") == "it says no reason"


def test_a_signal_reaches_the_command_and_it_ends_in_its_own_way(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    (experiment.out / "stopping.py").write_text(STOPS_GRACEFULLY)
    monkeypatch.setenv("PYTHONPATH", str(experiment.out))
    one = executor(experiment)
    work = threading.Thread(target=one.execute, args=(command(experiment, "stopping"),))
    work.start()
    log = experiment.log_file("mine")
    while not log.is_file() or "ready" not in log.read_text():
        time.sleep(0.05)
    one.stop(signal.SIGTERM)
    work.join(timeout=20)
    assert not work.is_alive()
    assert one.execute(command(experiment, "stopping")) is None, "nothing is begun after a signal"
    assert log.read_text() == "ready\n"


def test_what_an_earlier_start_left_at_work_is_waited_for(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.comparison.local.POLL_S", 0.05)
    mine = command(experiment, "jobs.train", "nowhere.toml")
    mine.directory.mkdir()
    said: list[str] = []
    words = [sys.executable, "-c", HOLDS_A_LOCK, str(mine.directory / LOCK), "1.0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as left:
        assert left.stdout is not None and left.stdout.readline() == "locked\n"
        assert LocalExecutor(experiment, say=said.append).execute(mine) is None
        assert left.wait(10) == 0
    assert len(said) == 1 and "of an earlier start is at work on this" in said[0]
    assert not experiment.log_file("mine").exists()


def test_a_stopped_comparison_does_not_wait_for_it(experiment: Experiment) -> None:
    mine = command(experiment, "jobs.train", "nowhere.toml")
    mine.directory.mkdir()
    (mine.directory / LOCK).write_text("1")
    one = executor(experiment)
    with running(mine.directory):
        threading.Timer(0.2, one.stop, args=(signal.SIGINT,)).start()
        assert one.execute(mine) is None
