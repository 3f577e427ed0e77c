"""What of a directory a job takes along."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from jobs import submit as command
from jobs.cluster.package import commit, is_excluded, select
from jobs.configuration.user_error import UserError
from tests.jobs.runs_fixture import FakeClient
from tests.jobs.submit_fixture import ADDRESS, connected, make_tree, refusal


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    return make_tree(tmp_path / "tree", monkeypatch)


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    return connected(monkeypatch)


def test_data_runs_environments_and_caches_stay_here(tree):
    assert sorted(select(tree).sizes) == ["configs/mine.toml", "jobs/data/kept.py", "jobs/train.py"]
    assert sorted(select(tree, ["*.toml", "/jobs/data"]).sizes) == ["jobs/train.py"]


def test_what_git_ignores_stays_here_and_new_files_go_along(tree):
    (tree / ".gitignore").write_text("*.secret\n")
    (tree / "jobs/key.secret").write_text("x")
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True, timeout=30)
    assert sorted(select(tree).sizes) == [".gitignore", "configs/mine.toml", "jobs/data/kept.py", "jobs/train.py"]


def test_ray_s_own_packaging_would_send_what_git_hides_and_leave_out_what_is_committed(tree, tmp_path):
    """Why `jobs.submit` makes the package itself: Ray reads the .gitignore files of the tree and asks git nothing."""
    from ray._private.runtime_env.packaging import create_package

    subprocess.run(["git", "init", "-q"], cwd=tree, check=True, timeout=30)
    (tree / ".gitignore").write_text("*.bin\n")
    (tree / ".git/info/exclude").write_text("token.txt\n")
    (tree / "jobs/token.txt").write_text("secret")
    (tree / "jobs/table.bin").write_text("committed in spite of .gitignore")
    subprocess.run(["git", "add", "-f", "jobs/table.bin"], cwd=tree, check=True, timeout=30)
    create_package(str(tree), tmp_path / "ray.zip", include_gitignore=True, excludes=[".git"])
    rays, ours = set(zipfile.ZipFile(tmp_path / "ray.zip").namelist()), set(select(tree).sizes)
    assert "jobs/token.txt" in rays - ours
    assert "jobs/table.bin" in ours - rays
    assert {"runs/a/status.json", ".venv/bin/repexp"} <= rays - ours


def git(tree: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=tree, check=True, timeout=30, capture_output=True)


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo \"fatal: detected dubious ownership in repository at 'X'\" >&2; printf 'call:\\n\\n\\tgit config X\\n' >&2; exit 128",
            "git config X",
        ),
        ("echo 'fatal: index file corrupt' >&2; exit 128", "fatal: index file corrupt"),
        ("echo 'fatal: not a git repository' >&2; exit 128", "fatal: not a git repository"),
        ("exit 3", "git ended with exit code 3"),
        (None, "git cannot be run (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("at", [".git", "../.git"])
def test_where_git_fails_nothing_is_sent(tree, tmp_path, client, capsys, monkeypatch, script, said, at):
    (tree / at).mkdir()
    (tree / "jobs/key.secret").write_text("x")
    if script is not None:
        program(tmp_path / "bin", "git", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine")
    assert f"git does not say which files of {tree} are to stay here, so nothing is sent: " in line and said in line
    assert not client.jobs


def test_a_gitignore_in_utf_16_is_a_failure_for_git_ignores_nothing_that_it_names(tree, client, capsys):
    git(tree, "init", "-q")
    (tree / "jobs/key.secret").write_text("x")
    (tree / ".gitignore").write_text("*.secret\n", encoding="utf-16")
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS)
    assert "nothing is sent: .gitignore is not UTF-8" in line and "save it as UTF-8" in line
    assert not client.jobs


def test_a_gitignore_that_git_does_not_read_is_a_failure(tree, capsys):
    git(tree, "init", "-q")
    (tree / "patterns").write_text("*.secret\n")
    (tree / ".gitignore").symlink_to("patterns")
    assert "nothing is sent: warning: unable to access '.gitignore'" in refusal(capsys, "configs/mine.toml", "--address", ADDRESS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_checkout_of_somebody_else_is_refused_in_gits_own_words(tree, client, capsys, monkeypatch):
    git(tree, "init", "-q")
    for name in ("SUDO_UID", "GIT_TEST_ASSUME_DIFFERENT_OWNER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    os.chown(tree, 54321, 54321)
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine")
    assert f"dubious ownership in repository at '{tree}'" in line and f"git config --global --add safe.directory {tree}" in line


def test_a_git_that_does_not_answer_is_given_up(tree, tmp_path, capsys, monkeypatch):
    (tree / ".git").mkdir()
    program(tmp_path / "bin", "git", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("jobs.cluster.package.GIT_TIMEOUT_S", 0.2)
    assert "git did not answer within 0.2 s" in refusal(capsys, "configs/mine.toml", "--address", ADDRESS)


def test_without_any_git_and_outside_of_it_all_files_are_sent(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sorted(select(tree).sizes) == ["configs/mine.toml", "jobs/data/kept.py", "jobs/train.py"]


def test_the_commit_is_named_from_the_first_one_on(tree):
    git(tree, "init", "-q")
    assert commit(tree) == "unknown"
    git(tree, "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "first")
    assert len(commit(tree)) == len("0123456789ab-dirty") and commit(tree).endswith("-dirty")


@pytest.mark.parametrize("in_git", [False, True])
@pytest.mark.parametrize("name", [b"caf\xe9.py", b"\xff", b"jobs/\xc3(.txt", b"two words \x80"])
def test_a_name_that_no_archive_can_hold_is_refused_with_the_flag_that_leaves_it_out(tree, client, capsys, in_git, name):
    if in_git:
        git(tree, "init", "-q")
    (tree / os.fsdecode(name)).write_text("x")
    arguments = ["configs/mine.toml", "--address", ADDRESS, "--run", "mine"]
    line = refusal(capsys, *arguments)
    assert "is not UTF-8, and no archive can hold it: rename the file, or leave it out with --exclude " in line
    words = subprocess.run(["sh", "-c", f"printf %s {line.rpartition('--exclude ')[2]}"], capture_output=True, text=True, check=True)
    assert command.main([*arguments, "--exclude", words.stdout]) == 0
    capsys.readouterr()


def test_names_in_utf_8_and_with_odd_characters_are_sent(tree, tmp_path):
    names = ["naïve.py", "数.txt", "a b.txt", "new\nline", "quote'\".txt", "[x].txt", "back\\slash"]
    for name in names:
        (tree / name).write_text("x")
    everywhere = set(select(tree).sizes)
    git(tree, "init", "-q")
    assert set(select(tree).sizes) == everywhere >= set(names)
    select(tree).write(tmp_path / "package.zip", extra={})


@pytest.mark.parametrize("in_git", [False, True])
def test_what_is_left_out_is_named(tree, tmp_path, client, capsys, in_git):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "notes.txt").write_text("x")
    links = {"corpus": outside, "jobs/inner": outside / "deep", "nothing": tmp_path / "gone", "notes.txt": outside / "notes.txt"}
    links |= {"to_data": tree / "data/big.bin", "runs_link": tree / "runs", "again.toml": Path("configs/mine.toml")}
    for name, target in links.items():
        (tree / name).symlink_to(target)
    os.mkfifo(tree / "pipe")
    if in_git:
        git(tree, "init", "-q")
        git(tree, "init", "-q", "nested")
        (tree / "nested/file").write_text("x")
    package = select(tree)
    assert {"notes.txt", "again.toml"} <= package.sizes.keys()
    expected = {"corpus", "jobs/inner", "nothing", "to_data", "runs_link"} | ({"nested"} if in_git else {"pipe"})
    assert set(package.left_out) == expected
    assert select(tree, ["corpus", "/jobs/inner", "*_*", "nothing", "nested", "pipe"]).left_out == []
    assert command.main(["configs/mine.toml", "--address", ADDRESS, "--run", "mine"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out ")]
    assert all(name in line for name in expected)


def test_a_link_does_not_send_what_git_ignores(tree):
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("*.secret\n")
    (tree / "jobs/key.secret").write_text("x")
    (tree / "jobs/key.py").symlink_to("key.secret")
    (tree / "jobs/head").symlink_to("../.git/HEAD")
    package = select(tree)
    assert package.left_out == ["jobs/head", "jobs/key.py"] and not {"jobs/key.py", "jobs/head"} & package.sizes.keys()


@pytest.mark.parametrize("target", ["data", "../private", "runs/a"])
@pytest.mark.parametrize("place", ["papers", "jobs/papers"])
def test_a_link_where_a_tracked_directory_was_sends_nothing_behind_it(tree, tmp_path, place, target):
    (tree / place / "deep").mkdir(parents=True)
    behind = tree / target
    (behind / "deep").mkdir(parents=True, exist_ok=True)
    for name in ("big.bin", "status.json", "deep/note.txt"):
        (tree / place / name).write_text("tracked")
        (behind / name).write_text("private")
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("/data\n/runs\n")
    git(tree, "add", "-f", place, "jobs/train.py")
    shutil.rmtree(tree / place)
    (tree / place).symlink_to(behind)
    package = select(tree)
    assert not [path for path in package.sizes if path.startswith(place)]
    assert place in package.left_out


def test_many_paths_that_are_left_out_are_counted(tree):
    for number in range(20):
        (tree / f"link{number:02}").symlink_to(tree / "jobs")
    (tree / "a\x1b[2J").symlink_to(tree / "jobs")
    named = select(tree).named_left_out
    assert named.endswith(" and 13 more") and "link06" in named and "link07" not in named and "\x1b" not in named


def test_a_file_that_cannot_be_read_is_named(tree, tmp_path):
    package = select(tree)
    (tree / "jobs/train.py").unlink()
    (tree / "jobs/train.py").mkdir()
    with pytest.raises(UserError, match=r"train\.py cannot be read \(Is a directory\)"):
        package.write(tmp_path / "package.zip", extra={})


@pytest.mark.parametrize("pattern", ["jobs", "/jobs/", "./jobs", "*", "train.py"])
def test_a_job_is_not_sent_without_its_code(tree, client, capsys, pattern):
    line = refusal(capsys, "configs/mine.toml", "--address", ADDRESS, "--run", "mine", "--exclude", pattern)
    assert "jobs/train.py would not be sent" in line and not client.jobs


@pytest.mark.parametrize(
    ("path", "pattern", "excluded"),
    [
        ("jobs/__pycache__/a.pyc", "__pycache__", True),
        ("data/a", "/data", True),
        ("bonus/data/a", "/data", False),
        ("bonus/data/a", "bonus/data/", True),
        ("bonus/database", "bonus/data", False),
        ("a/b.npy", "*.npy", True),
        ("configs/a.toml", "/configs/*.toml", True),
        ("notes/a", "./notes", True),
        ("notes/a", "./notes/", True),
        ("jobs/notes/a", "./notes", False),
    ],
)
def test_patterns_name_files_and_directories(path, pattern, excluded):
    assert is_excluded(path, [pattern]) is excluded


def test_a_package_that_is_too_large_is_refused_with_what_is_largest(tree):
    (tree / "models").mkdir()
    (tree / "models/weights.bin").write_bytes(bytes(3 << 20))
    (tree / "notes.txt").write_bytes(bytes(2 << 20))
    package = select(tree)
    package.check_size()
    with pytest.raises(UserError) as refused:
        package.check_size(4 << 20)
    assert "is 5.0 MiB, 4.0 MiB at most can be sent: leave out with --exclude models (3.0 MiB), notes.txt (2.0 MiB)" in str(refused.value)


def test_the_same_files_are_the_same_archive_whenever_it_is_made(tree, tmp_path):
    select(tree).write(tmp_path / "first.zip", extra={})
    (tree / "jobs/train.py").touch()
    select(tree).write(tmp_path / "second.zip", extra={})
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
