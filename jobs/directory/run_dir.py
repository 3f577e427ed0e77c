"""A training run's directory (`jobs.directory.job_dir`), and what lies in it.

RUN_DIR/config.json  run.lock  checkpoints/  snapshots/  policy/  rollouts/  metrics.jsonl  tensorboard/  events.jsonl
        status.json  desired.json  eval.jsonl  eval/
"""

from __future__ import annotations

import json
from pathlib import Path

from jobs.config import CHANGEABLE_ON_RESUME, RunConfig
from jobs.directory.events import EVENTS
from jobs.directory.job_dir import JobDirectory
from learners.checkpoint import CheckpointManager

POLICY_STEP = "repexp.json"


class RunDirectory(JobDirectory):
    """Paths of a run."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config.run_dir, config, changeable=CHANGEABLE_ON_RESUME, kind="run_dir", option="--set run_dir=...")
        self.config = config
        storage = config.checkpoint.storage or str(self.path / "checkpoints")
        self.checkpoints = CheckpointManager(storage, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)

    @property
    def snapshots(self) -> CheckpointManager:
        """The learner's state between checkpoints, for a learner that is lost; of no use to a resumed run."""
        return CheckpointManager(str(self.path / "snapshots"), keep=1)

    def forget_snapshots(self) -> None:
        self.snapshots.truncate(after_step=-1)

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def evaluations(self) -> Path:
        """The samples of evaluations, a file each."""
        return self.path / "eval"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / EVENTS

    @property
    def policy(self) -> Path:
        """The final policy as a Hugging Face directory."""
        return self.path / "policy"

    @property
    def policy_step(self) -> int | None:
        """The step whose policy was exported, if any and if that can be read: else it is exported again."""
        try:
            return int(json.loads((self.policy / POLICY_STEP).read_text())["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def run_id(self) -> str:
        return self.path.name

    def has_begun(self) -> bool:
        return self.checkpoints.latest() is not None or (self.metrics.exists() and self.metrics.stat().st_size > 0)
