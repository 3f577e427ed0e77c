"""Commands as jobs of a Ray cluster, several units side by side.

The head must see the comparison's directory under the same path as this machine: run the command on the head, or on a
shared disk. A job outlives this command. Started again, the command finds the job by its name and waits for it."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Mapping

from jobs.cluster.package import Package, commit
from jobs.cluster.remote import APP, EVALUATE, TRAIN, Cluster, Job
from jobs.cluster.submission import Submission, job_environment, next_id, send
from jobs.comparison.experiment import Experiment
from jobs.comparison.units import Command
from jobs.configuration.user_error import UserError

POLL_S = 5.0
UNANSWERED = 60
"""So many polls in a row without an answer, and a job is given up. Until then it may well be at work."""
KINDS: Mapping[str, str] = {"jobs.train": TRAIN, "jobs.evaluate": EVALUATE}
"""What the metadata of a job call it, by its module: a run, which `jobs.status` and the others know, or not."""


class ClusterExecutor:
    """Submits commands and waits for them."""

    stopped_hint = "jobs that were submitted continue on the cluster"

    def __init__(
        self, experiment: Experiment, cluster: Cluster, package: Package, *, at_once: int, python: str, say: Callable[[str], None]
    ) -> None:
        self.at_once = at_once
        self._experiment, self._cluster, self._package = experiment, cluster, package
        self._commit = commit(package.root)
        self._python, self._say = python, say
        self._stopping = threading.Event()
        self._submitting = threading.Lock()

    def execute(self, command: Command) -> str | None:
        """Submit the command, unless an earlier start did and the job is live, and wait for its end."""
        name = job_name(self._experiment, command)
        try:
            with self._submitting:
                if self._stopping.is_set():
                    return None
                job = self._live(name, command) or self._submit(name, command)
            ended = self._ended(job)
        except UserError as error:
            return str(error)
        if ended is None or ended.state == "SUCCEEDED":
            return None
        return f"job {ended.id} {ended.state.lower()} ({ended.message or 'the cluster gives no reason'})"

    def _ended(self, job: Job) -> Job | None:
        """Return the job once it has ended, or None where nobody waits for it any more. Raises UserError for a cluster
        that answers nothing for long."""
        unanswered = 0
        while job.is_live:
            if self._stopping.wait(POLL_S):
                return None
            try:
                job, unanswered = self._cluster.job(job.id), 0
            except UserError:
                unanswered += 1
                if unanswered == UNANSWERED:
                    raise
        return job

    def stop(self, number: int) -> None:
        """Wait no longer."""
        self._stopping.set()

    def _live(self, name: str, command: Command) -> Job | None:
        """Return the live job of the command. One that is kept elsewhere is another comparison's."""
        live = [job for job in self._cluster.jobs(KINDS[command.module]) if job.run == name and job.is_live]
        for job in live:
            if job.storage != str(command.directory.parent):
                raise UserError(f"job {job.id} works in {job.storage}: give this comparison another name by the last part of out")
            self._say(f"{job.id} of an earlier start is at work on this: waiting for it")
        return live[-1] if live else None

    def _submit(self, name: str, command: Command) -> Job:
        submission = Submission(
            run=name,
            job_id=next_id(name, self._cluster.used_ids()),
            storage=str(command.directory.parent),
            python=self._python,
            command=f"{command.module} {shlex.join(command.arguments)}",
            resumes=False,
            env_vars=job_environment(self._experiment.shared, os.environ),
            metadata={
                **{"app": APP, "kind": KINDS[command.module], "run": name, "storage": str(command.directory.parent)},
                **{"python": self._python, "config": command.arguments[0], "commit": self._commit},
            },
        )
        send(self._cluster, submission, self._package, {})
        return self._cluster.job(submission.job_id)


def job_name(experiment: Experiment, command: Command) -> str:
    """Return what the command's jobs are called: its own name, without what an id may not hold."""
    name = command.name.replace("@", "-at-")
    return name if name.startswith(experiment.name) else f"{experiment.name}-{name}"
