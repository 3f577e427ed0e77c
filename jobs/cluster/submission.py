"""A job as it is handed to a cluster: a command of this project, the files it needs, and what it is called there."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster.package import Package, mib
from jobs.cluster.remote import Cluster
from jobs.config import RunConfig
from jobs.directory.code_version import COMMIT, UNKNOWN

STOP_WAIT_S = (60, 600)
"""The least and most seconds from SIGTERM to SIGKILL of a stopped job, which ends a step and writes a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Everything that a job is made of, except the package."""

    run: str
    job_id: str
    storage: str
    python: str
    command: str
    """The module and its arguments, quoted for a shell."""
    resumes: bool
    env_vars: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def entrypoint(self) -> str:
        """The command of the job. With `exec` a signal reaches the run itself, and the run's exit code is the job's."""
        return f"exec {shlex.quote(self.python)} -m {self.command}"


def next_id(run: str, used_ids: Collection[str]) -> str:
    """Return the first of RUN-1, RUN-2, … that no job has."""
    return next(job_id for number in range(1, len(used_ids) + 2) if (job_id := f"{run}-{number}") not in used_ids)


def job_environment(config: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the run's processes, always with RAY_AUTH_MODE: Ray else decides by what ran before."""
    least, most = STOP_WAIT_S
    variables = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(min(most, max(least, config.wait_timeout_s)))),
        "RAY_AUTH_MODE": environment.get("RAY_AUTH_MODE") or "disabled",
    }
    return variables | {name: environment[name] for name in ("HF_HUB_OFFLINE",) if name in environment}


def commit_environment(commit: str) -> dict[str, str]:
    """Return the variables that tell a job, whose package has no .git, and the tracker "wandb" the commit."""
    return {COMMIT: commit} | ({} if commit == UNKNOWN else {"WANDB_GIT_COMMIT": commit})


def send(cluster: Cluster, submission: Submission, package: Package, extra: Mapping[str, Path]) -> None:
    """Print what is sent, send it, and start the job."""
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "package.zip"
        package.write(archive, extra=extra)
        print(
            f"package    {len(package.sizes) + len(extra)} files, {mib(package.total_bytes)} ({mib(archive.stat().st_size)} compressed),"
            f" commit {submission.metadata['commit']}",
            flush=True,
        )
        if package.left_out:
            print(
                f"left out   {package.named_left_out} (links to directories or to files that are not sent, and what is no file)", flush=True
            )
        cluster.submit(
            job_id=submission.job_id,
            entrypoint=submission.entrypoint,
            runtime_env={
                "working_dir": str(archive),
                "env_vars": {**submission.env_vars, **commit_environment(submission.metadata["commit"])},
            },
            metadata=dict(submission.metadata),
        )
