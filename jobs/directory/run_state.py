"""What a run says of itself while it goes on, and what people ask of it: two small files in its directory.

    RUN_DIR/status.json     written by the run about once a second and at every change of state; stays when the run has ended
    RUN_DIR/desired.json    written by `jobs.scale` and `jobs.stop`, read by the run once a second; a resumed run goes on with it

Files, because they are there when Ray is not, outlive the run, and need no address. Whoever is outside the cluster has
a job of a second read them (`jobs.cluster.remote`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.directory.atomic import replacing

STATUS, DESIRED = "status.json", "desired.json"
RunPhase = Literal["starting", "training", "stopping", "finished", "stopped", "failed"]
"""The last three are ends: all steps done; stopped by a person; ended by an error."""

_RECORD = ConfigDict(extra="ignore", frozen=True)


class WorkerStatus(BaseModel):
    """One process of a role that has several."""

    model_config = _RECORD

    name: str
    role: str
    """rollout or encoder."""
    state: str
    """starting, stale, serving, draining or dead: see `jobs.run.fleet`."""
    since: float
    """Unix time at which it came into this state."""
    version: int | None = None
    """Policy version that a rollout worker holds."""
    groups: int = 0
    """Groups under way in it."""
    sampled_tokens: int = 0
    rss_mib: float | None = None
    detail: str = ""
    """Why it is dead or draining."""


class Waiting(BaseModel):
    """What a loop of the controller waits for."""

    model_config = _RECORD

    loop: str
    waiting_for: str
    since: float
    """Unix time."""


class RunStatus(BaseModel):
    """A run at one moment."""

    model_config = _RECORD

    run_id: str
    phase: RunPhase
    detail: str = ""
    """Why it failed or stops."""
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
    """By role: rollout, verifier, encoder."""
    queues: dict[str, int] = Field(default_factory=dict)
    """Groups by where they are: requests, sampling, sampled, held; and free slots."""
    tokens: dict[str, int] = Field(default_factory=dict)
    """The token ledger: generated, trained, in_flight, wasted_CAUSE."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Of the newest step."""
    last_checkpoint: int | None = None
    checkpoint_time: float | None = None
    waits: tuple[Waiting, ...] = ()
    faults: tuple[str, ...] = ()
    """The last few, oldest first."""

    @property
    def has_ended(self) -> bool:
        return self.phase in ("finished", "stopped", "failed")


class Desired(BaseModel):
    """What people ask of a run. None: what the configuration says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout: int | None = Field(None, ge=1)
    verifier: int | None = Field(None, ge=1)
    encoder: int | None = Field(None, ge=1)
    stop: bool = False
    """Write a checkpoint and end. Whoever starts the run again takes it back."""


def write_status(directory: Path, status: RunStatus) -> None:
    _write(directory / STATUS, status)


def read_status(directory: Path) -> RunStatus | None:
    """None where no run was ever started, or its file cannot be read."""
    values = _read(directory / STATUS)
    try:
        return None if values is None else RunStatus.model_validate(values)
    except ValidationError:
        return None


def write_desired(directory: Path, desired: Desired) -> None:
    _write(directory / DESIRED, desired)


def read_desired(directory: Path) -> Desired:
    """What is asked for; nothing where there is no file. Raises ValueError for one that is damaged."""
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
