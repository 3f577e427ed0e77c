from __future__ import annotations

import pytest

from jobs.directory.run_state import DESIRED, STATUS, Desired, RunPhase, read_desired, read_status, write_desired, write_status
from tests.jobs.runs_fixture import status


def test_a_status_is_read_as_it_was_written(tmp_path):
    write_status(tmp_path, status())
    assert read_status(tmp_path) == status()


def test_a_status_of_another_version_is_read_as_far_as_it_is_known(tmp_path):
    (tmp_path / STATUS).write_text(status().model_dump_json().replace("{", '{"new_field": 1, ', 1))
    assert read_status(tmp_path) == status()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": "mine"}'])
def test_a_status_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / STATUS).write_text(text)
    assert read_status(tmp_path) is None


def test_without_files_there_is_no_status_and_nothing_is_desired(tmp_path):
    assert read_status(tmp_path) is None
    assert read_desired(tmp_path) == Desired()


def test_what_is_desired_is_read_as_it_was_written(tmp_path):
    write_desired(tmp_path, Desired(rollout=3, stop=True))
    assert read_desired(tmp_path) == Desired(rollout=3, stop=True)


@pytest.mark.parametrize("text", ["", '{"rollout": 0}', '{"rollouts": 2}'])
def test_desires_that_are_damaged_are_refused_and_not_guessed(tmp_path, text):
    (tmp_path / DESIRED).write_text(text)
    with pytest.raises(ValueError, match=f"{DESIRED} is damaged .* delete it"):
        read_desired(tmp_path)


@pytest.mark.parametrize(
    ("phase", "ended"),
    [("starting", False), ("training", False), ("stopping", False), ("finished", True), ("stopped", True), ("failed", True)],
)
def test_a_run_has_ended_in_its_last_three_phases(phase: RunPhase, ended: bool):
    assert status(phase=phase).has_ended is ended


def test_a_file_is_whole_at_every_moment(tmp_path):
    """Readers never find a part: the new file takes the place of the old one."""
    write_status(tmp_path, status())
    with (tmp_path / STATUS).open() as before:
        write_status(tmp_path, status(step=13))
        assert '"step": 12' in before.read()
    assert [file.name for file in tmp_path.iterdir()] == [STATUS]
