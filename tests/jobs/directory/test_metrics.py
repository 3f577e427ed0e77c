import json
import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.config import RunConfig
from jobs.directory.metrics import MetricsWriter, damaged_lines, read_metrics
from jobs.directory.trackers import RunInfo, Trackers, load_trackers


def write(directory: Path, steps: range, *, resume_step: int = 0, offset: float = 0.0) -> MetricsWriter:
    info = RunInfo.of(directory, RunConfig(), resume_step=resume_step)
    trackers = Trackers(load_trackers(["tensorboard"]), info, warn=print)
    writer = MetricsWriter(directory / "metrics.jsonl", trackers, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"reward/mean": step + offset})
    writer.close()
    return writer


def rewards(directory: Path) -> list[tuple[float, float]]:
    return [(record["step"], record["reward/mean"]) for record in read_metrics(directory / "metrics.jsonl")]


def test_a_step_is_a_line_that_can_be_read_while_the_run_goes_on(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"reward/mean": 0.25})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    writer.close()
    record = json.loads(line)
    assert (record["step"], record["reward/mean"]) == (1, 0.25)
    assert record["time"] > 1e9


def test_resume_drops_what_came_after_the_restored_step(tmp_path):
    write(tmp_path, range(1, 5))
    writer = write(tmp_path, range(3, 5), resume_step=2, offset=0.5)
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)]
    assert [record["step"] for record in writer.history] == [1, 2, 3, 4]


def test_fresh_start_drops_everything_of_an_attempt_without_checkpoint(tmp_path):
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 2), offset=0.5)
    assert rewards(tmp_path) == [(1, 1.5)]


def test_half_written_last_line_is_left_out_and_written_over(tmp_path):
    write(tmp_path, range(1, 4))
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-9])  # killed in the middle of step 3
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0)]
    write(tmp_path, range(3, 4), resume_step=2, offset=0.5)
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.5)]


def test_a_damaged_line_costs_no_other_also_over_a_resume(tmp_path):
    write(tmp_path, range(1, 4))
    file = tmp_path / "metrics.jsonl"
    first, *others = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([first, b"\x00\xff\n", *others]))
    assert damaged_lines(file) == ["metrics.jsonl, line 2"]
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    write(tmp_path, range(4, 5), resume_step=3)
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)] and damaged_lines(file) == []


def test_what_a_full_disk_does_not_take_is_written_with_the_next_record(tmp_path):
    writer, file = MetricsWriter(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    writer.write(1, {"reward/mean": 1.0})
    file_size, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, most))  # half a line would fit
    try:
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                writer.write(step, {"reward/mean": float(step)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, most))
    assert rewards(tmp_path) == [(1, 1.0)] and damaged_lines(file) == []
    writer.write(4, {"reward/mean": 4.0})
    writer.close()
    assert rewards(tmp_path) == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert [record["step"] for record in writer.history] == [1, 2, 3, 4]


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_holds_every_point_once_over_a_resume(tmp_path):
    write(tmp_path, range(1, 5))
    (first,) = (tmp_path / "tensorboard").iterdir()  # named after the second it was made in: make that an earlier one
    first.rename(first.with_name("events.out.tfevents.1000000000.here"))
    write(tmp_path, range(3, 6), resume_step=2, offset=0.5)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("reward/mean")]
    assert points == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]


def test_records_that_exceed_the_cap_are_forgotten_oldest_first_and_a_resume_drops_from_what_is_left(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", max_bytes=6000)
    for step in range(1, 301):
        writer.write(step, {"reward/mean": float(step)})
    writer.close()
    steps = [step for step, _ in rewards(tmp_path)]
    assert steps == list(range(steps[0], 301))
    assert 3000 < sum(path.stat().st_size for path in tmp_path.glob("metrics*.jsonl")) < 6200
    assert [record["step"] for record in writer.history] == list(range(1, 301))
    middle = steps[len(steps) // 4]
    writer = write(tmp_path, range(middle + 1, middle + 3), resume_step=middle, offset=0.5)
    assert [step for step, _ in rewards(tmp_path)] == list(range(steps[0], middle + 3))


def test_of_very_many_records_the_first_and_the_last_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.directory.metrics.KEPT_RECORDS", 3)
    writer = write(tmp_path, range(1, 21))
    assert [record["step"] for record in writer.history] == [1, 2, 3, 18, 19, 20]
    writer = write(tmp_path, range(11, 13), resume_step=10)
    assert [record["step"] for record in writer.history] == [1, 2, 3, 10, 11, 12]
    assert len(rewards(tmp_path)) == 12
