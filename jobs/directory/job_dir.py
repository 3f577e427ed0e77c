"""The directory of one job: it serves one process at a time, and keeps one configuration. Entering it raises UserError
where it is in use, or has another configuration."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import BaseModel

from jobs.configuration.files import changed_keys
from jobs.configuration.user_error import UserError
from jobs.directory.atomic import replacing

LOCK, CONFIG = "run.lock", "config.json"


class JobDirectory:
    """The lock and the configuration of a job's directory. Subclasses know what lies in it."""

    def __init__(self, path: str, config: BaseModel, *, changeable: Sequence[str], kind: str, option: str) -> None:
        """`kind` and `option` tell people in messages what the directory is and how to choose another one."""
        self._config, self._changeable, self._kind = config, changeable, kind
        self._elsewhere = f"choose another with {option}"
        self.path = Path(path).absolute()
        self._lock: IO[str] | None = None

    def has_begun(self) -> bool:
        """Return whether there is anything to lose: an unused directory takes any configuration."""
        return True

    def __enter__(self) -> Self:
        if self.path.is_dir() and any(self.path.iterdir()) and not any((self.path / name).exists() for name in (LOCK, CONFIG)):
            raise UserError(f"{self._kind} {self.path} is not empty and holds no run: {self._elsewhere}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / LOCK, "a+")
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._acquire(self._lock)
            self._check_identity()
        except BaseException as error:
            self._lock.close()
            if isinstance(error, OSError):
                raise self._unusable(error) from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._lock.close()

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"{self._kind} {self.path} cannot be used: {error.strerror}; {self._elsewhere}")

    def _acquire(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UserError(f"{self._kind} {self.path} is in use by process {owner}: stop it, or {self._elsewhere}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _check_identity(self) -> None:
        file = self.path / CONFIG
        if file.exists() and self.has_begun():
            changed = changed_keys(read_json(file), self._config, self._changeable)
            if changed:
                raise UserError(
                    f"{self._kind} {self.path} belongs to a run with another configuration: {', '.join(changed[:3])}"
                    f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}; {self._elsewhere}, or delete it"
                )
        with replacing(file) as staging:
            staging.write_text(json.dumps(self._config.model_dump(mode="json"), indent=1))


def read_json(file: Path) -> dict[str, Any]:
    """Return the record in `file`. Raises UserError where it is not JSON, or no record."""
    try:
        record = json.loads(file.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{file} is damaged: delete it if the run is not needed")
    return record
