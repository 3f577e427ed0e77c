from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs
from safetensors import SafetensorError

import learners.checkpoint
from learners.checkpoint import MANIFEST, CheckpointError, CheckpointManager, FileEntry
from tests.s3_server import S3Server

pytestmark = pytest.mark.whole

META = {"step": 7, "cursor": {"train": [3, 1]}, "name": "réponse", "nothing": None}


def writer(content: str) -> Callable[[Path], None]:
    """Return a function that writes a file and a nested one."""

    def write(directory: Path) -> None:
        (directory / "weights").write_text(content)
        (directory / "deep" / "er").mkdir(parents=True)
        (directory / "deep" / "er" / "moments").write_text(content[::-1])

    return write


def read_back(manager: CheckpointManager, step: int, part: str = "learner") -> str:
    found: list[str] = []

    def read(directory: Path) -> None:
        assert (directory / "deep" / "er" / "moments").read_text() == (directory / "weights").read_text()[::-1]
        found.append((directory / "weights").read_text())

    manager.restore(step, part, read)
    assert len(found) == 1
    return found[0]


def must_not_read(directory: Path) -> None:
    pytest.fail(f"{directory} was read although it is damaged")


def save(manager: CheckpointManager, step: int, content: str | None = None) -> list[FileEntry]:
    """Write both parts of a checkpoint, without its manifest."""
    content = content if content is not None else f"content {step}"
    return manager.save(step, "learner", writer(content)) + manager.save(step, "encoder", writer(f"{content} e"))


def complete(manager: CheckpointManager, step: int, content: str | None = None) -> None:
    manager.commit(step, save(manager, step, content), {**META, "step": step})


