"""A training run's directory (`jobs.directory.job_dir`), and what lies in it.

RUN_DIR/config.json  run.lock  checkpoints/  snapshots/  policy/  rollouts/  metrics.jsonl  tensorboard/  events.jsonl
    status.json  desired.json  eval.jsonl  eval/  events.older.jsonl  metrics.older.jsonl"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.config import CHANGEABLE_ON_RESUME, RunConfig
from jobs.directory.events import EVENTS
from jobs.directory.job_dir import JobDirectory
from jobs.directory.metrics import evaluations_of, newest_record
from jobs.directory.model_card import README, model_card
from learners.checkpoint import CheckpointManager, FileEntry

POLICY_STEP = "repexp.json"


class RunDirectory(JobDirectory):
    """The paths of a run."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config.run_dir, config, changeable=CHANGEABLE_ON_RESUME, kind="run_dir", option="--set run_dir=...")
        self.config = config
        self.run_id = self.path.name
        self.rollouts, self.metrics, self.events = self.path / "rollouts", self.path / "metrics.jsonl", self.path / EVENTS
        self.evaluations = self.path / "eval"
        """The responses of evaluations, one file for each."""
        self.policy = self.path / "policy"
        """The final policy as a Hugging Face directory."""
        storage = config.checkpoint.storage or str(self.path / "checkpoints")
        if "://" not in storage:
            storage = str(Path(storage).absolute())  # processes of Ray may work in another directory
        self.checkpoints = CheckpointManager(storage, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)

    @property
    def snapshots(self) -> CheckpointManager:
        """The learner's state between checkpoints, from which a lost learner restarts; a resumed run ignores it."""
        return CheckpointManager(str(self.path / "snapshots"), keep=1)

    def forget_snapshots(self) -> None:
        """Remove all snapshots."""
        self.snapshots.truncate(after_step=-1)

    @property
    def policy_step(self) -> int | None:
        """The step whose policy was exported; None where there is none, or where it cannot be read."""
        try:
            return int(json.loads((self.policy / POLICY_STEP).read_text())["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def exporting_policy(self, step: int) -> Iterator[Path]:
        """Give a directory to write the policy of `step` to. With its model card it then becomes `policy`, whole or not
        at all."""
        staging = self.path / "policy.partial"
        shutil.rmtree(staging, ignore_errors=True)
        yield staging
        (staging / POLICY_STEP).write_text(json.dumps({"step": step}))
        (staging / README).write_text(self.model_card(step), encoding="utf-8")
        shutil.rmtree(self.policy, ignore_errors=True)
        staging.replace(self.policy)

    @property
    def policy_part(self) -> str:
        """The folder of a checkpoint that has the policy: a model, or adapters alone."""
        return "learner/adapter" if self.config.learner.lora.enabled else "learner/policy"

    def add_model_card(self, step: int) -> FileEntry:
        """Write the model card of `step` into its checkpoint, whose parts are saved."""
        return self.checkpoints.add(step, f"{self.policy_part}/{README}", self.model_card(step))

    def model_card(self, step: int) -> str:
        """Return the model card of the policy of `step`."""
        metrics, evaluation = (newest_record(file, step) for file in (self.metrics, evaluations_of(self.metrics)))
        return model_card(self.run_id, self.config, step=step, metrics=metrics, evaluation=evaluation)

    def has_begun(self) -> bool:
        """Return whether there is a checkpoint or a trained step."""
        return self.checkpoints.latest() is not None or (self.metrics.exists() and self.metrics.stat().st_size > 0)
