"""The batches of a run, read from its event log."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.directory.events import Event, EventKind


def batches(events: Iterable[Event]) -> dict[int, list[int]]:
    """Return group ids by step, in the order of training. Of a step that was begun several times, the last time counts.
    Raises ValueError for a batch without group ids."""
    by_step: dict[int, list[int]] = {}
    for event in events:
        if event.kind is EventKind.RESUMED:
            by_step = {step: ids for step, ids in by_step.items() if step <= event.step}
        elif event.kind is EventKind.BATCH:
            if not isinstance(ids := event.fields.get("group_ids"), list):
                raise ValueError(f"event {event.seq}, the batch of step {event.step}, has no group_ids")
            by_step[event.step] = ids
    return by_step
