"""Trackers: where a run's metrics go besides `metrics.jsonl`, which always exists.

    trackers = ["tensorboard", "mypackage.trackers:Mine"]         # in the configuration; [] is metrics.jsonl alone
    [tracker_options."mypackage.trackers:Mine"]                   # what the class is made with
    project = "exploration"

    started = Trackers(load_trackers(config.trackers, config.tracker_options), info, warn=console.warn)
    started.write(step, metrics)
    started.close()

To add a tracker, write a class with the methods of `Tracker`. A known name is a name of `KNOWN`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import BaseModel

from buffers.extensions import load

TENSORBOARD = "tensorboard"
"""The folder of a run's directory that TensorBoard reads."""

Options = Mapping[str, Mapping[str, Any]]
"""By the name of a tracker, the arguments its class is made with."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker needs to know about the run."""

    run_dir: Path
    run_id: str
    resume_step: int
    """The step of the restored checkpoint, 0 at a fresh start. Everything that was written of later steps is void."""
    config: Mapping[str, Any]
    """The whole configuration as plain values."""

    @classmethod
    def of(cls, run_dir: Path, config: BaseModel, *, resume_step: int = 0) -> RunInfo:
        """Return what is known of the run in `run_dir`, whose name is that of its directory."""
        return cls(run_dir=run_dir, run_id=run_dir.name, resume_step=resume_step, config=config.model_dump(mode="json"))


class Tracker(Protocol):
    """One place that metrics go to. Its constructor, called before anything starts, must be cheap and start nothing."""

    def start(self, info: RunInfo) -> None:
        """Begin a run, or go back to `info.resume_step` of a run that was interrupted."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of `step`; this must not wait for a network. Evaluations come here too. Their metrics are
        named `eval/…`, and their step may be before that of the last call."""

    def close(self) -> None:
        """End: everything that was written must be safe when this returns."""


class TensorBoard:
    """Writes the files that TensorBoard shows.

    It writes each step at once and in the caller's thread, so that a full disk raises here. SummaryWriter hands its
    points to a thread: that thread would die of the error, and its queue of ten would block the run."""

    def start(self, info: RunInfo) -> None:
        """Open a file in `RUN_DIR/tensorboard`, which a fresh start empties."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory = info.run_dir / TENSORBOARD
        if info.resume_step == 0:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        if info.resume_step:  # what an earlier file has of the steps from here on is hidden
            again = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=info.resume_step + 1, session_log=again))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to every curve. Raises OSError where the disk does."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time()
        for name, value in metrics.items():
            self._events.write_event(Event(wall_time=now, step=step, summary=scalar(name, value)))
        self._events.flush()

    def close(self) -> None:
        """Write out what is buffered."""
        self._events.close()


KNOWN: Mapping[str, str] = {"tensorboard": f"{__name__}:TensorBoard", "wandb": "jobs.directory.wandb_tracker:WandB"}
"""Import paths by known name; `RunConfig.trackers` lists the same names."""


def load_trackers(names: Sequence[str], options: Options = MappingProxyType({})) -> dict[str, Tracker]:
    """Make every tracker with its options. Raises ExtensionError."""
    methods = ("start", "write", "close")
    return {name: load(KNOWN.get(name, name), options.get(name), key="tracker", methods=methods) for name in names}


def require_methods(names: Sequence[str], options: Options = MappingProxyType({})) -> None:
    """Raise ExtensionError for a tracker that cannot be used."""
    load_trackers(names, options)


class Trackers:
    """The trackers of one start. One that raises is named in a warning and gets nothing more: no run fails for it."""

    def __init__(self, trackers: Mapping[str, Tracker], info: RunInfo, *, warn: Callable[[str], None]) -> None:
        self._trackers = dict(trackers)
        self._warn = warn
        self._each(lambda tracker: tracker.start(info))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand on the metrics of `step`."""
        self._each(lambda tracker: tracker.write(step, metrics))

    def close(self) -> None:
        """End them all; nothing can be written afterwards."""
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # a seam: the class is somebody else's code
                del self._trackers[name]
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                self._warn(f"tracker {name} failed and gets no more metrics ({reason}); metrics.jsonl has them all")
