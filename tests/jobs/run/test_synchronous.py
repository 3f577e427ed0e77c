"""The synchronous trainer as an entry point of its own: resumed, watched, stopped, with groups that are sampled
alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import jobs.run.control
from buffers.admission import Admission
from jobs.config import RunConfig
from jobs.directory.events import Event, EventKind
from jobs.directory.run_state import Desired, read_status, write_desired
from jobs.run.control import Control
from jobs.run.synchronous import watch
from tests.jobs.components_fixture import BOUND_S, PROMPTS, LocalRun, small_config
from tests.jobs.event_batches import batches

pytestmark = pytest.mark.whole


def make(model: str, directory: Path, **settings: Any) -> RunConfig:
    return small_config(model, directory, **{"max_policy_lag": 0, **settings})


def test_groups_that_are_sampled_alone_are_those_of_the_asynchronous_run(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunConfig, "isolates_groups", property(lambda config: True))  # as with a vLLM engine
    runs = [LocalRun(make(tiny_model, tmp_path / f"{n}", deterministic=True), synchronous=n == 1) for n in range(2)]
    assert [run.train() for run in runs] == [3, 3]
    assert runs[0].samples() == runs[1].samples()


@pytest.mark.parametrize("num_held", [0, PROMPTS])
def test_goes_on_from_an_asynchronous_run_with_its_groups_under_way(tiny_model: str, tmp_path: Path, num_held: int) -> None:
    """Those of step 3, which are in flight when the checkpoint of step 2 is written, in replay or on their way to
    it."""

    async def around(name: str, method: str, args: tuple[Any, ...], proceed: Any) -> Any:
        if method == "generate" and args[0].group_id >= 2 * PROMPTS and not num_held:
            await asyncio.Event().wait()
        if (name, method) == ("replay", "save_part"):
            while len(admission.in_flight) < PROMPTS or len(run.books.held) < num_held:
                await asyncio.sleep(0.01)
        return await proceed()

    whole = LocalRun(make(tiny_model, tmp_path / "whole", steps=4, deterministic=True))
    whole.train()
    run = LocalRun(make(tiny_model, tmp_path, steps=2, deterministic=True), around=around)
    admission: Admission = run.admission
    assert run.train() == 2
    again = LocalRun(make(tiny_model, tmp_path, steps=4, deterministic=True), synchronous=True)
    assert again.train() == 4
    again.check_valid()
    assert again.samples() == whole.samples()


def test_its_events_tell_what_became_of_every_group(tiny_model: str, tmp_path: Path) -> None:
    run = LocalRun(make(tiny_model, tmp_path), synchronous=True)
    run.train()
    events = [Event(seq=0, time=0.0, step=fields.get("step", 0), kind=kind, fields=fields) for kind, fields in run.events]
    assert batches(events) == {step: [row["group_id"] for row in run.logged() if row["step"] == step][::4] for step in (1, 2, 3)}
    per_group = (EventKind.ADMITTED, EventKind.DISPATCHED, EventKind.COMPLETED, EventKind.VERDICTS, EventKind.INSERTED)
    for kind in per_group:
        assert [event["group_id"] for event in run.noted(kind)] == list(range(3 * PROMPTS)), kind
    for kind in (EventKind.ABSORBED, EventKind.TRAINED, EventKind.PUBLISHED):
        assert len(run.noted(kind)) == 3, kind
    assert run.noted(EventKind.CHECKPOINT, step=3)
    assert [event["version"] for event in run.noted(EventKind.LOADED, worker="rollout-0")] == [1, 2, 3]
    assert all(fields.keys() == kind.fields for kind, fields in run.events)


def test_says_how_far_it_is_stops_where_that_is_asked_for_and_keeps_its_workers(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.run.control, "TICK_S", 0.01)
    run = LocalRun(make(tiny_model, tmp_path, steps=100_000, checkpoint={"every": 100_000}), synchronous=True)
    path = run.directory.path
    path.mkdir(parents=True)
    warnings: list[str] = []
    control = Control(path, "test", run.config, warn=warnings.append)
    steps, phases = [], []

    def asked(step: int) -> None:
        if (status := read_status(path)) is not None:
            steps.append(status.step)
            phases.append(status.phase)
        if step == 2:
            write_desired(path, Desired(rollout=3))
        if warnings:
            write_desired(path, Desired(rollout=3, stop=True))

    run.on_report = asked

    async def scenario() -> int:
        watching = asyncio.create_task(watch(run.trainer, control, path, warnings.append))
        try:
            async with asyncio.timeout(BOUND_S):
                return await run.trainer.train(0)
        finally:
            watching.cancel()

    step = asyncio.run(scenario())
    assert 2 < step < 100_000 and run.checkpoints.latest() == step
    assert steps[-1] > 0 and "training" in phases
    assert warnings == ["repexp scale: a run with --synchronous keeps the processes it was started with"]
    assert len(run.parts["rollout"]) == 1
