"""Checkpoints: a directory that counts only once its `manifest.json` exists, which has sizes and checksums.

    manager = CheckpointManager("file:///data/runs/a/checkpoints", keep=2)       # a path, or any URI of pyarrow.fs
    files = manager.save(step, "learner", learner.save)                          # in the process that owns the state
    files += manager.save(step, "bonus", bonus.save)
    files += [manager.add(step, "learner/policy/README.md", text)]
    manager.commit(step, files, meta)                                            # the controller, once all parts exist

    step = manager.latest()
    meta = manager.meta(step)
    manager.restore(step, "learner", learner.load)                               # first checks every file of the part

A part is written to and read from a plain local directory. Remote storage is copied from and to. Formats are
safetensors, Arrow and JSON, so loading a checkpoint never runs code from it.

The manifest is written last and removed first. So if a process is killed or the disk is full, every checkpoint that
counts is complete: a step that is being written does not count yet, and one that is being removed no longer does."""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs
from safetensors import SafetensorError

MANIFEST = "manifest.json"
PROBE = "can_be_written"
FORMAT_VERSION = 1
_STEP_DIRECTORY = re.compile(r"step_(\d{6,})")
_CHUNK_BYTES = 1 << 22


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written. The message names the file and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a checkpoint: its path relative to the directory, its size in bytes, the CRC-32 of its content."""

    path: str
    size_bytes: int
    crc32: int


class CheckpointManager:
    """Writes, lists, verifies and prunes the checkpoints of one run. Its only state is an address."""

    def __init__(self, uri: str, *, keep: int, keep_every: int = 0) -> None:
        """Keep the newest `keep`, and forever those whose step is a multiple of `keep_every` (0: none)."""
        self.uri = uri
        self._keep = keep
        self._keep_every = keep_every

    def save(self, step: int, part: str, write: Callable[[Path], None]) -> list[FileEntry]:
        """Have `write(directory)` put the files of one part into the checkpoint of `step`. Returns their entries. A
        step that is written again does not count until it is committed again. Raises CheckpointError if storage fails.
        What was written of the step is then removed, so that a later save has the space."""
        with self._giving_up_whole(step):
            filesystem, target = self._location(_name(step), part)
            self._remove_manifest(step)
            if _is_local(filesystem):
                shutil.rmtree(target, ignore_errors=True)
                Path(target).mkdir(parents=True)
                write(Path(target))
                return _entries(Path(target), part)
            with tempfile.TemporaryDirectory() as staging:
                write(Path(staging))
                filesystem.create_dir(target, recursive=True)
                filesystem.delete_dir_contents(target)
                fs.copy_files(staging, target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
                return _entries(Path(staging), part)

    def add(self, step: int, path: str, text: str) -> FileEntry:
        """Write a small file into a part that was saved, and return its entry. Raises CheckpointError."""
        content = text.encode()
        with self._giving_up_whole(step):
            filesystem, target = self._location(_name(step), path)
            filesystem.create_dir(posixpath.dirname(target), recursive=True)
            with filesystem.open_output_stream(target) as stream:
                stream.write(content)
        return FileEntry(path=path, size_bytes=len(content), crc32=zlib.crc32(content))

    def commit(self, step: int, files: Sequence[FileEntry], meta: dict[str, Any]) -> None:
        """Make the checkpoint of `step` count, then remove older complete ones that are not kept, and older incomplete
        ones. Raises CheckpointError if storage fails. If only the removal failed, the new checkpoint counts."""
        manifest = {"format": FORMAT_VERSION, "step": step, "files": [asdict(file) for file in files], "meta": meta}
        with self._giving_up_whole(step):
            filesystem, path = self._location(_name(step), MANIFEST)
            with filesystem.open_output_stream(path + ".partial") as stream:
                stream.write(json.dumps(manifest).encode())
            filesystem.move(path + ".partial", path)
        self._prune(step)

    def require_writable(self) -> None:
        """Write a small file and remove it. Raises CheckpointError if that fails."""
        filesystem, probe = self._location(PROBE)
        try:
            filesystem.create_dir(posixpath.dirname(probe), recursive=True)
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"can be written")
            filesystem.delete_file(probe)
        except OSError as error:
            raise CheckpointError(
                f"{self.uri} cannot be written ({_reason(error)}): let this process write there, or choose another place"
            ) from None

    def truncate(self, after_step: int) -> None:
        """Remove the checkpoints of later steps, complete or not, because a resumed run replaces that history."""
        self._remove(step for step in self._all_steps() if step > after_step)

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, oldest first."""
        filesystem, root = self._location()
        steps = self._all_steps()
        found = filesystem.get_file_info([posixpath.join(root, _name(step), MANIFEST) for step in steps])
        return [step for step, info in zip(steps, found, strict=True) if info.type == fs.FileType.File]

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def meta(self, step: int) -> dict[str, Any]:
        """Return what the controller committed with the checkpoint."""
        return dict(self._manifest(step)["meta"])

    def restore(self, step: int, part: str, read: Callable[[Path], None]) -> None:
        """Verify every file of one part, then have `read(directory)` load it. `part` may be a folder within one:
        "learner/policy". Raises CheckpointError naming a damaged file."""
        files = [FileEntry(**file) for file in self._manifest(step)["files"] if file["path"].startswith(f"{part}/")]
        if not files:
            raise CheckpointError(f"the checkpoint of step {step} in {self.uri} has no part '{part}'")
        with self._local_copy(step, part) as checkpoint:
            for file in files:
                path = checkpoint / file.path
                if not path.is_file():
                    raise CheckpointError(f"{path} is missing: {self._fix(step)}")
                if path.stat().st_size != file.size_bytes or _crc32(path) != file.crc32:
                    raise CheckpointError(f"{path} is damaged (size or checksum differs from the manifest): {self._fix(step)}")
            read(checkpoint / part)

    def _fix(self, step: int) -> str:
        return f"delete {self._address(step)} to resume from the checkpoint before it"

    def _manifest(self, step: int) -> dict[str, Any]:
        filesystem, path = self._location(_name(step), MANIFEST)
        try:
            with filesystem.open_input_file(path) as file:
                manifest: dict[str, Any] = json.loads(file.read())
        except FileNotFoundError:
            raise CheckpointError(f"there is no complete checkpoint of step {step} in {self.uri}") from None
        except ValueError:
            raise CheckpointError(f"the manifest of step {step} is damaged: {self._fix(step)}") from None
        if (found := manifest.get("format")) != FORMAT_VERSION:
            raise CheckpointError(f"checkpoint format {found} of step {step} is not {FORMAT_VERSION}, which this version reads")
        return manifest

    @contextmanager
    def _local_copy(self, step: int, part: str) -> Iterator[Path]:
        filesystem, source = self._location(_name(step))
        if _is_local(filesystem):
            yield Path(source)
            return
        with tempfile.TemporaryDirectory() as staging:
            target = Path(staging) / part
            target.mkdir(parents=True)
            origin, here = posixpath.join(source, part), fs.LocalFileSystem()
            with suppress(FileNotFoundError):  # what is missing is named by the verification
                fs.copy_files(origin, str(target), source_filesystem=filesystem, destination_filesystem=here)
            yield Path(staging)

    def _prune(self, newest: int) -> None:
        complete = self.steps()
        kept = {*complete[-self._keep :], *(step for step in complete if self._keep_every and step % self._keep_every == 0)}
        self._remove(step for step in self._all_steps() if step < newest and step not in kept)

    def _remove(self, steps: Iterable[int]) -> None:
        """Remove the checkpoints of `steps`, manifest first. A rest that stays is removed next time."""
        for step in steps:
            try:
                self._remove_manifest(step)
                filesystem, path = self._location(_name(step))
                with suppress(FileNotFoundError):
                    filesystem.delete_dir(path)
            except OSError as error:
                why = f"could not be removed ({_reason(error)}): delete it, or let this process write there"
                raise CheckpointError(f"{self._address(step)} {why}") from error

    def _remove_manifest(self, step: int) -> None:
        filesystem, path = self._location(_name(step), MANIFEST)
        with suppress(FileNotFoundError):
            filesystem.delete_file(path)

    @contextmanager
    def _giving_up_whole(self, step: int) -> Iterator[None]:
        """Remove what was written of `step` if storage fails, and say so in one line."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (OSError, SafetensorError)) and "(os error " not in str(error):  # as libraries in Rust say it
                raise
            with suppress(CheckpointError):
                self._remove([step])
            raise CheckpointError(
                f"{self._address(step)} could not be written ({_reason(error)}): free space there or set checkpoint.storage to "
                "another place; the checkpoints before it are untouched"
            ) from error

    def _all_steps(self) -> list[int]:
        filesystem, root = self._location()
        found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return sorted(int(match[1]) for info in found if (match := _STEP_DIRECTORY.fullmatch(info.base_name)))

    def _address(self, step: int) -> str:
        """Return where the checkpoint of `step` lies, as a person writes it: without the options of a URI."""
        place = self.uri.partition("?")[0] if "://" in self.uri else self.uri
        return f"{place}/{_name(step)}"

    def _location(self, *names: str) -> tuple[fs.FileSystem, str]:
        """Return the file system, and the path of `names` within the checkpoints' directory there."""
        if "://" not in self.uri:
            return fs.LocalFileSystem(), posixpath.join(str(Path(self.uri).absolute()), *names)
        try:
            filesystem, root = fs.FileSystem.from_uri(self.uri)
        except (ValueError, OSError, ImportError) as error:
            raise CheckpointError(f"{self.uri} is no place for checkpoints ({_reason(error)}): set checkpoint.storage") from None
        return filesystem, posixpath.join(root, *names)


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _is_local(filesystem: fs.FileSystem) -> bool:
    return isinstance(filesystem, fs.LocalFileSystem)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def _entries(directory: Path, part: str) -> list[FileEntry]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [FileEntry(path=f"{part}/{path.relative_to(directory)}", size_bytes=path.stat().st_size, crc32=_crc32(path)) for path in files]


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
