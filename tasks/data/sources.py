"""Where the files of a published data set come from: a path, a folder of REPEXP_DATA, or the Hugging Face hub.

    source = Source(task="gsm8k", key="task.gsm8k", folder="gsm8k", config=config.gsm8k)
    file = source.file("train.parquet", "train-*.parquet", "main/train-*.parquet")   # a tasks.data.files.DataFile

`path` is final where it is set: a directory, or one file. Else the folder is looked into, then the hub at a pinned
revision: its local cache first, the network only where the cache lacks the file. What is found nowhere is one TaskError
that says which file to put where."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.base import TaskError
from tasks.config import SourceConfig
from tasks.data.files import DataFile

__all__ = ["DATA_VARIABLE", "DataSource"]

DATA_VARIABLE = "REPEXP_DATA"
_COMMIT = re.compile("[0-9a-f]{40}")
_REACH_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """The files of one data set. `key` is where `config` stands in the configuration, `folder` its place under
    REPEXP_DATA."""

    task: str
    key: str
    folder: str
    config: SourceConfig

    def file(self, name: str, *globs: str) -> DataFile:
        """The file `name`, else the first by name that matches one of `globs` (other names, the hub's layout).

        Raises TaskError where it is nowhere: where it was looked for, and where to put it.
        """
        wanted = (name, *globs)
        if self.config.path is not None:
            given = Path(self.config.path).expanduser()
            found = given if given.is_file() else _first_match(given, wanted)
            if found is None:
                raise TaskError(
                    f"task {self.task}: no file {name} in {given}: put it there, or set {self.key}.path to the directory that has it"
                )
            return DataFile(task=self.task, path=found)
        folder = self._folder()
        found = (_first_match(folder, wanted) if folder else None) or self._from_hub(name, wanted)
        return DataFile(task=self.task, path=found)

    def _folder(self) -> Path | None:
        data = os.environ.get(DATA_VARIABLE)
        return Path(data).expanduser() / self.folder if data else None

    def _from_hub(self, name: str, wanted: Sequence[str]) -> Path:
        hub, revision = self.config.hub, self.config.revision
        if hub is None:
            raise self._nowhere(name, f"{self.key}.hub is not set")
        found = _first_match(_cached(hub, revision, wanted), wanted) if _COMMIT.fullmatch(revision) else None
        if found is not None:
            return found
        try:
            found = _first_match(_fetched(hub, revision, wanted), wanted)
        except Exception as error:  # of the hub's client or of the transport below it, whose classes change with its version
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise self._nowhere(name, f"{hub} at {revision} cannot be had from the hub: {reason}") from None
        if found is None:
            raise self._nowhere(name, f"{hub} at {revision} has none of {', '.join(wanted)}")
        return found

    def _nowhere(self, name: str, about_the_hub: str) -> TaskError:
        return TaskError(
            f"task {self.task}: no file {name}: put it in a directory and set {self.key}.path to that, or {DATA_VARIABLE} to the directory "
            f"whose folder {self.folder} it is; {about_the_hub}"
        )


def _first_match(directory: Path | None, wanted: Sequence[str]) -> Path | None:
    if directory is None:
        return None
    return next((match for pattern in wanted for match in sorted(directory.glob(pattern)) if match.is_file()), None)


def _cached(hub: str, revision: str, wanted: Sequence[str]) -> Path | None:
    """What the local cache has of that commit."""
    from huggingface_hub import snapshot_download  # here, because a verifier process makes tasks and reads no file
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(wanted), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _fetched(hub: str, revision: str, wanted: Sequence[str]) -> Path:
    """The hub's files that match, fetched into the cache; those that are there are not fetched again."""
    from huggingface_hub import constants, get_session, snapshot_download

    get_session().head(constants.ENDPOINT, timeout=_REACH_TIMEOUT_S)  # the client itself tries for half a minute and says so six times
    return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(wanted)))
