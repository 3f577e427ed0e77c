"""Runs on a Ray cluster, from outside of it: only through the job server of its head.

    cluster = connect(address)                      # UserError: no answer, no token, a wrong one, not a job server
    job = cluster.newest("quickstart")              # the newest job of a run, found by the metadata of jobs
    cluster.read_status(job)                        # its status.json, also after the job has ended
    cluster.ask(job, "scale", ["--rollout", "2"])   # `python -m jobs.scale` on the head
    for text in cluster.follow(job.id): ...

Work on the run's files is done by helper jobs, which take a second. They need no CPU, run on the head like the run's
driver, use the package of the run's job, so that nothing is sent, and are deleted afterwards. Their metadata says what
they are."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from jobs.cluster.runs import unknown_run
from jobs.configuration.user_error import UserError
from jobs.directory.run_state import STATUS, RunStatus

APP = "repexp"
TRAIN, EVALUATE, HELPER = "train", "evaluate", "helper"
LIVE_STATES = ("PENDING", "RUNNING")
ENDED_WELL = ("SUCCEEDED", "STOPPED")
HELPER_DEADLINE_S = 90.0
HELPER_POLL_S = 0.25
AGENT_DEADLINE_S = 30.0
"""How long a head may take to start its dashboard agent, without which it starts no job."""
AGENT_PORT = 52365
"""Where the agent of a head listens unless `ray start` is told otherwise."""
AGENT_RETRY_S = 1.0
FOLLOW_RETRY_S = 1.0
SILENCE_S = 120.0
"""How long a log may say nothing before a new connection is made to it."""
MAX_LOST_CONNECTIONS = 5
"""The number of lost connections in a row, with nothing of the log read between them, that ends the following."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 120.0
RAYS_LINE = re.compile(r"\d{4}-\d\d-\d\d \S+\s+[A-Z]+ job_manager\.py:\d+ -- ")
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
ADDRESS_HELP = "job server of the cluster's head, http://HEAD:8265; default: $RAY_API_SERVER_ADDRESS, then $RAY_ADDRESS where that is http"
TOKEN_HELP = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN)"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission of a run."""

    id: str
    run: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED."""
    storage: str
    """The directory on the head that holds the run's directory; ~ is the head's home."""
    python: str = "python"
    working_dir: str = ""
    """The URI of the package that it was submitted with."""
    started: float | None = None
    ended: float | None = None
    """Unix times."""
    message: str = ""
    """What the cluster says about it, in one line."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.state in LIVE_STATES


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a helper job printed, and its exit code, which is None where it could not be started."""

    lines: tuple[str, ...]
    exit_code: int | None
    message: str = ""

    @property
    def last_line(self) -> str:
        """The last line that is not empty, or else the cluster's message."""
        return next((line for line in reversed(self.lines) if line.strip()), self.message)


def address_of(option: str | None) -> str | None:
    """Return the job server's address, None for this machine's runs. Raises UserError for one of another kind."""
    address = option or os.environ.get(ADDRESS_VARIABLE) or ""
    if not address and os.environ.get("RAY_ADDRESS", "").startswith(("http://", "https://")):
        address = os.environ["RAY_ADDRESS"]
    if not address:
        return None
    if not address.startswith(("http://", "https://")):
        raise UserError(f"address {address} is not that of a job server: write it as http://HEAD:8265 (the port of the dashboard)")
    return address.rstrip("/")


def connect(address: str) -> Cluster:
    """Return the cluster, after asking its job server once. Raises UserError."""
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address  # the client lets this variable override its argument
    try:
        with _refusing(address):
            return Cluster(_client(address), address)
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient  # takes a second to import, so only after all other checks

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # each sets itself to INFO on import

    class Client(JobSubmissionClient):
        """A client with deadlines: Ray's own waits forever for a head that does not answer."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S), **options)

    return Client(address)


class NoAgent(UserError):
    """The head has no dashboard agent, or none yet."""


@contextmanager
def _refusing(address: str) -> Iterator[None]:
    """Turn whatever Ray and HTTP raise into one line."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        raise UserError(_token_refusal(address, str(error))) from None
    except (ConnectionError, RequestException, TimeoutError) as error:
        late = " in time" if "imed out" in str(error) else ""
        raise UserError(f"no cluster answers at {address}{late}: is its head running, and is this the dashboard's port?") from None
    except RuntimeError as error:
        if "No available agent" in str(error):
            raise NoAgent(
                f"the head at {address} has no dashboard agent, which starts jobs: its port ({AGENT_PORT} unless `ray start` said "
                "otherwise) is probably taken by another Ray of that machine; start the head again with `ray start --head "
                "--dashboard-agent-listen-port=PORT` and a free port"
            ) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if lines[0].startswith("Version check returned 404"):
            raise UserError(f"{address} is not the job server of a Ray cluster: is this the dashboard's port?") from None
        raise UserError(f"the cluster at {address} refused: {lines[-1] if 'Traceback' in lines[0] else lines[0]}") from None


