"""What a live run reports about itself, and what people ask of it: two small files in its directory.

    RUN_DIR/status.json     the run writes it once a second and at every change of state; it outlives the run
    RUN_DIR/desired.json    `jobs.scale` and `jobs.stop` write it, the run reads it every second; a resumed run keeps it

Files work without Ray, outlive the run, and need no address. From outside the cluster, a helper job reads them
(`jobs.cluster.remote`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.directory.atomic import replacing

STATUS, DESIRED = "status.json", "desired.json"
RunPhase = Literal["starting", "training", "stopping", "finished", "stopped", "failed"]
"""The last three are ends: all steps are done; a person stopped the run; an error ended it."""

_RECORD = ConfigDict(extra="ignore", frozen=True)


class WorkerStatus(BaseModel):
    """One process of a role that may have several."""

    model_config = _RECORD

    name: str
    role: str
    """rollout or encoder."""
    state: str
    """starting, stale, serving, draining or dead (`jobs.run.fleet`)."""
    since: float
    """Unix time at which it entered this state."""
    version: int | None = None
    """The policy version that a rollout worker holds."""
    groups: int = 0
    """The number of groups that it has."""
    sampled_tokens: int = 0
    rss_mib: float | None = None
    detail: str = ""
    """Why it is dead or draining."""


class Waiting(BaseModel):
    """One wait: what a loop of the controller waits for, since which Unix time."""

    model_config = _RECORD

    loop: str
    waiting_for: str
    since: float


class RunStatus(BaseModel):
    """A run at one moment."""

    model_config = _RECORD

    run_id: str
    phase: RunPhase
    detail: str = ""
    """Why it failed, or why it stops."""
    pid: int
    host: str
    started: float
    updated: float
    """Unix times."""
    step: int
    steps: int
    trained_version: int = 0
    live_version: int = 0
    workers: tuple[WorkerStatus, ...] = ()
    desired: dict[str, int] = Field(default_factory=dict)
    """The number of processes wanted by role: rollout, verifier, encoder."""
    queues: dict[str, int] = Field(default_factory=dict)
    """The number of groups by where they are (requests, sampling, sampled, held), and of free slots."""
    tokens: dict[str, int] = Field(default_factory=dict)
    """The token ledger: generated, trained, in_flight, wasted_CAUSE."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """The metrics of the newest step."""
    metrics_address: str = ""
    """Where Prometheus finds the run while it lives."""
    last_checkpoint: int | None = None
    checkpoint_time: float | None = None
    waits: tuple[Waiting, ...] = ()
    faults: tuple[str, ...] = ()
    """The last few faults, oldest first."""

    @property
    def has_ended(self) -> bool:
        """Whether the phase is an end."""
        return self.phase in ("finished", "stopped", "failed")


class Desired(BaseModel):
    """What people ask of a run. None leaves a number as the configuration has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout: int | None = Field(None, ge=1)
    verifier: int | None = Field(None, ge=1)
    encoder: int | None = Field(None, ge=1)
    stop: bool = False
    """Whether the run is to write a checkpoint and end. The next start clears it."""
    serial: int = Field(0, ge=0)
    """How often numbers were asked for: the same numbers may be asked for again, and are tried again."""


def write_status(directory: Path, status: RunStatus) -> None:
    """Replace the status file."""
    _write(directory / STATUS, status)


def read_status(directory: Path) -> RunStatus | None:
    """Return the status, or None where no run was ever started or the file cannot be read."""
    values = _read(directory / STATUS)
    try:
        return None if values is None else RunStatus.model_validate(values)
    except ValidationError:
        return None


def write_desired(directory: Path, desired: Desired) -> None:
    """Replace the file of what people ask for."""
    _write(directory / DESIRED, desired)


def read_desired(directory: Path) -> Desired:
    """Return what people ask for: nothing, where there is no file. Raises ValueError for a damaged file."""
    values = _read(directory / DESIRED)
    try:
        return Desired() if values is None else Desired.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{directory / DESIRED} is damaged ({error.errors(include_url=False)[0]['msg']}): delete it") from None


def _write(path: Path, record: BaseModel) -> None:
    with replacing(path) as staging:
        staging.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {} if path.name == STATUS else {"damaged": True}
