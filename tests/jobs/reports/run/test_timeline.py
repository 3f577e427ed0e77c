from __future__ import annotations

from typing import Any

from jobs.directory.events import Event, EventKind
from jobs.reports.run import timeline
from jobs.reports.run.timeline import Lane, Timeline, timeline_of


def picture(*events: tuple[float, EventKind, dict[str, Any]], **options: Any) -> Timeline:
    """The events begin at the Unix time 1000."""
    made = [
        Event(seq=number, time=1000 + at, step=fields.pop("step", 1), kind=kind, fields=fields)
        for number, (at, kind, fields) in enumerate(events)
    ]
    return timeline_of(made, **options)


def lanes(drawn: Timeline) -> dict[str, Lane]:
    return {lane.name: lane for lane in drawn.lanes}


def dispatched(group_id: int, worker: str = "rollout-0") -> dict[str, Any]:
    return {"group_id": group_id, "worker": worker, "tries": 1, "resumed_tokens": 0}


def completed(group_id: int, worker: str = "rollout-0", aborted: int = 0) -> dict[str, Any]:
    return {"group_id": group_id, "worker": worker, "tokens": 9, "aborted": aborted}


def state(name: str, worker: str = "rollout-0") -> dict[str, Any]:
    return {"worker": worker, "role": "rollout", "state": name, "reason": ""}


def test_the_learner_waits_trains_and_saves() -> None:
    drawn = picture(
        (0, EventKind.WORKER, state("serving")),
        (5, EventKind.BATCH, {"group_ids": [0]}),
        (8, EventKind.TRAINED, {"version": 1}),
        (9, EventKind.PUBLISHED, {"version": 1, "workers": 1}),
        (12, EventKind.CHECKPOINT, {"seconds": 2.0}),
        (13, EventKind.BATCH, {"step": 2, "group_ids": [1]}),
    )
    spans = [(begin, end, kind) for begin, end, kind, _ in lanes(drawn)["learner"].spans]
    assert spans == [(0, 5, "wait"), (5, 8, "train"), (10, 12, "checkpoint"), (12, 13, "wait")]
    assert lanes(drawn)["new weights"].spans == [(8, 9, "publish", "version 1 to 1 workers")]
    assert [(mark.time, mark.kind) for mark in drawn.marks] == [(0, "serving"), (12, "checkpoint")]


def test_a_group_is_counted_where_it_is() -> None:
    drawn = picture(
        (0, EventKind.DISPATCHED, dispatched(0)),
        (1, EventKind.DISPATCHED, dispatched(1)),
        (4, EventKind.COMPLETED, completed(0)),
        (5, EventKind.VERDICTS, {"group_id": 0, "counts": {}}),
        (6, EventKind.INSERTED, {"group_id": 0, "result": "accepted"}),
        (7, EventKind.BATCH, {"group_ids": [0]}),
        (8, EventKind.DROPPED, {"group_id": 1, "reason": "timeout"}),
    )
    assert {name: lane.counts for name, lane in lanes(drawn).items() if lane.counts} == {
        "rollout-0": [(0, 1), (1, 2), (4, 1), (8, 0)],
        "verifiers": [(4, 1), (5, 0)],
        "encoders": [(4, 1), (6, 0)],
        "replay": [(6, 1), (7, 0)],
    }


def test_a_group_that_a_worker_hands_over_is_not_scored() -> None:
    drawn = picture((0, EventKind.DISPATCHED, dispatched(0)), (1, EventKind.COMPLETED, completed(0, aborted=4)))
    assert "verifiers" not in lanes(drawn)


def test_a_worker_that_is_lost_has_nothing_any_more() -> None:
    drawn = picture(
        (0, EventKind.WORKER, state("serving")),
        (1, EventKind.DISPATCHED, dispatched(0)),
        (3, EventKind.WORKER, state("dead") | {"reason": "killed\x1b[31m"}),
    )
    lane = lanes(drawn)["rollout-0"]
    assert lane.counts == [(1, 1), (3, 0)] and lane.spans == [(0, 3, "serving", "")]
    assert drawn.marks[-1].text == "rollout-0 is dead: killed\\u{1b}[31m"


def test_what_was_under_way_when_a_run_was_killed_ends_with_its_last_event() -> None:
    drawn = picture(
        (0, EventKind.WORKER, state("serving")),
        (1, EventKind.DISPATCHED, dispatched(0)),
        (2, EventKind.BATCH, {"group_ids": []}),
        (60, EventKind.RESUMED, {"step": 0}),
        (61, EventKind.BATCH, {"group_ids": []}),
    )
    assert lanes(drawn)["rollout-0"].spans == [(0, 2, "serving", "")] and lanes(drawn)["rollout-0"].counts == [(1, 1), (2, 0)]
    assert [(begin, end) for begin, end, *_ in lanes(drawn)["learner"].spans] == [(0, 2), (60, 61)]


def test_what_lasts_while_the_run_goes_on_is_drawn_to_its_last_word() -> None:
    drawn = picture((0, EventKind.WORKER, state("serving")), (2, EventKind.BATCH, {"group_ids": []}), until=1010.0)
    assert drawn.end == 10 and lanes(drawn)["rollout-0"].spans == [(0, 10, "serving", "")]
    assert lanes(drawn)["learner"].spans[-1] == (2, 10, "train", "training step 1, not yet done")


def test_an_event_of_another_version_is_passed_over() -> None:
    drawn = picture((0, EventKind.CHECKPOINT, {}), (1, EventKind.LOADED, {"worker": "rollout-0"}), (2, EventKind.TRAINED, {"version": 1}))
    assert [mark.kind for mark in drawn.marks] == ["checkpoint"]


def test_a_load_of_weights_stands_where_it_began() -> None:
    drawn = picture(
        (0, EventKind.DISPATCHED, dispatched(0)),
        (9, EventKind.LOADED, {"worker": "rollout-0", "version": 3, "check_s": 1.0, "load_s": 0.5}),
    )
    assert lanes(drawn)["rollout-0"].spans == [(8.5, 9, "load", "loads version 3")]


def test_of_very_many_events_the_newest_are_drawn(monkeypatch) -> None:
    monkeypatch.setattr(timeline, "MAX_EVENTS", 2)
    drawn = picture(*((float(at), EventKind.BATCH, {"step": at, "group_ids": []}) for at in range(5)))
    assert drawn.left_out == 3 and drawn.begin == 1003 and drawn.end == 1


def test_an_evaluation_is_marked_and_a_run_without_events_is_empty() -> None:
    drawn = picture((0, EventKind.BATCH, {"group_ids": []}), evaluations=[{"step": 1, "time": 1004.0}, {"step": 0, "time": 7.0}])
    assert [(mark.time, mark.text) for mark in drawn.marks] == [(4, "the evaluation of step 1 is done")]
    assert timeline_of([]).lanes == ()
