"""Logs as JSON lines: every record has a time, a level, the run and a message; events have their group and worker."""

import json
from datetime import datetime

import pytest

from jobs.directory.events import EventKind
from jobs.screens.json_lines import JsonConsole


@pytest.fixture
def console():
    with JsonConsole("mine", 40) as console:
        yield console


def records(capsys) -> list[dict]:
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    times = [datetime.fromisoformat(record.pop("timestamp")) for record in found]
    assert all(time.tzinfo is not None for time in times) and times == sorted(times)
    assert {record.pop("run") for record in found} == {"mine"}
    return found


def test_what_a_person_is_shown_is_one_record_a_line(console, capsys):
    console.status("starting Ray")
    console.step(3, {"reward/mean": 0.5})
    console.warn("two\nlines")
    console.note("well")
    console.finish("title", ["40 of 40 steps trained.", "  reward  0.2 -> 0.8"])
    console.failed("Traceback …", "error: the run failed")
    assert records(capsys) == [
        {"level": "info", "message": "starting Ray"},
        {"level": "info", "message": "step 3/40", "step": 3, "metrics": {"reward/mean": 0.5}},
        {"level": "warning", "message": "two\nlines"},
        {"level": "info", "message": "well"},
        {"level": "info", "message": "40 of 40 steps trained."},
        {"level": "info", "message": "reward  0.2 -> 0.8"},
        {"level": "error", "message": "error: the run failed", "details": "Traceback …"},
    ]


def test_an_event_has_its_fields_and_a_level(console, capsys):
    console.event(EventKind.DISPATCHED, {"group_id": 7, "worker": "rollout-0", "tries": 1, "resumed_tokens": 0})
    console.event(EventKind.FAULT, {"role": "rollout", "name": "rollout-0", "kind": "infrastructure", "error": "gone"})
    console.event(EventKind.TRAINED, {"step": 3, "version": 3})
    assert records(capsys) == [
        {"level": "debug", "message": "dispatched", "group_id": 7, "worker": "rollout-0", "tries": 1, "resumed_tokens": 0},
        {"level": "warning", "message": "fault", "role": "rollout", "name": "rollout-0", "kind": "infrastructure", "error": "gone"},
        {"level": "info", "message": "trained", "step": 3, "version": 3},
    ]
