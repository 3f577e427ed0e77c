from __future__ import annotations

from pathlib import Path

import pytest

from jobs.configuration.user_error import UserError
from jobs.reports.run.record import read_record
from tests.jobs.reports.run.run_fixture import written_run
from tests.jobs.runs_fixture import run_directory


def test_everything_that_a_run_wrote_is_read(tmp_path: Path) -> None:
    record = read_record(written_run(tmp_path, steps=3))
    assert [one["step"] for one in record.metrics] == [1, 2, 3] and record.evaluations[0]["eval/pass@1"] == 0.5
    assert len(record.events) == 7 and record.config["seed"] == 7 and record.status is not None
    assert record.notes == () and not record.is_alive


def test_lines_that_the_run_is_about_to_write_are_left_for_later(tmp_path: Path) -> None:
    directory = written_run(tmp_path, steps=3)
    for name in ("events.jsonl", "metrics.jsonl"):
        with open(directory / name, "a") as file:
            file.write('{"seq": 7, "ste')
    record = read_record(directory)
    assert len(record.events) == 7 and len(record.metrics) == 3 and record.notes == ()


def test_a_damaged_file_is_read_up_to_the_damage_and_named(tmp_path: Path) -> None:
    directory = written_run(tmp_path, steps=3)
    lines = (directory / "events.jsonl").read_text().splitlines(keepends=True)
    (directory / "events.jsonl").write_text("".join([*lines[:2], "no event\n", *lines[2:]]))
    metrics = (directory / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_bytes(b"".join([metrics[0], b"\xff\xfe\n", b"7\n", *metrics[1:], b'{"step": 4, "ti']))
    (directory / "config.json").write_text("{")
    (directory / "status.json").write_text("[]")
    record = read_record(directory)
    assert len(record.events) == 2 and record.config == {} and record.status is None
    assert [entry["step"] for entry in record.metrics] == [1, 2, 3]
    assert [next(name for name in ("config", "line 2, and 1 more", "line 3") if name in note) for note in record.notes] == [
        "config",
        "line 2, and 1 more",
        "line 3",
    ]


def test_a_run_that_has_only_begun_is_read(tmp_path: Path) -> None:
    record = read_record(run_directory(tmp_path))
    assert record.status is not None and not record.events
    assert any("events.jsonl is missing" in note for note in record.notes)


def test_a_directory_without_a_training_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training run"):
        read_record(tmp_path)
