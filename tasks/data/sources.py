"""Where the files of a published data set come from: a path, a folder of REPEXP_DATA, or the Hugging Face hub.

    source = DataSource(task="gsm8k", key="task.gsm8k", folder="gsm8k", config=config.gsm8k)
    file = source.file("train.parquet", "train-*.parquet", "main/train-*.parquet")   # a tasks.data.files.DataFile

If `path` is set, only that directory or file is used. Else the folder comes first, then the hub at a pinned revision:
its local cache, and the network only if the cache lacks the file. Otherwise one TaskError says what to put where."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import model_validator

from buffers.fields import LocalPath
from tasks.base import Section, TaskError
from tasks.data.files import DataFile

__all__ = ["DATA_VARIABLE", "DataSetConfig", "DataSource", "SourceConfig"]

DATA_VARIABLE = "REPEXP_DATA"
_COMMIT = re.compile("[0-9a-f]{40}")
_REACH_TIMEOUT_S = 10.0


class SourceConfig(Section):
    """Where the files of a published data set come from."""

    path: LocalPath | None = None
    """A directory of the files, or the one file that is needed. Unset: the task's folder in the directory that the
    environment variable REPEXP_DATA names, then the hub."""
    hub: str | None = None
    """A data set of the Hugging Face hub, OWNER/NAME, used for what is not on this machine. None: never ask the hub."""
    revision: str = "main"
    """Commit, branch or tag of `hub`. A commit never changes, so its files are taken from the local cache without
    asking the hub."""

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        is_another = self.hub not in (None, type(self).model_fields["hub"].default)
        if is_another and "revision" not in self.model_fields_set:
            raise ValueError(f'hub = "{self.hub}" needs a revision of its own: the default, {self.revision}, is of the default hub')
        return self


class DataSetConfig(SourceConfig):
    """Where a published data set comes from, and how its questions are posed."""

    instruction: str = "Let's think step by step and put the final answer within \\boxed{}."
    """Follows every question, on a line of its own. It is not part of the problem id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """The files of a data set. `key` is the place of `config` in the configuration, `folder` is in REPEXP_DATA."""

    task: str
    key: str
    folder: str
    config: SourceConfig

    def file(self, name: str, *globs: str) -> DataFile:
        """Return the file `name`, else the first match of `globs`, which are other names and the hub's layout. Raises
        TaskError if there is none; the message says where it was looked for and where to put it."""
        wanted = (name, *globs)
        if self.config.path is not None:
            given = Path(self.config.path)
            found = given if given.is_file() else _first_match(given, wanted)
            if found is None:
                raise TaskError(
                    f"task {self.task}: no file {name} in {given}: put it there, or set {self.key}.path to the directory that has it"
                )
            return DataFile(task=self.task, path=found)
        data = os.environ.get(DATA_VARIABLE)
        folder = Path(os.path.expanduser(data)) / self.folder if data else None
        found = (_first_match(folder, wanted) if folder else None) or self._from_hub(name, wanted)
        return DataFile(task=self.task, path=found)

    def _from_hub(self, name: str, wanted: Sequence[str]) -> Path:
        hub, revision = self.config.hub, self.config.revision
        if hub is None:
            raise self._nowhere(name, f"{self.key}.hub is not set")
        found = _first_match(_cached(hub, revision, wanted), wanted) if _COMMIT.fullmatch(revision) else None
        if found is not None:
            return found
        try:
            found = _first_match(_fetched(hub, revision, wanted), wanted)
        except Exception as error:  # classes of the hub's client and its transport, which change with the version
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
    """Return the directory of that commit in the local cache, if the cache has one."""
    from huggingface_hub import snapshot_download  # a verifier process makes tasks but reads no file
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(wanted), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _fetched(hub: str, revision: str, wanted: Sequence[str]) -> Path:
    """Fetch the files that match into the cache, unless they are there already, and return their directory."""
    from huggingface_hub import constants, get_session, snapshot_download

    get_session().head(constants.ENDPOINT, timeout=_REACH_TIMEOUT_S)  # the client alone would retry for half a minute
    return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(wanted)))
