from __future__ import annotations

import json
import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from jobs.directory.events import MAX_BUFFERED_EVENTS, Event, EventKind, EventLog, read_events
from tests.jobs.event_batches import batches

ADMITTED = {"problem_id": "p", "attempt": 0, "version": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def admit(log: EventLog, group_id: int) -> None:
    log.write(EventKind.ADMITTED, group_id=group_id, **ADMITTED)


def batch(log: EventLog, step: int, *group_ids: int) -> None:
    log.write(EventKind.BATCH, step=step, group_ids=list(group_ids))


def kinds(path: Path) -> list[EventKind]:
    return [event.kind for event in read_events(path)]


def test_events_are_read_as_they_were_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.5, 11.25])
    monkeypatch.setattr("time.time", lambda: next(clock))
    log = EventLog(path)
    batch(log, 3, 7, 5)
    log.write(EventKind.VERDICTS, group_id=9, counts={"correct": 1, "timeout": 3})
    log.write(EventKind.FAULT, role="encoder", name="encoder-1", kind="infrastructure", error="größer\nzweite Zeile")
    log.close()
    assert list(read_events(path)) == [
        Event(seq=0, time=10.0, step=3, kind=EventKind.BATCH, fields={"group_ids": [7, 5]}),
        Event(seq=1, time=11.5, step=3, kind=EventKind.VERDICTS, fields={"group_id": 9, "counts": {"correct": 1, "timeout": 3}}),
        Event(
            seq=2,
            time=11.25,
            step=3,
            kind=EventKind.FAULT,
            fields={"role": "encoder", "name": "encoder-1", "kind": "infrastructure", "error": "größer\nzweite Zeile"},
        ),
    ]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", EventKind, ids=str)
def test_an_event_with_other_fields_than_those_of_its_kind_is_refused(path: Path, kind: EventKind) -> None:
    log = EventLog(path)
    values: dict[str, Any] = dict.fromkeys(kind.fields, 1)
    log.write(kind, **values)
    missing = sorted(kind.fields)[0]
    for wrong in ({**values, "colour": "red"}, {name: value for name, value in values.items() if name != missing}):
        with pytest.raises(TypeError, match=f"event '{kind}' has the fields"):
            log.write(kind, **wrong)
    log.close()
    (event,) = read_events(path)
    assert event.kind is kind and event.fields.keys() | {"step"} == kind.fields | {"step"}


def test_batches_checkpoints_and_faults_are_on_disk_at_once_and_others_with_them(path: Path) -> None:
    log = EventLog(path)
    admit(log, 0)
    assert path.read_bytes() == b""
    batch(log, 1, 0)
    assert kinds(path) == [EventKind.ADMITTED, EventKind.BATCH]
    log.write(EventKind.TRAINED, step=1, version=1)
    log.write(EventKind.CHECKPOINT, step=1, seconds=0.5)
    assert kinds(path)[2:] == [EventKind.TRAINED, EventKind.CHECKPOINT]
    log.write(EventKind.FAULT, role="learner", name="learner", kind="bug", error="x")
    assert kinds(path)[-1] is EventKind.FAULT
    admit(log, 1)
    log.close()
    assert kinds(path)[-1] is EventKind.ADMITTED


def test_no_more_than_so_many_events_wait_in_memory(path: Path) -> None:
    log = EventLog(path)
    for group_id in range(2 * MAX_BUFFERED_EVENTS + 5):
        admit(log, group_id)
        assert len(log._buffered) < MAX_BUFFERED_EVENTS
    assert len(kinds(path)) == 2 * MAX_BUFFERED_EVENTS


def test_a_half_written_last_line_is_left_out_and_written_over(path: Path) -> None:
    log = EventLog(path)
    batch(log, 1, 0)
    log.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut].removesuffix(b"\n"))
        assert [event.seq for event in read_events(path)] == [0]
    log = EventLog(path, resume_step=1)
    batch(log, 2, 5)
    log.close()
    assert [event.seq for event in read_events(path)] == [0, 1, 2]
    assert batches(read_events(path)) == {1: [0], 2: [5]}


