"""What more rollout workers cost the controller: its CPU for a publication of weights, and for handing out a group.

    python -m benchmarks.fleet                           # 16, 64, 256 and 1024 workers

Real are the controller's side (`jobs.run.rollouts`, `jobs.run.worker`, the fleet and the books) and its calls. The
workers do nothing, in this process, so that a call costs what an awaited function costs. Their loads of weights end at
random moments of a second. The output is one JSON object a line: medians in milliseconds of CPU of the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from actors.rollout import RolloutWorker
from buffers.records import GroupRequest, GroupUsage, Heartbeat, WeightUpdate
from jobs.config import RunConfig
from jobs.directory.run_dir import RunDirectory
from jobs.processes.description import Component, TrainingComponents
from jobs.processes.handles import Handle, LocalHandle
from jobs.run.books import DropReason
from jobs.run.components import Run, Sampled
from jobs.run.faults import Listener
from jobs.run.rollouts import Rollouts
from jobs.run.worker import GroupWork
from tasks.registry import make_task
from tasks.stream import ProblemStream

GROUPS = 512
LOADS_WITHIN_S = 1.0


class IdleWorker:
    """A rollout worker without an engine. A group is answered at once, `watch` when its time is up, and a load at some
    time within LOADS_WITHIN_S, because no two engines are done at the same moment."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._version = 0

    async def start(self) -> str:
        return self._worker_id

    async def generate(self, request: GroupRequest, messages: Any, resume: Any = None) -> tuple[Any, GroupUsage]:
        return None, GroupUsage(worker_id=self._worker_id, prompt_tokens=0, response_tokens=0, generate_s=0.0)

    async def update(self, version: int) -> WeightUpdate:
        await asyncio.sleep(LOADS_WITHIN_S * random.random())
        self._version = version
        return WeightUpdate(worker_id=self._worker_id, version=version, load_s=0.0, idle_s=0.0)

    async def watch(self, cursor: int, timeout_s: float) -> tuple[Any, Heartbeat]:
        await asyncio.sleep(timeout_s)
        return None, Heartbeat(worker_id=self._worker_id, version=self._version, tokens_by_group={}, sampled_tokens=0, rss_bytes=0)

    async def close(self) -> None:
        """There is nothing to end."""


class IdleComponents(TrainingComponents):
    """The components of a run whose rollout workers are idle."""

    def rollout_worker(self, number: int) -> Component[RolloutWorker]:
        component = super().rollout_worker(number)
        return replace(component, cls=IdleWorker, kwargs={"worker_id": component.name})


def launch_workers(component: Component[Any]) -> Handle[Any]:
    """Make a worker; of the other components only a handle, because nothing calls them."""
    return LocalHandle(component.make() if component.name.startswith("rollout") else None, component.name)


class Counts:
    """Counts the groups that come back."""

    def __init__(self) -> None:
        self.num_sampled = 0

    def sampled(self, sampled: Sampled) -> None:
        self.num_sampled += 1

    def dropped(self, work: GroupWork, reason: DropReason, error: Exception | None) -> None:
        raise error or RuntimeError(f"group {work.request.group_id} was dropped: {reason}")

    def updated(self, update: WeightUpdate) -> None:
        """A load is seen by what it lets happen."""


async def measure(num_workers: int, repeats: int, directory: Path) -> dict[str, Any]:
    groups = {"prompts_per_step": GROUPS * (repeats + 1), "responses_per_prompt": 4, "bonus": {"enabled": False}}
    config = RunConfig.model_validate({"run_dir": str(directory), **groups, "supervision": {"heartbeat_s": 3600.0}})
    run = Run(
        config,
        components=IdleComponents(config, "", run_id="fleet", log_directory=""),
        launch=launch_workers,
        stream=ProblemStream(make_task(config.task), "train", 0, config.task.curriculum),
        directory=RunDirectory(config),
        listener=Listener(stepped=lambda step, metrics: None),
    )
    counts = Counts()
    rollouts = Rollouts(run, counts, desired=num_workers)
    living = asyncio.create_task(rollouts.run_loop())
    while len(rollouts.fleet.serving) < num_workers:
        await asyncio.sleep(0.01)
    publications, handing_out = [], []
    for version in range(1, repeats + 2):  # the first one warms up
        started = time.thread_time()
        await rollouts.publish(version, version)
        await rollouts.published(version)
        publications.append(time.thread_time() - started)
        started = time.thread_time()
        for _ in range(GROUPS):
            rollouts.submit(run.books.admit())
        while counts.num_sampled < version * GROUPS:
            await asyncio.sleep(0)
        handing_out.append((time.thread_time() - started) / GROUPS)
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    found = {"ms_of_a_publication": publications, "ms_of_a_group": handing_out}
    return {"workers": num_workers, **{name: round(1000 * median(seconds[1:]), 3) for name, seconds in found.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    if min(*options.workers, options.repeats, 1) < 1:
        parser.error("--workers and --repeats must be at least 1")
    for num_workers in options.workers:
        with tempfile.TemporaryDirectory(prefix="fleet-") as directory:
            print(json.dumps(asyncio.run(measure(num_workers, options.repeats, Path(directory) / "run"))), flush=True)


if __name__ == "__main__":
    main()
