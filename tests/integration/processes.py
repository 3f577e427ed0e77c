"""A job as a person starts it, and every process it ever had."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "REPEXP_TEST_MARK"


PROMPTS, RESPONSES = 2, 4


def tiny_settings(model: str) -> str:
    """A run of small steps with a gradient in each, as TOML; keys that belong before the first section may be put in
    front."""
    return f"""
        model = "{model}"
        prompts_per_step = {PROMPTS}
        responses_per_prompt = {RESPONSES}
        wait_timeout_s = 60

        [sampling]
        max_response_tokens = 6

        [rollout]
        engine = "transformers"
        dtype = "float32"

        [encoder]
        dtype = "float32"

        [bonus]
        dim = 8
        memory = "run"
        gate = "always"
        ridge = "auto"
        cut_off = "keep"

        [learner]
        dtype = "float32"
        lr = 1e-3
        advantage = {{ combine = "advantage", beta = 0.5 }}

        [replay]
        max_bytes = 1000000
    """


def wait_until(condition: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
    """Poll `condition` until it is true; returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)
    return value


def _interruptible() -> None:
    """A shell without job control has what it runs in the background ignore Ctrl-C, and the tests' jobs would inherit
    that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Job:
    """One start of `python -m MODULE ARGUMENTS`, in a process group of its own; its output is kept beside `directory`.

    with Job(out, "jobs.explore", "--out", str(out)) as job:
        job.signal(signal.SIGINT)
        assert job.exit_code(timeout_s=60) == 130
        job.assert_no_process_left()
    """

    def __init__(self, directory: Path, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        self._seen: dict[int, psutil.Process] = {}
        self._temporary: set[str] = set()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = (
            inherited
            | dict(environment or {})
            | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", MARK: self._mark}
        )
        self._output = (directory.parent / f"output-{self._mark[:6]}.txt").open("w+")
        self.process = subprocess.Popen(
            self.command(module, *arguments),
            cwd=self.directory,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_interruptible,
        )

    directory = REPOSITORY
    """Where the command is started."""

    def command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing outlives a test, whatever it found; what it started is told by pid, start time and mark."""
        for process in [*self.processes(), psutil_or_none(self.process.pid)]:
            if process is not None and process.is_running():
                process.kill()
        self.process.wait(30)
        for directory in self._temporary:
            shutil.rmtree(directory, ignore_errors=True)
        self._output.close()

    def output(self) -> str:
        return Path(self._output.name).read_text()

    def processes(self) -> list[psutil.Process]:
        """Every live process of this start except the driver: its descendants, those seen before, and those that carry
        its mark."""
        driver = psutil_or_none(self.process.pid)
        found = driver.children(recursive=True) if driver is not None and self.process.poll() is None else []
        found += [process for process in psutil.process_iter() if process.pid != self.process.pid and self._is_ours(process)]
        for process in found:
            self._seen.setdefault(process.pid, process)
        return [process for process in self._seen.values() if is_alive(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        """By the mark in its environment, or by Ray's private directory in its arguments (a new title may overwrite the
        first)."""
        try:
            arguments = process.cmdline()
            if process.environ().get(MARK) == self._mark:
                self._temporary.update(re.findall(r"/tmp/rx-\w+", " ".join(arguments)))
                return True
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return any(directory in argument for directory in self._temporary for argument in arguments)

    def named(self, title: str) -> psutil.Process:
        """The process that Ray gave this title."""
        (process,) = self.all_named(title)
        return process

    def all_named(self, title: str) -> list[psutil.Process]:
        return [process for process in self.processes() if title_of(process).startswith(title)]

    def ports(self) -> set[int]:
        """The TCP ports that the processes of this start listen on."""
        ours = {process.pid for process in self.processes()} | {self.process.pid}
        found = {each.laddr.port for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.pid in ours}
        assert len(found) >= 5, "Ray listens on more"
        return found

    def signal(self, number: int, *, group: bool = False) -> None:
        """To the driver, or like a terminal to all that share its process group. Notes the processes that there are
        before."""
        assert len(self.processes()) >= 5, "the processes of this start were not found"
        if group:
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.process.pid, number)

    def exit_code(self, *, timeout_s: float = 120) -> int:
        return self.process.wait(timeout_s)

    def assert_no_process_left(self, *, timeout_s: float = 60, but: tuple[str, ...] = ()) -> None:
        """None but those named in `but`."""

        def left() -> list[str]:
            return [name for process in self.processes() if (name := name_of(process)) and name not in but]

        try:
            wait_until(lambda: not left(), timeout_s=timeout_s, what="the processes to end")
        except AssertionError:
            raise AssertionError(f"left behind after {timeout_s:g} s: {left()}") from None


class Training(Job):
    """One start of `python -m jobs.train`.

    with Training(config, run_dir, "--set", "steps=5") as training:
        training.wait_for_steps(1)
    """

    def __init__(self, config: Path, run_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(run_dir, "jobs.train", str(config), "--set", f"run_dir={run_dir}", *arguments, environment=environment)
        self.run_dir = run_dir

    def wait_for_steps(self, num: int, *, timeout_s: float = 120) -> None:
        def enough() -> bool:
            assert self.process.poll() is None or len(steps_of(self.run_dir)) >= num, self.output()[-3000:]
            return len(steps_of(self.run_dir)) >= num

        wait_until(enough, timeout_s=timeout_s, what=f"{num} steps in metrics.jsonl")


def psutil_or_none(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def is_alive(process: psutil.Process) -> bool:
    """A zombie holds nothing: it is its parent's business."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def title_of(process: psutil.Process) -> str:
    """Empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def name_of(process: psutil.Process) -> str:
    """Empty once it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] if file.exists() else []


def steps_of(run_dir: Path) -> list[int]:
    return [record["step"] for record in metrics_of(run_dir)]
