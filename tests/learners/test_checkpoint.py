from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

import learners.checkpoint
from learners.checkpoint import MANIFEST, CheckpointError, CheckpointManager, FileEntry

META = {"step": 7, "cursor": {"train": [3, 1]}, "name": "réponse", "nothing": None}


def writer(content: str) -> Callable[[Path], None]:
    """Writes a file and a nested one."""

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
    """Both parts of a checkpoint, without its manifest."""
    content = content if content is not None else f"content {step}"
    return manager.save(step, "learner", writer(content)) + manager.save(step, "encoder", writer(f"{content} e"))


def complete(manager: CheckpointManager, step: int, content: str | None = None) -> None:
    manager.commit(step, save(manager, step, content), {**META, "step": step})


@pytest.fixture(params=["path", "file-uri", "remote"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where checkpoints go: a plain path, a URI, and storage that is copied from and to."""
    (tmp_path / "run").mkdir()
    if request.param == "remote":
        monkeypatch.setattr(learners.checkpoint, "_is_local", lambda filesystem: False)
    return str(tmp_path / "run") if request.param == "path" else (tmp_path / "run").as_uri()


@pytest.fixture
def manager(uri: str) -> CheckpointManager:
    return CheckpointManager(uri, keep=2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory `manager` writes to."""
    return tmp_path / "run"


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


def test_a_manifest_half_written_does_not_count(manager: CheckpointManager, root: Path) -> None:
    save(manager, 4)
    (root / "step_000004" / f"{MANIFEST}.partial").write_text('{"format": 1')
    assert manager.steps() == []
    complete(manager, 4)
    assert read_back(manager, 4) == "content 4"


def test_the_manifest_lists_every_file_with_size_and_checksum(manager: CheckpointManager, root: Path) -> None:
    complete(manager, 1)
    manifest = json.loads((root / "step_000001" / MANIFEST).read_text())
    on_disk = {str(path.relative_to(root / "step_000001")) for path in (root / "step_000001").rglob("*") if path.is_file()}
    assert {file["path"] for file in manifest["files"]} == on_disk - {MANIFEST}
    entry = next(file for file in manifest["files"] if file["path"] == "learner/weights")
    assert entry == {"path": "learner/weights", "size_bytes": 9, "crc32": 0xDC9FFFAE}


def test_the_newest_keep_are_kept(manager: CheckpointManager, root: Path) -> None:
    for step in (1, 2, 3, 12):
        complete(manager, step)
    assert manager.steps() == [3, 12]
    assert sorted(path.name for path in root.iterdir()) == ["step_000003", "step_000012"]
    assert [read_back(manager, step) for step in (3, 12)] == ["content 3", "content 12"]


def test_older_ones_stay_until_the_newer_one_is_complete(manager: CheckpointManager) -> None:
    complete(manager, 1)
    complete(manager, 2)
    save(manager, 3)
    assert manager.steps() == [1, 2]


def test_older_incomplete_ones_are_removed_and_newer_ones_ignored(manager: CheckpointManager, root: Path) -> None:
    save(manager, 1)
    save(manager, 9)  # of an earlier attempt that got further
    complete(manager, 2)
    assert not (root / "step_000001").exists()
    assert (root / "step_000009").exists()
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


def test_a_failing_write_leaves_nothing_that_counts(manager: CheckpointManager) -> None:
    def write(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        manager.save(1, "learner", write)
    assert manager.steps() == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.write_text("content 8"), "is damaged"),  # same size
        (lambda path: path.write_text("content"), "is damaged"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["altered", "cut off", "missing"],
)
def test_a_damaged_file_is_named_with_the_mend(
    manager: CheckpointManager, uri: str, root: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    complete(manager, 6)
    complete(manager, 7)
    damage(root / "step_000007" / "learner" / "weights")
    with pytest.raises(CheckpointError, match=rf"learner/weights {complaint}") as caught:
        manager.restore(7, "learner", must_not_read)
    assert f"delete {uri}/step_000007 to resume from the checkpoint before it" in str(caught.value)
    assert read_back(manager, 7, "encoder") == "content 7 e"
    fs.LocalFileSystem().delete_dir(str(root / "step_000007"))
    assert read_back(manager, manager.latest() or 0) == "content 6"


def test_a_damaged_manifest_is_named_with_the_mend(manager: CheckpointManager, root: Path) -> None:
    complete(manager, 7)
    (root / "step_000007" / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest of step 7 is damaged: delete .*step_000007"):
        manager.meta(7)


def test_another_format_is_refused_with_both_numbers(manager: CheckpointManager, root: Path) -> None:
    complete(manager, 7)
    path = root / "step_000007" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2 of step 7 is not 1"):
        manager.restore(7, "learner", must_not_read)


def test_a_part_that_was_not_saved_is_named(manager: CheckpointManager) -> None:
    complete(manager, 7)
    with pytest.raises(CheckpointError, match=r"step 7 .* has no part 'learn'"):
        manager.restore(7, "learn", must_not_read)


def test_other_files_in_the_directory_are_no_checkpoints(manager: CheckpointManager, root: Path) -> None:
    complete(manager, 7)
    (root / "step_9").mkdir()
    (root / "notes.txt").write_text("mine")
    complete(manager, 8)
    complete(manager, 9)
    assert manager.steps() == [8, 9]
    assert (root / "step_9").exists() and (root / "notes.txt").exists()