def test_a_killed_process_leaves_a_log_that_can_be_read(path: Path) -> None:
    child = os.fork()
    if not child:
        log = EventLog(path)
        admit(log, 0)
        batch(log, 1, 0)
        admit(log, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert kinds(path) == [EventKind.ADMITTED, EventKind.BATCH]


def test_a_line_that_is_damaged_is_named(path: Path) -> None:
    log = EventLog(path)
    batch(log, 1, 0)
    log.close()
    good = path.read_text()
    for bad in ('{"seq": 1}\n', "half a li\n", good.replace("batch", "party"), "3\n"):
        path.write_text(good + bad + good)
        with pytest.raises(ValueError, match=r"events\.jsonl, line 2 is no event"):
            list(read_events(path))


def test_a_full_disk_is_an_error_and_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(path)
    batch(log, 1, 0)
    real = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) < 40:
            raise OSError("No space left on device")
        return real(file, data[: len(data) // 2])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            batch(log, 2, 1)
    assert batches(read_events(path)) == {1: [0]}
    batch(log, 3, 2)
    assert batches(read_events(path)) == {1: [0], 2: [1], 3: [2]}


def test_a_disk_that_stays_full_costs_bounded_memory_and_the_oldest_events(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, data: bytes) -> int:
        raise OSError("No space left on device")

    log = EventLog(path)
    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        log._buffered = deque(maxlen=5)  # as it has, with fewer
        for step in range(1, 9):
            with pytest.raises(OSError, match="No space left"):
                batch(log, step, step)
    log.close()
    assert [event.seq for event in read_events(path)] == [3, 4, 5, 6, 7]


def test_numbers_go_on_over_resumes_and_the_step_is_that_of_the_checkpoint(path: Path) -> None:
    log = EventLog(path)
    for step in (1, 2, 3):
        batch(log, step, step)
    log = EventLog(path, resume_step=2)  # the process was killed
    admit(log, 9)
    log.close()
    events = list(read_events(path))
    assert [event.seq for event in events] == list(range(5))
    assert [(event.kind, event.step) for event in events[3:]] == [(EventKind.RESUMED, 2), (EventKind.ADMITTED, 2)]


def test_a_first_start_is_not_a_resume(path: Path) -> None:
    log = EventLog(path)
    admit(log, 0)
    log.close()
    assert kinds(path) == [EventKind.ADMITTED]
    EventLog(path).close()  # killed before the first checkpoint, started again
    assert kinds(path) == [EventKind.ADMITTED, EventKind.RESUMED]


def test_there_is_one_batch_a_step_the_last_that_was_begun(path: Path) -> None:
    log = EventLog(path)
    for step in range(1, 6):
        batch(log, step, step, 10 + step)
    batch(log, 5, 50)  # its groups were lost, others were drawn
    assert batches(read_events(path))[5] == [50]
    log.close()
    log = EventLog(path, resume_step=2)
    batch(log, 3, 30)
    log.close()
    assert batches(read_events(path)) == {1: [1, 11], 2: [2, 12], 3: [30]}
    log = EventLog(path, resume_step=0)
    assert batches(read_events(path)) == {}
    batch(log, 1, 8, 4)
    log.close()
    assert batches(read_events(path)) == {1: [8, 4]}


def test_without_a_log_there_are_no_events(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_events(path))


def test_every_line_is_one_json_object_with_number_time_step_and_kind(path: Path) -> None:
    log = EventLog(path)
    log.write(EventKind.DESIRED, role="rollout", count=2, by="jobs.scale")
    log.write(EventKind.WORKER, worker="rollout-1", role="rollout", state="serving", reason="")
    log.close()
    for number, line in enumerate(path.read_text().splitlines()):
        record = json.loads(line)
        assert list(record)[:4] == ["seq", "time", "step", "event"]
        assert (record["seq"], record["step"]) == (number, 0)


def test_a_log_that_reaches_its_cap_forgets_its_oldest_events_and_goes_on(path: Path) -> None:
    cap = 20_000
    log = EventLog(path, max_bytes=cap)
    sizes = []
    for step in range(1, 1001):
        batch(log, step, step)
        sizes.append(sum(file.stat().st_size for file in path.parent.iterdir()))
        if step == 500:
            log.close()
            log = EventLog(path, resume_step=500, max_bytes=cap)
    log.close()
    assert cap / 3 < sizes[-1] and max(sizes) < cap + 200
    numbers = [event.seq for event in read_events(path)]
    assert numbers == list(range(numbers[0], 1001))
    assert list(batches(read_events(path))) == list(range(1000 - len(numbers) + 1, 1001))
    path.unlink()  # killed between the two renames: what came before is there, and the numbers go on
    log = EventLog(path, resume_step=1000, max_bytes=cap)
    log.close()
    assert [event.kind for event in read_events(path)][-1] is EventKind.RESUMED
