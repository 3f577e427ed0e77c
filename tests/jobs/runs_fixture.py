"""Run directories as a run leaves them, and a cluster's job server of which only the answers are made up."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.directory.job_dir import LOCK
from jobs.directory.run_state import RunStatus, write_status

NOW = 1_800_000_000.0


def status(**changes: Any) -> RunStatus:
    """Of a run that trains, in this process."""
    values: dict[str, Any] = {
        **{"run_id": "mine", "phase": "training", "pid": os.getpid(), "host": "head", "started": NOW - 600, "updated": NOW - 1},
        **{"step": 12, "steps": 40, "trained_version": 12, "live_version": 11, "last_checkpoint": 10, "checkpoint_time": NOW - 35},
        **{"desired": {"rollout": 2, "verifier": 1, "encoder": 1}, "queues": {"requests": 3, "free_slots": 0}},
    }
    return RunStatus(**(values | changes))


def run_directory(parent: Path, name: str = "mine", **changes: Any) -> Path:
    """A directory with a lock file (free) that names this process, and a status."""
    directory = parent / name
    directory.mkdir(parents=True)
    (directory / LOCK).write_text(str(os.getpid()))
    write_status(directory, status(run_id=name, **changes))
    return directory


@contextmanager
def running(directory: Path) -> Iterator[None]:
    """Somebody holds the lock of the run."""
    with open(directory / LOCK, "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


class FakeState(str):
    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "STOPPED", "FAILED")


RUNNING = FakeState("RUNNING")


@dataclass
class FakeDetails:
    """JobDetails of Ray, as far as they are read."""

    submission_id: str
    entrypoint: str
    metadata: dict[str, str] | None
    runtime_env: dict[str, Any] | None
    status: FakeState = RUNNING
    message: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    driver_exit_code: int | None = None


@dataclass
class FakeClient:
    """The methods of JobSubmissionClient. `answers`: what helper jobs print, and their exit code, by a word of their
    command."""

    answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    logs: list[list[str | Exception]] = field(default_factory=list)
    """What one connection after the other gives of a followed log."""
    jobs: dict[str, FakeDetails] = field(default_factory=dict)
    helpers: list[FakeDetails] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    stays_pending: bool = False
    without_agent: int = 0
    """How many submissions come before the head has an agent."""

    def submit_job(
        self, *, submission_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str], entrypoint_num_cpus: float
    ) -> str:
        if self.without_agent > 0:
            self.without_agent -= 1
            raise RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later..")
        if submission_id in self.jobs:
            raise RuntimeError(
                f"Request failed with status code 500: Traceback (most recent call last):\n  ...\nValueError: Job with submission_id "
                f"{submission_id} already exists. Please use a different submission_id."
            )
        assert all(isinstance(value, str) for value in metadata.values())
        assert entrypoint_num_cpus == 0
        details = FakeDetails(submission_id, entrypoint, metadata, runtime_env, start_time=int(time.time() * 1000))
        self.jobs[submission_id] = details
        if metadata["kind"] == "helper":
            self.helpers.append(details)
            self._answer(details)
        return submission_id

    def _answer(self, details: FakeDetails) -> None:
        if self.stays_pending:
            details.status = FakeState("PENDING")
            return
        (code,) = [code for word, (_, code) in self.answers.items() if word in details.entrypoint]
        details.status, details.driver_exit_code = FakeState("FAILED" if code else "SUCCEEDED"), code

    def list_jobs(self) -> list[FakeDetails]:
        return list(self.jobs.values())

    def get_job_info(self, job_id: str) -> FakeDetails:
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return self.jobs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        """Of a fast command Ray's own line comes last, and right behind what it printed."""
        entrypoint = self.get_job_info(job_id).entrypoint
        (text,) = [text for word, (text, _) in self.answers.items() if word in entrypoint]
        before = "2026-01-01 00:00:00,000\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        return f"{before}{text}Running entrypoint for job {job_id}: {entrypoint}\n"

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.jobs[job_id].status = FakeState("STOPPED")
        return True

    def delete_job(self, job_id: str) -> bool:
        assert self.jobs[job_id].status.is_terminal()
        self.deleted.append(job_id)
        del self.jobs[job_id]
        return True

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for chunk in self.logs.pop(0):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


def add_run(client: FakeClient, job_id: str, run: str, state: str, **changes: Any) -> FakeDetails:
    """A job of a run as `jobs.submit` makes it."""
    metadata = {"app": "repexp", "kind": "train", "run": run, "storage": "~/repexp-runs", "python": "python", "commit": "abc"}
    details = FakeDetails(
        job_id,
        "exec python -m jobs.train configs/mine.toml",
        metadata | changes.pop("metadata", {}),
        {"working_dir": "gcs://_ray_pkg_1.zip"},
        FakeState(state),
        start_time=1000 * (len(client.jobs) + 1),
        **changes,
    )
    client.jobs[job_id] = details
    return details


def ticking(limit: int = 1000) -> Callable[[float], None]:
    """A sleep that takes no time, and no more than `limit` times."""
    left = [limit]

    def sleep(seconds: float) -> None:
        left[0] -= 1
        assert left[0] > 0, "waited for ever"

    return sleep