@pytest.fixture(params=["path", "file-uri", "fsspec-uri", "s3-uri"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where checkpoints go: a plain path, a URI, a filesystem that is copied from and to, and an S3 server."""
    if request.param == "s3-uri":
        server: S3Server = request.getfixturevalue("s3_server")
        return server.uri(server.new_bucket(), "runs/a")
    root = tmp_path / "run"
    root.mkdir()
    return {"path": str(root), "file-uri": root.as_uri(), "fsspec-uri": f"fsspec+file://{root}"}[request.param]


@pytest.fixture
def manager(uri: str) -> CheckpointManager:
    return CheckpointManager(uri, keep=2)


class Store:
    """The directory that a manager writes to, as others see and change it. Paths are relative to it."""

    def __init__(self, uri: str) -> None:
        at, directory = fs.FileSystem.from_uri(uri)
        self._files = fs.SubTreeFileSystem(directory, at)

    def names(self) -> list[str]:
        return sorted(info.base_name for info in self._files.get_file_info(fs.FileSelector("")))

    def files(self, directory: str) -> set[str]:
        """Return the paths of all files below a directory, relative to it."""
        found = self._files.get_file_info(fs.FileSelector(directory, recursive=True))
        return {info.path.removeprefix(f"{directory}/") for info in found if info.type == fs.FileType.File}

    def read(self, path: str) -> str:
        with self._files.open_input_file(path) as file:
            return bytes(file.read()).decode()

    def write(self, path: str, text: str) -> None:
        with self._files.open_output_stream(path) as file:
            file.write(text.encode())

    def remove(self, path: str) -> None:
        self._files.delete_file(path)

    def make_directory(self, path: str) -> None:
        self._files.create_dir(path)

    def remove_directory(self, path: str) -> None:
        self._files.delete_dir(path)


@pytest.fixture
def root(uri: str) -> Store:
    """Return the directory that `manager` writes to."""
    return Store(uri if "://" in uri else Path(uri).as_uri())


def test_what_was_saved_is_restored(manager: CheckpointManager) -> None:
    complete(manager, 7)
    assert (manager.steps(), manager.latest()) == ([7], 7)
    assert read_back(manager, 7) == "content 7"
    assert read_back(manager, 7, "encoder") == "content 7 e"
    assert manager.meta(7) == META


def test_another_process_finds_it_by_its_address(manager: CheckpointManager, uri: str) -> None:
    complete(manager, 7)
    assert read_back(CheckpointManager(uri, keep=1), 7) == "content 7"


def test_before_the_first_checkpoint_there_is_none(manager: CheckpointManager, tmp_path: Path) -> None:
    for empty in (manager, CheckpointManager(str(tmp_path / "not made yet"), keep=1)):
        assert (empty.steps(), empty.latest()) == ([], None)


def test_a_checkpoint_counts_only_once_its_manifest_is_there(manager: CheckpointManager) -> None:
    complete(manager, 3)
    files = save(manager, 4)  # and the process is killed
    assert (manager.steps(), manager.latest()) == ([3], 3)
    for read in (lambda: manager.meta(4), lambda: manager.restore(4, "learner", must_not_read)):
        with pytest.raises(CheckpointError, match="no complete checkpoint of step 4"):
            read()
    manager.commit(4, files, META)
    assert manager.latest() == 4


def test_a_manifest_half_written_does_not_count(manager: CheckpointManager, root: Store) -> None:
    save(manager, 4)
    root.write(f"step_000004/{MANIFEST}.partial", '{"format": 1')
    assert manager.steps() == []
    complete(manager, 4)
    assert read_back(manager, 4) == "content 4"


def test_the_manifest_lists_every_file_with_size_and_checksum(manager: CheckpointManager, root: Store) -> None:
    complete(manager, 1)
    manifest = json.loads(root.read(f"step_000001/{MANIFEST}"))
    assert {file["path"] for file in manifest["files"]} == root.files("step_000001") - {MANIFEST}
    entry = next(file for file in manifest["files"] if file["path"] == "learner/weights")
    assert entry == {"path": "learner/weights", "size_bytes": 9, "crc32": 0xDC9FFFAE}


def test_a_file_that_is_added_is_guarded_as_part_of_its_part(manager: CheckpointManager, root: Store) -> None:
    files = save(manager, 7)
    files.append(manager.add(7, "learner/deep/README.md", "réponse\n"))
    manager.commit(7, files, META)
    assert read_back(manager, 7) == "content 7"
    added = "step_000007/learner/deep/README.md"
    assert root.read(added) == "réponse\n"
    root.write(added, "another\n")
    with pytest.raises(CheckpointError, match=r"README\.md is damaged"):
        manager.restore(7, "learner", must_not_read)


def test_the_newest_keep_are_kept(manager: CheckpointManager, root: Store) -> None:
    for step in (1, 2, 3, 12):
        complete(manager, step)
    assert manager.steps() == [3, 12]
    assert root.names() == ["step_000003", "step_000012"]
    assert [read_back(manager, step) for step in (3, 12)] == ["content 3", "content 12"]


def test_every_mth_is_kept_for_good_besides_the_newest(uri: str) -> None:
    manager = CheckpointManager(uri, keep=2, keep_every=4)
    for step in range(1, 12):
        complete(manager, step)
    assert manager.steps() == [4, 8, 10, 11]
    assert [read_back(manager, step) for step in manager.steps()] == [f"content {step}" for step in (4, 8, 10, 11)]


def test_on_resume_what_is_of_later_steps_is_removed(manager: CheckpointManager, root: Store) -> None:
    complete(manager, 3)
    complete(manager, 6)
    save(manager, 9)
    manager.truncate(after_step=5)
    assert root.names() == ["step_000003"]
    assert (manager.latest(), read_back(manager, 3)) == (3, "content 3")
    manager.truncate(after_step=0)
    assert manager.latest() is None


def test_older_ones_stay_until_the_newer_one_is_complete(manager: CheckpointManager) -> None:
    complete(manager, 1)
    complete(manager, 2)
    save(manager, 3)
    assert manager.steps() == [1, 2]


def test_older_incomplete_ones_are_removed_and_newer_ones_ignored(manager: CheckpointManager, root: Store) -> None:
    save(manager, 1)
    save(manager, 9)  # of an earlier attempt that got further
    complete(manager, 2)
    assert root.names() == ["step_000002", "step_000009"]
    assert (manager.steps(), manager.latest()) == ([2], 2)
    assert read_back(manager, 2) == "content 2"


def test_a_step_begun_before_a_crash_is_written_again(manager: CheckpointManager) -> None:
    complete(manager, 1)
    manager.save(2, "learner", writer("before the crash"))
    complete(manager, 2, "after the crash")
    assert manager.steps() == [1, 2]
    assert read_back(manager, 2) == "after the crash"


def test_a_complete_step_written_again_does_not_count_until_it_is_committed_again(manager: CheckpointManager) -> None:
    complete(manager, 1)
    complete(manager, 2, "once")
    files = manager.save(2, "learner", writer("twice"))  # killed here, old and new parts would be mixed
    assert manager.latest() == 1
    manager.commit(2, files + manager.save(2, "encoder", writer("twice e")), META)
    assert (read_back(manager, 2), read_back(manager, 2, "encoder")) == ("twice", "twice e")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as tokenizers say it
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_write_that_fails_is_named_with_the_mend_and_leaves_nothing(
    manager: CheckpointManager, uri: str, root: Store, error: Exception
) -> None:
    def write(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise error

    complete(manager, 1)
    manager.save(2, "learner", writer("content 2"))
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        manager.save(2, "encoder", write)
    assert str(caught.value).startswith(f"{uri.partition('?')[0]}/step_000002 could not be written (")
    assert "free space there or set checkpoint.storage" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is error
    assert root.names() == ["step_000001"]
    complete(manager, 2)
    assert (manager.steps(), read_back(manager, 2)) == ([1, 2], "content 2")


def test_a_bug_in_a_write_stays_what_it_is(manager: CheckpointManager) -> None:
    def write(directory: Path) -> None:
        raise KeyError("master/lm_head")

    with pytest.raises(KeyError):
        manager.save(1, "learner", write)
    assert manager.steps() == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda root, path: root.write(path, "content 8"), "is damaged"),  # same size
        (lambda root, path: root.write(path, "content"), "is damaged"),
        (lambda root, path: root.remove(path), "is missing"),
    ],
    ids=["altered", "cut off", "missing"],
)
def test_a_damaged_file_is_named_with_the_mend(
    manager: CheckpointManager, uri: str, root: Store, damage: Callable[[Store, str], None], complaint: str
) -> None:
    complete(manager, 6)
    complete(manager, 7)
    damage(root, "step_000007/learner/weights")
    with pytest.raises(CheckpointError, match=rf"learner/weights {complaint}") as caught:
        manager.restore(7, "learner", must_not_read)
    assert f"delete {uri.partition('?')[0]}/step_000007 to resume from the checkpoint before it" in str(caught.value)
    assert read_back(manager, 7, "encoder") == "content 7 e"
    root.remove_directory("step_000007")
    assert read_back(manager, manager.latest() or 0) == "content 6"


def test_a_damaged_manifest_is_named_with_the_mend(manager: CheckpointManager, root: Store) -> None:
    complete(manager, 7)
    root.write(f"step_000007/{MANIFEST}", "{")
    with pytest.raises(CheckpointError, match=r"manifest of step 7 is damaged: delete .*step_000007"):
        manager.meta(7)


def test_another_format_is_refused_with_both_numbers(manager: CheckpointManager, root: Store) -> None:
    complete(manager, 7)
    path = f"step_000007/{MANIFEST}"
    root.write(path, json.dumps({**json.loads(root.read(path)), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2 of step 7 is not 1"):
        manager.restore(7, "learner", must_not_read)


def test_a_part_that_was_not_saved_is_named(manager: CheckpointManager) -> None:
    complete(manager, 7)
    with pytest.raises(CheckpointError, match=r"step 7 .* has no part 'learn'"):
        manager.restore(7, "learn", must_not_read)


def test_other_files_in_the_directory_are_no_checkpoints(manager: CheckpointManager, root: Store) -> None:
    complete(manager, 7)
    root.make_directory("step_9")
    root.write("notes.txt", "mine")
    complete(manager, 8)
    complete(manager, 9)
    assert manager.steps() == [8, 9]
    assert {"step_9", "notes.txt"} <= set(root.names())


def test_an_address_that_is_no_place_is_refused_with_its_key(tmp_path: Path) -> None:
    for uri in ("nope://bucket/run", "fsspec+nope://bucket/run"):
        with pytest.raises(CheckpointError, match=rf"{uri.replace('+', '.')} is no place for checkpoints .*: set checkpoint.storage"):
            CheckpointManager(uri, keep=1).latest()


def test_a_store_without_files_holds_checkpoints(tmp_path: Path) -> None:
    uri = "fsspec+memory:///of-a-test"
    manager = CheckpointManager(uri, keep=2, keep_every=3)
    try:
        for step in range(1, 6):
            complete(manager, step)
        assert manager.steps() == [3, 4, 5]
        assert read_back(CheckpointManager(uri, keep=1), 5, "encoder") == "content 5 e"
        store = fsspec.filesystem("memory")
        store.pipe("/of-a-test/step_000005/learner/weights", b"content 6")
        with pytest.raises(CheckpointError, match="learner/weights is damaged"):
            manager.restore(5, "learner", must_not_read)
        store.rm("/of-a-test/step_000005/learner", recursive=True)
        with pytest.raises(CheckpointError, match="is missing"):
            manager.restore(5, "learner", must_not_read)
        manager.truncate(after_step=4)
        assert manager.latest() == 4
    finally:
        fsspec.filesystem("memory").rm("/of-a-test", recursive=True)


# ---- a process that is killed, a disk that is full ----


class Faults:
    """Calls `strike(kind)` at every change of the disk from the `first` on. The kind is "write" or "delete"."""

    def __init__(self, first: int, strike: Callable[[str], None]) -> None:
        self.num_changes = 0
        self._first = first
        self._strike = strike

    def change(self, kind: str) -> None:
        self.num_changes += 1
        if self.num_changes > self._first:
            self._strike(kind)


class FaultyDisk(fs.FSSpecHandler):
    """A local directory behind the interface of remote storage. Directories are removed file by file."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(LocalFileSystem())
        self._faults = faults

    def create_dir(self, path: str, recursive: bool) -> None:
        self._faults.change("write")
        super().create_dir(path, recursive)

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path)
        self._faults.change("delete")
        os.rmdir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        for entry in sorted(Path(path).iterdir()):
            if entry.is_dir():
                self.delete_dir(str(entry))
            else:
                self._faults.change("delete")
                entry.unlink()

    def delete_file(self, path: str) -> None:
        self._faults.change("delete")
        super().delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._faults.change("write")
        os.replace(src, dest)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._faults.change("write")
        stream = super().open_output_stream(path, metadata)
        self._faults.change("write")  # an empty file
        return stream


class FaultyCheckpoints(CheckpointManager):
    """Sends every change of a local directory through `faults`, including those of the parts it writes."""

    def __init__(self, directory: Path, faults: Faults, *, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(str(directory), keep=2)
        disk = FaultyDisk(faults)
        self._filesystem = fs.PyFileSystem(disk)
        self._faults = faults
        monkeypatch.setattr(learners.checkpoint, "_is_local", lambda filesystem: not remote)

        def remove_tree(target: str, ignore_errors: bool) -> None:
            assert ignore_errors
            if Path(target).exists():
                disk.delete_dir(target)

        if not remote:
            monkeypatch.setattr(learners.checkpoint.shutil, "rmtree", remove_tree)

    def _location(self, *names: str) -> tuple[fs.FileSystem, str]:
        return self._filesystem, os.path.join(self.uri, *names)

    def write_steps(self, *steps: int) -> None:
        for step in steps:
            files = []
            for part in ("learner", "encoder"):
                files += self.save(step, part, self._write(f"content {step}" + (" e" if part == "encoder" else "")))
            self.commit(step, files, {**META, "step": step})

    def _write(self, content: str) -> Callable[[Path], None]:
        def write(directory: Path) -> None:
            self._faults.change("write")
            (directory / "weights").write_text(content[:3])
            self._faults.change("write")
            writer(content)(directory)
            self._faults.change("write")

        return write


def assert_whole(manager: CheckpointManager, *, at_least: int) -> None:
    """Check that every checkpoint that counts can be restored."""
    assert (manager.latest() or 0) >= at_least
    for step in manager.steps():
        assert (read_back(manager, step), read_back(manager, step, "encoder")) == (f"content {step}", f"content {step} e")
        assert manager.meta(step)["step"] == step


def num_changes(directory: Path, *, remote: bool) -> int:
    """Return how often the disk changes while two checkpoints are written, each of which removes an older one, and
    one is written again."""
    complete_two(directory)
    faults = Faults(10**9, lambda kind: None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        FaultyCheckpoints(directory, faults, remote=remote, monkeypatch=monkeypatch).write_steps(3, 4, 4)
    shutil.rmtree(directory)
    return faults.num_changes


def complete_two(directory: Path) -> CheckpointManager:
    plain = CheckpointManager(str(directory), keep=2)
    complete(plain, 1)
    complete(plain, 2)
    return plain


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_whenever_the_process_is_killed_what_counts_is_whole(tmp_path: Path, remote: bool) -> None:
    changes = num_changes(tmp_path / "dry", remote=remote)
    assert changes > 50
    latest = set()
    for first in range(changes + 1):
        plain = complete_two(tmp_path / f"{first}")
        child = os.fork()
        if not child:
            faults = Faults(first, lambda kind: os.kill(os.getpid(), signal.SIGKILL))
            with pytest.MonkeyPatch.context() as monkeypatch:
                FaultyCheckpoints(tmp_path / f"{first}", faults, remote=remote, monkeypatch=monkeypatch).write_steps(3, 4, 4)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) is (first < changes)
        assert_whole(plain, at_least=2)
        latest.add(plain.latest())
        complete(plain, 5)
        complete(plain, 6)
        assert sorted(path.name for path in (tmp_path / f"{first}").iterdir()) == ["step_000005", "step_000006"]
        assert_whole(plain, at_least=6)
    assert latest == {2, 3, 4}


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("failing", ["write", "delete"])
def test_whenever_the_disk_fails_the_checkpoint_before_restores_and_a_later_save_works(tmp_path: Path, remote: bool, failing: str) -> None:
    def strike(kind: str) -> None:
        if kind == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    num_failures = 0
    for first in range(num_changes(tmp_path / "dry", remote=remote)):
        directory = tmp_path / f"{first}"
        plain = complete_two(directory)
        with pytest.MonkeyPatch.context() as monkeypatch:
            broken = FaultyCheckpoints(directory, Faults(first, strike), remote=remote, monkeypatch=monkeypatch)
            try:
                broken.write_steps(3, 4, 4)
            except CheckpointError as error:
                num_failures += 1
                assert str(directory) in str(error) and "No space left" in str(error) and "\n" not in str(error)
                assert ("free space there" if failing == "write" else "could not be") in str(error)
        assert_whole(plain, at_least=2)
        complete(plain, 5)
        assert_whole(plain, at_least=5)
    assert num_failures > 20
