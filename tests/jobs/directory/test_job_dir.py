from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.configuration.user_error import UserError
from jobs.directory.job_dir import CONFIG, LOCK, JobDirectory, read_json


class Means(BaseModel):
    threads: int = 1
    timeout_s: float = 5.0


class Settings(BaseModel):
    seed: int = 0
    size: int = 8
    name: str = "a"
    steps: int = 10
    depth: int = 2
    means: Means = Means()


class EmptyDirectory(JobDirectory):
    """One in which nothing is ever done."""

    def has_begun(self) -> bool:
        return False


def directory(path: Path, kind: type[JobDirectory] = JobDirectory, **settings: object) -> JobDirectory:
    return kind(
        str(path / "job"), Settings.model_validate(settings), changeable=("steps", "means"), kind="the directory", option="--out DIR"
    )


def refusal(path: Path, **settings: object) -> str:
    """What a person reads."""
    with pytest.raises(UserError) as caught, directory(path, **settings):
        pytest.fail("the directory was opened")
    line = str(caught.value)
    assert "\n" not in line
    assert str(path / "job") in line
    return line


def test_a_job_leaves_its_configuration_and_its_process_in_a_directory_made_for_it(tmp_path: Path):
    with directory(tmp_path / "deep" / "er", seed=3) as job:
        assert job.path == tmp_path / "deep" / "er" / "job"
        assert Settings.model_validate(read_json(job.path / CONFIG)) == Settings(seed=3)
        assert (job.path / LOCK).read_text() == str(os.getpid())
        assert sorted(entry.name for entry in job.path.iterdir()) == [CONFIG, LOCK]


def test_a_relative_path_means_the_same_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    job = JobDirectory("job", Settings(), changeable=(), kind="the directory", option="--out DIR")
    monkeypatch.chdir("/")
    with job:
        assert (tmp_path / "job" / CONFIG).is_file()


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path: Path):
    with directory(tmp_path):
        assert refusal(tmp_path) == (
            f"the directory {tmp_path / 'job'} is in use by process {os.getpid()}: stop it, or choose another with --out DIR"
        )
        assert (tmp_path / "job" / LOCK).read_text() == str(os.getpid())  # the refused one did not put its name there


def test_a_lock_without_a_name_is_a_lock_all_the_same(tmp_path: Path):
    with directory(tmp_path):
        (tmp_path / "job" / LOCK).write_text("")
        assert "is in use by process unknown" in refusal(tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_a_directory_is_free_again_when_its_job_has_ended_or_failed(tmp_path: Path, fails: bool):
    try:
        with directory(tmp_path):
            if fails:
                raise OSError("out of space")
    except OSError:
        pass
    with directory(tmp_path):
        pass


def test_the_lock_that_a_killed_process_left_behind_does_not_count(tmp_path: Path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / LOCK).write_text("4242")
    with directory(tmp_path) as job:
        assert (job.path / LOCK).read_text() == str(os.getpid())


def test_another_configuration_is_refused_with_what_differs_and_how_to_go_elsewhere(tmp_path: Path):
    with directory(tmp_path, seed=5):
        pass
    before = (tmp_path / "job" / CONFIG).read_text()
    assert refusal(tmp_path) == (
        f"the directory {tmp_path / 'job'} belongs to a run with another configuration: seed (5 -> 0); choose another with --out DIR, "
        "or delete it"
    )
    assert (tmp_path / "job" / CONFIG).read_text() == before


def test_of_many_differences_three_are_named_and_the_others_counted(tmp_path: Path):
    with directory(tmp_path, seed=5, size=9, name="b", depth=3):
        pass
    line = refusal(tmp_path)
    assert "depth (3 -> 2), name ('b' -> 'a'), seed (5 -> 0) and 1 more; choose" in line


def test_what_may_change_is_taken_over_into_the_saved_configuration(tmp_path: Path):
    with directory(tmp_path, steps=10):
        pass
    with directory(tmp_path, steps=20, means={"threads": 4}) as job:
        assert Settings.model_validate(read_json(job.path / CONFIG)) == Settings(steps=20, means=Means(threads=4))


def test_a_directory_in_which_nothing_was_done_takes_any_configuration(tmp_path: Path):
    for seed in (5, 6):
        with directory(tmp_path, EmptyDirectory, seed=seed) as job:
            assert read_json(job.path / CONFIG)["seed"] == seed


def test_foreign_files_are_not_taken_over(tmp_path: Path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "thesis.tex").write_text("dear to someone")
    assert "is not empty and holds no run: choose another with --out DIR" in refusal(tmp_path)
    assert [entry.name for entry in (tmp_path / "job").iterdir()] == ["thesis.tex"]


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path):
    (tmp_path / "job").mkdir()
    with directory(tmp_path) as job:
        assert (job.path / CONFIG).is_file()


def test_a_path_that_cannot_be_a_directory_is_refused_with_its_reason(tmp_path: Path):
    (tmp_path / "job").write_text("not a directory")
    assert "cannot be used: File exists; choose another with --out DIR" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "", "[]", "null", "3"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str):
    with directory(tmp_path):
        pass
    (tmp_path / "job" / CONFIG).write_text(content)
    assert f"{tmp_path / 'job' / CONFIG} is damaged" in refusal(tmp_path)