def _token_refusal(address: str, message: str) -> str:
    if message.startswith("Authentication failed"):
        return f"the cluster at {address} refuses the token: set {TOKEN_HELP} to its own"
    if message.startswith("Authentication required"):
        return f"the cluster at {address} asks for a token: set {TOKEN_HELP}"
    return f"no token can be read ({message.split('. ')[0]}): set {TOKEN_HELP}"


class Cluster:
    """The jobs on one cluster, by a JobSubmissionClient. Every method raises UserError where it does not answer."""

    def __init__(
        self, client: Any, address: str, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self.address = client, address
        self._sleep, self._clock = sleep, clock

    def jobs(self, kind: str = TRAIN) -> list[Job]:
        """Return the submissions of runs (or of evaluations), oldest first, without helper jobs and other people's
        jobs."""
        with _refusing(self.address):
            found = [job for details in self._client.list_jobs() if (job := job_of(details, kind)) is not None]
        return sorted(found, key=lambda job: job.started or 0.0)

    def newest(self, run: str) -> Job:
        """Return the newest job of a run. Raises UserError, with the nearest names, where there is none."""
        jobs = self.jobs()
        mine = [job for job in jobs if job.run == run]
        if not mine:
            raise UserError(unknown_run(run, {job.run for job in jobs}, f"on the cluster at {self.address}"))
        return mine[-1]

    def live(self, run: str) -> Job:
        """Return the live job of a run. Raises UserError where there is none."""
        job = self.newest(run)
        if not job.is_live:
            state = job.state.lower()
            raise UserError(f"run {run} is not running: its last job {job.id} has ended ({state}); submit it again to resume it")
        return job

    def job(self, job_id: str) -> Job:
        """Return a job as it is now. Raises UserError for one of somebody else."""
        with _refusing(self.address):
            details = self._client.get_job_info(job_id)
        found = job_of(details, TRAIN) or job_of(details, EVALUATE)
        if found is None:
            raise UserError(f"job {job_id} is not one of ours")
        return found

    def used_ids(self) -> set[str]:
        """Return the ids of all submissions of the cluster, also of other people's."""
        with _refusing(self.address):
            return {details.submission_id for details in self._client.list_jobs() if details.submission_id}

    def submit(self, *, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Submit a job. The cluster refuses a second one of the same id: of two at the same moment only one starts. A
        head that has just started is given time to start its agent."""
        deadline = self._clock() + AGENT_DEADLINE_S
        while True:
            try:
                with _refusing(self.address):
                    self._client.submit_job(
                        submission_id=job_id, entrypoint=entrypoint, runtime_env=runtime_env, metadata=metadata, entrypoint_num_cpus=0
                    )
                return
            except NoAgent:
                if self._clock() >= deadline:
                    raise
            self._sleep(AGENT_RETRY_S)

    def stop(self, job: Job) -> None:
        """Have Ray send SIGTERM to its driver, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S. Return at once."""
        with _refusing(self.address):
            self._client.stop_job(job.id)

    def read_status(self, job: Job) -> RunStatus | None:
        """Return the run's status, None while it has none. It needs no package: that of an ended job may be removed."""
        answer = self._run_helper(job.run, f"cat {shell_path(job.storage, job.run, STATUS)}")
        if answer.exit_code != 0:
            return None
        text = "\n".join(answer.lines)
        try:
            record, _ = json.JSONDecoder().raw_decode(text[max(0, text.find("{")) :])
            return RunStatus.model_validate(record)
        except ValueError:  # no JSON, or a ValidationError
            return None

    def ask(self, job: Job, command: str, arguments: Sequence[str]) -> Answer:
        """Run `python -m jobs.COMMAND RUN_DIR ARGUMENTS` on the head, with the code of the run's own job."""
        python = f"env -u RAY_API_SERVER_ADDRESS {shlex.quote(job.python)}"  # with it the command would ask a cluster for the run
        entrypoint = f"exec {python} -m jobs.{command} {shell_path(job.storage, job.run)} {shlex.join(arguments)}"
        return self._run_helper(job.run, entrypoint.rstrip(), working_dir=job.working_dir)

    def wait_ended(self, job: Job, *, every_s: float = 2.0) -> Job:
        """Wait until the job is no longer live, and return it."""
        while (now := self.job(job.id)).is_live:
            self._sleep(every_s)
        return now

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield the job's output as it comes, to its end. After a lost connection, continue where it broke off."""
        from aiohttp import ClientError  # which is there where Ray's job client is

        seen, lost = 0, 0
        while True:
            position = 0
            try:
                for text in self._tail(job_id):
                    new, position = text[max(0, seen - position) :], position + len(text)
                    if new:
                        seen, lost = position, 0
                        yield new
                if not self.job(job_id).is_live:
                    return
            except (RuntimeError, OSError, ClientError, UserError):  # Ray's errors come as RuntimeError
                lost += 1
            if lost > MAX_LOST_CONNECTIONS:
                raise UserError(f"the log of {job_id} cannot be followed any more: the connection to {self.address} was lost {lost} times")
            self._sleep(FOLLOW_RETRY_S)

    def _tail(self, job_id: str) -> Iterator[str]:
        """Yield the texts of Ray's asynchronous iterator over the whole log. Ends where nothing comes for `SILENCE_S`:
        the connection may be one that nobody answers any more."""
        loop = asyncio.new_event_loop()
        chunks = self._client.tail_job_logs(job_id)
        try:
            while True:
                try:
                    text = loop.run_until_complete(asyncio.wait_for(anext(chunks), SILENCE_S))
                except (StopAsyncIteration, TimeoutError):
                    return
                yield text
        finally:
            for task in asyncio.all_tasks(loop):  # Ctrl-C leaves them as they were
                task.cancel()
            loop.run_until_complete(chunks_closed(asyncio.all_tasks(loop), chunks))
            loop.close()

    def _run_helper(self, run: str, entrypoint: str, *, working_dir: str = "") -> Answer:
        job_id = f"{run}-{HELPER}-{uuid.uuid4().hex[:8]}"
        deadline = self._clock() + HELPER_DEADLINE_S
        self.submit(
            job_id=job_id,
            entrypoint=entrypoint,
            runtime_env={"working_dir": working_dir} if working_dir else {},
            metadata={"app": APP, "kind": HELPER, "run": run},
        )
        with _refusing(self.address):
            try:
                while not (details := self._client.get_job_info(job_id)).status.is_terminal():
                    if self._clock() > deadline:
                        within = f"within {HELPER_DEADLINE_S:g} s (it is {str(details.status).lower()})"
                        raise UserError(f"the cluster at {self.address} did not run a helper job {within}")
                    self._sleep(HELPER_POLL_S)
                output = self._client.get_job_logs(job_id)
            except BaseException:
                self._client.stop_job(job_id)
                raise
            self._client.delete_job(job_id)
        return Answer(
            lines=tuple(_own_lines(output, job_id)),
            exit_code=0 if str(details.status) == "SUCCEEDED" else details.driver_exit_code,
            message=one_line(details.message or ""),
        )


def job_of(details: Any, kind: str = TRAIN) -> Job | None:
    """Return a job of Ray's (JobDetails) as one of this project of that kind, or None where it is another one."""
    metadata = details.metadata or {}
    if metadata.get("app") != APP or metadata.get("kind") != kind or not details.submission_id:
        return None
    return Job(
        id=details.submission_id,
        run=metadata["run"],
        state=str(details.status),
        storage=metadata["storage"],
        python=metadata.get("python", "python"),
        working_dir=(details.runtime_env or {}).get("working_dir", ""),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=one_line(details.message or ""),
        metadata=metadata,
    )


def one_line(message: str) -> str:
    """Return Ray's message about a job as one line: what happened and, where a log is attached, its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    first = lines[0].partition(", last available logs")[0]
    return first if len(lines) == 1 else f"{first}: {lines[-1]}"


async def chunks_closed(tasks: Collection[asyncio.Task[Any]], chunks: AsyncGenerator[str, None]) -> None:
    """Wait until `tasks`, which read the chunks, have ended, and close these."""
    await asyncio.gather(*tasks, return_exceptions=True)
    await chunks.aclose()


def shell_path(storage: str, run: str, file: str = "") -> str:
    """Return a path in a run's directory as a word for a shell on the head; ~ is the head's home."""
    path = str(PurePosixPath(storage) / run / file) if file else str(PurePosixPath(storage) / run)
    return '"$HOME"/' + shlex.quote(path.removeprefix("~/")) if path.startswith("~/") else shlex.quote(path)


def _own_lines(output: str, job_id: str) -> Iterator[str]:
    """Yield what the command itself printed. Ray's lines about the start come before it, or after a fast command."""
    for line in output.splitlines():
        if not line.startswith(f"Running entrypoint for job {job_id}:") and not RAYS_LINE.match(line):
            yield line
