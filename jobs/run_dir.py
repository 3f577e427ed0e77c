"""A run's directory: one run at a time, one configuration for good.

with RunDirectory(config) as run:       # ConfigError when in use or of another configuration
    run.checkpoints.latest()

RUN_DIR/config.json  checkpoints/  rollouts/  metrics.jsonl  tensorboard/  policy/  run.lock
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from jobs.config import ConfigError, RunConfig, changed_keys
from learners.checkpoint import CheckpointManager

POLICY_STEP = "repexp.json"


class RunDirectory:
    """Paths of a run, its lock, and the check that the directory belongs to this configuration."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.path = Path(config.run_dir).absolute()
        self.checkpoints = CheckpointManager(str(self.path / "checkpoints"), keep=config.checkpoint.keep)
        self._lock: IO[str] | None = None

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def policy(self) -> Path:
        """The final policy as a Hugging Face directory."""
        return self.path / "policy"

    @property
    def policy_step(self) -> int | None:
        """The step whose policy was exported, if any."""
        file = self.policy / POLICY_STEP
        return json.loads(file.read_text())["step"] if file.is_file() else None

    @property
    def run_id(self) -> str:
        return self.path.name

    def __enter__(self) -> Self:
        if self.path.is_dir() and any(self.path.iterdir()) and not any((self.path / name).exists() for name in ("run.lock", "config.json")):
            raise ConfigError(f"run_dir {self.path} is not empty and holds no run: choose another with --set run_dir=...")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "run.lock", "a+")
        except OSError as error:
            raise ConfigError(f"run_dir {self.path} cannot be used: {error.strerror}; choose another with --set run_dir=...") from None
        self._acquire(self._lock)
        self._check_identity()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._lock.close()

    def _has_begun(self) -> bool:
        """Whether there is anything to lose: a directory whose run never got to a step takes any configuration."""
        return self.checkpoints.latest() is not None or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def _acquire(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise ConfigError(
                f"run_dir {self.path} is in use by process {owner}: stop it, or choose another with --set run_dir=..."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _check_identity(self) -> None:
        file = self.path / "config.json"
        if file.exists() and self._has_begun():
            changed = changed_keys(_read_json(file), self._config)
            if changed:
                raise ConfigError(
                    f"run_dir {self.path} belongs to a run with another configuration: {', '.join(changed[:3])}"
                    f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}; choose another with --set run_dir=..., or delete it"
                )
        staging = file.with_suffix(".partial")
        staging.write_text(json.dumps(self._config.model_dump(mode="json"), indent=1))
        staging.replace(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        raise ConfigError(f"{file} is damaged: delete it if the run is not needed") from None
    return value
