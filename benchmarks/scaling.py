"""How the asynchronous loop scales: groups a second against the ideal, who waits, what is lost, and what it costs.

    python -m benchmarks.scaling                                          # 8 workers at S = 0, 1, 2, 4, 8, log-normal
    python -m benchmarks.scaling --ray --workers 1,2,4,8 --lag 2 --lengths fixed
    python -m benchmarks.scaling --time-scale 0 --lag 2 --lengths fixed   # nothing sleeps: what the controller can do
    python -m benchmarks.scaling --out rows.jsonl                         # measures what rows.jsonl does not have yet

Real are the controller and its books, the event log and the metrics, replay and the rollout log, the verifier pool with
its processes, and the rollout workers; with --ray each in its own process. The engines and the learner sleep
(`benchmarks.sleeping`). A token takes 0.1 s: that is vLLM 0.32 with 32 sequences of the embedded model on one thread of
machine A (0.088 to 0.099 s a step; 0.031 s with 4), and 32 is what 8 lanes of 4 responses hold. A group has a mean of
10 tokens, so it takes 1 s. A step has 4 groups for every worker, and the learner takes 1 s for it.

The ideal is the smaller of two limits: the learner's, P / seconds of a step, and the engines', lanes / mean seconds of
a group. A row is measured between the ends of two steps, the first of them step S + 3. "loop ms" is the CPU of the
driver's event loop for each group; with --ray it is the controller's alone, without it the workers' is in it too. All
values in --workers, --lag, --late and --lengths are combined. All draws have seed 0.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil

from benchmarks.sleeping import Lengths, SleepingComponents, name_of_group
from jobs.config import RunConfig
from jobs.directory.events import EventKind, EventLog
from jobs.directory.metrics import MetricsWriter
from jobs.directory.run_dir import RunDirectory
from jobs.directory.trackers import RunInfo, Trackers
from jobs.processes.build import launch, namespace, ray_session
from jobs.processes.description import Component, Launch, needs_of_run
from jobs.processes.handles import Handle, LocalHandle
from jobs.run.components import Run
from jobs.run.controller import Controller
from jobs.run.faults import Listener
from tasks.registry import make_task
from tasks.stream import ProblemStream
from tests.tiny_model import make_tiny_model

POLICIES = ("mask", "wait", "drop")
"""What may be done with late groups."""
ENDLESS = 10**9
FEWEST_STEPS = 10
LONGEST_SHARE = 50
"""A response is cut at this many times the mean."""
LOOK_S = 0.1
"""Seconds between two looks at the lanes."""
THREADS = 64
"""Of the driver, for parts of a run in this process: each of them may sleep in one."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one row is measured with."""

    workers: int
    lag: int
    late: str
    lengths: str
    again: str
    ray: bool
    lanes_per_worker: int
    prompts_per_worker: int
    group_size: int
    mean_tokens: float
    token_s: float
    learner_s: float
    time_scale: float
    verifiers: int
    seconds: float

    @property
    def draws(self) -> Lengths:
        return Lengths(kind=self.lengths, group_size=self.group_size, mean_tokens=self.mean_tokens)

    @property
    def prompts_per_step(self) -> int:
        return self.workers * self.prompts_per_worker

    @property
    def ideal(self) -> float | None:
        """The groups a second if nothing took time but the learner and the engines; None where these take none."""
        if not self.time_scale:
            return None
        group_s = self.draws.mean_longest * self.token_s
        return min(self.prompts_per_step / self.learner_s, self.workers * self.lanes_per_worker / group_s) / self.time_scale

    def config(self, directory: Path, model: str) -> RunConfig:
        draws = self.draws
        options = {"kind": self.lengths, "group_size": self.group_size, "mean_tokens": self.mean_tokens}
        values: dict[str, Any] = {
            "run_dir": str(directory),
            "model": model,
            "steps": ENDLESS,
            "prompts_per_step": self.prompts_per_step,
            "responses_per_prompt": self.group_size,
            "max_policy_lag": self.lag,
            "trackers": (),
            "task": {"arithmetic": {"sum_max": 10**6, "weights": {"difference": 0, "product": 0, "equation": 0}}},
            "sampling": {"max_response_tokens": int(LONGEST_SHARE * draws.mean_longest)},
            "rollout": {
                "engine": "benchmarks.sleeping:SleepingEngine",
                "engine_options": {"token_s": self.token_s * self.time_scale, "again": self.again, **options},
                "workers": self.workers,
                "max_sequences": self.lanes_per_worker * self.group_size,
                "dtype": "float32",
                "start_timeout_s": 900.0,
            },
            "bonus": {"enabled": False},
            "verifier": {"num_workers": self.verifiers},
            "learner": {"dtype": "float32", "advantage": {"beta": 0.0}},
            "checkpoint": {"every": ENDLESS},
        }
        return RunConfig.model_validate(values | ({"late": self.late} if "late" in RunConfig.model_fields else {}))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What had been counted at the end of a step."""

    step: int
    at: float
    loop_cpu_s: float
    cpu_s: Mapping[str, float]
    metrics: Mapping[str, float]
    num_completed: int
    num_trained: int


class Recorder:
    """Writes down what a run says, as a session does, and measures between the ends of two steps."""

    def __init__(self, setting: Setting, config: RunConfig, directory: RunDirectory) -> None:
        directory.path.mkdir(parents=True, exist_ok=True)
        trackers = Trackers([], RunInfo.of(directory.path, config, resume_step=0), warn=print)
        self._events = EventLog(directory.events)
        self._metrics = MetricsWriter(directory.metrics, trackers, resume_step=0)
        self._setting = setting
        self.listener = Listener(stepped=self._stepped, note=self._note, warn=lambda text: None)  # metrics count what is given up
        self.problems: dict[int, str] = {}
        self.completed: list[int] = []
        self.trained: list[int] = []
        self.waited_s = 0.0
        self.idle_shares: list[float] = []
        self.first: Moment | None = None
        self.last: Moment | None = None

    async def watch(self, controller: Controller) -> None:
        """Look at the lanes until all is measured, then stop the run."""
        while self.last is None:
            await asyncio.sleep(LOOK_S)
            if self.first is not None:
                self.idle_shares.append(controller.rollouts.lane_idle_share())
        controller.stop()

    def close(self) -> None:
        self._events.close()
        self._metrics.close()

    def _note(self, kind: EventKind, /, **fields: Any) -> None:
        self._events.write(kind, **fields)
        if kind is EventKind.ADMITTED:
            self.problems[fields["group_id"]] = fields["problem_id"]
        elif kind is EventKind.COMPLETED:
            self.completed.append(fields["group_id"])
        elif kind is EventKind.BATCH:
            self.trained += fields["group_ids"]

    def _stepped(self, step: int, metrics: dict[str, float]) -> None:
        self._metrics.write(step, metrics)
        if self.first is None:
            if step >= self._setting.lag + 3:
                self.first = self._moment(step, metrics)
        elif self.last is None:
            self.waited_s += metrics["time/wait_for_batch_s"]
            if time.monotonic() - self.first.at >= self._setting.seconds and step - self.first.step >= FEWEST_STEPS:
                self.last = self._moment(step, metrics)

    def _moment(self, step: int, metrics: Mapping[str, float]) -> Moment:
        return Moment(
            step=step,
            at=time.monotonic(),
            loop_cpu_s=time.thread_time(),
            cpu_s=cpu_by_role(),
            metrics=metrics,
            num_completed=len(self.completed),
            num_trained=len(self.trained),
        )

    def result(self) -> dict[str, Any]:
        setting, first, last = self._setting, self.first, self.last
        assert first is not None and last is not None, "the run ended before it was measured"
        elapsed_s = last.at - first.at
        trained, completed = self.trained[first.num_trained : last.num_trained], self.completed[first.num_completed : last.num_completed]
        grown = {name: value - first.metrics.get(name, 0.0) for name, value in last.metrics.items()}
        rate, stale = len(trained) / elapsed_s, grown["groups/dropped_stale"]
        masked, tokens = grown.get("tokens/masked", 0.0), grown["tokens/trained"]
        cpu_ms = {role: 1000 * (seconds - first.cpu_s.get(role, 0.0)) / len(trained) for role, seconds in last.cpu_s.items()}
        resident = [value for name, value in last.metrics.items() if name.startswith("memory/rollout-")]
        return {
            "steps": last.step - first.step,
            "elapsed_s": round(elapsed_s, 2),
            "groups_per_s": round(rate, 2),
            "ideal_groups_per_s": setting.ideal and round(setting.ideal, 2),
            "share_of_ideal": setting.ideal and round(rate / setting.ideal, 4),
            "learner_waits": round(self.waited_s / elapsed_s, 4),
            "lanes_wait": round(float(np.mean(self.idle_shares)), 4),
            "dropped": round(stale / (stale + len(trained)), 4),
            "masked": round(masked / (masked + tokens), 4),
            "given_up": int(grown["groups/quarantined"]),
            **self._bias(trained, completed),
            "loop_ms": round(1000 * (last.loop_cpu_s - first.loop_cpu_s) / len(trained), 3),
            "cpu_ms": {role: round(value, 3) for role, value in sorted(cpu_ms.items())},
            "worker_mib": round(float(np.median(resident)), 1) if resident else None,
        }

    def _bias(self, trained: Sequence[int], sampled: Sequence[int]) -> dict[str, float]:
        """Return how long groups were: those trained on, and all that were sampled. KS is the largest distance between
        the two distributions."""
        draws, seconds = self._setting.draws, self._setting.token_s * self._setting.time_scale
        found: dict[str, float] = {}
        lengths: dict[str, np.ndarray] = {}
        for name, ids in (("trained", trained), ("sampled", sampled)):
            groups = (name_of_group(group_id=each, problem_id=self.problems[each], again=self._setting.again) for each in ids)
            lengths[name] = np.sort([max(draws.of(group)) for group in groups])
            mean, p95 = float(lengths[name].mean()), float(np.quantile(lengths[name], 0.95))
            found |= {f"{name}_tokens": round(mean, 2), f"{name}_tokens_p95": round(p95, 2)}
            found |= {f"{name}_s": round(mean * seconds, 3), f"{name}_s_p95": round(p95 * seconds, 3)}
        everything = np.concatenate(list(lengths.values()))
        below = [np.searchsorted(each, everything, side="right") / len(each) for each in lengths.values()]
        return found | {"ks": round(float(np.abs(below[0] - below[1]).max()), 4)}


def cpu_by_role() -> dict[str, float]:
    """Return the seconds of CPU that the living processes of this one have had, by what they are."""
    found = Counter({"driver": time.process_time()})
    for process in psutil.Process().children(recursive=True):
        try:
            times, command = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:  # it has just ended
            continue
        role = "ray system"
        if command.startswith("ray::"):
            role = command.removeprefix("ray::").split(".")[0].split("(")[0].strip()
        elif "multiprocessing" in command:
            role = "verifying"
        found[role] += times.user + times.system
    return dict(found)


def launch_here(component: Component[Any]) -> Handle[Any]:
    """Make a component an object in this process."""
    return LocalHandle(component.make(), component.name, max_concurrency=component.max_concurrency)


async def run_once(setting: Setting, config: RunConfig, start: Launch, profile: cProfile.Profile | None) -> dict[str, Any]:
    """Run until the row is measured."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    directory = RunDirectory(config)
    recorder = Recorder(setting, config, directory)
    step_s = setting.learner_s * setting.time_scale
    components = SleepingComponents(config, config.model, step_s=step_s, run_id="scaling", log_directory=str(directory.rollouts))
    stream = ProblemStream(make_task(config.task), "train", config.seed, config.task.curriculum)
    run = Run(config, components=components, launch=start, stream=stream, directory=directory, listener=recorder.listener)
    try:
        await run.ready()
        controller = Controller(run)
        with profile or nullcontext():
            await controller.train(0, alongside=[recorder.watch(controller)])
    finally:
        await run.close()
        recorder.close()
    return recorder.result()


def measure(setting: Setting, profile: cProfile.Profile | None = None) -> dict[str, Any]:
    """Return the row of `setting`."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as place:
        config = setting.config(Path(place) / "run", make_tiny_model(Path(place) / "model"))
        session = ray_session(namespace(config.run_dir), needs_of_run(config)) if setting.ray else nullcontext()
        with session:
            return asyncio.run(run_once(setting, config, launch if setting.ray else launch_here, profile))


HEAD = (
    *("workers", "S", "late groups", "lengths", "groups/s", "of ideal", "learner waits", "lanes wait", "dropped", "masked", "given up"),
    *("trained s (p95)", "sampled s (p95)", "KS", "loop ms", "all CPU ms"),
)


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as a line of a Markdown table."""
    cells = [
        *(row["workers"], row["lag"], row["late"], row["lengths"].partition(":")[0], f"{row['groups_per_s']:.1f}"),
        "-" if row["share_of_ideal"] is None else f"{row['share_of_ideal']:.1%}",
        *(f"{row[name]:.1%}" for name in ("learner_waits", "lanes_wait", "dropped", "masked")),
        row["given_up"],
        *(f"{row[f'{name}_s']:.2f} ({row[f'{name}_s_p95']:.2f})" for name in ("trained", "sampled")),
        *(f"{row['ks']:.3f}", f"{row['loop_ms']:.2f}", f"{sum(row['cpu_ms'].values()):.1f}"),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def known_policies() -> tuple[str, ...]:
    """Return what this version of the code can do with late groups."""
    key = RunConfig.model_fields.get("late")
    return ("drop",) if key is None else get_args(key.annotation)


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """Return every combination. Raise ValueError where one is wrong."""
    shared = ("again", "ray", "lanes_per_worker", "prompts_per_worker", "group_size", "mean_tokens", "token_s", "learner_s")
    common = {name: getattr(options, name) for name in (*shared, "time_scale", "verifiers", "seconds")}
    if unknown := set(options.late.split(",")) - set(POLICIES):
        raise ValueError(f"--late takes {', '.join(POLICIES)}, not {min(unknown)}")
    found = [
        Setting(workers=int(workers), lag=int(lag), late=late, lengths=lengths, **common)
        for lengths, workers, lag, late in product(*(getattr(options, name).split(",") for name in ("lengths", "workers", "lag", "late")))
    ]
    for setting in found:
        setting.config(Path("unused"), "unused")
        if min(setting.mean_tokens, setting.token_s, setting.learner_s, setting.seconds) <= 0 or setting.time_scale < 0:
            raise ValueError("lengths and seconds must be above 0, and --time-scale must not be below")
    return found


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.exists() else []


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--workers", default="8", help="numbers of rollout workers, separated by commas")
    add("--lag", default="0,1,2,4,8", help="values of S = max_policy_lag")
    add("--late", default="mask", help=f"what is done with late groups: {', '.join(POLICIES)}")
    add("--lengths", default="lognormal", help='"fixed", "lognormal" (sigma 1), or "log:DIR" with the rollouts of a run')
    add("--again", default="new", choices=("new", "same"), help="the length of a group whose problem is tried again")
    add("--ray", action="store_true", help="real actors; else all but the verifiers' processes is in this one")
    add("--lanes-per-worker", type=int, default=8)
    add("--prompts-per-worker", type=int, default=4, help="P of a step, for each worker")
    add("--group-size", type=int, default=4, help="K")
    add("--mean-tokens", type=float, default=10.0, help="of a response; a log has its own")
    add("--token-s", type=float, default=0.1)
    add("--learner-s", type=float, default=1.0, help="of a step")
    add("--time-scale", type=float, default=1.0, help="factor on all seconds that are slept; 0: nothing sleeps")
    add("--verifiers", type=int, default=1, help="verifier processes")
    add("--seconds", type=float, default=40.0, help=f"to measure a row for; at least {FEWEST_STEPS} steps")
    add("--out", type=Path, help="JSON lines, one a row; rows that it has are not measured again")
    add("--profile", metavar="FILE", help="write a cProfile of the event loop of the last row")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser()
    options = command.parse_args(arguments)
    try:
        settings, rows = settings_of(options), read_rows(options.out)
    except (ValueError, OSError) as error:
        command.error(str(error))
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for setting in settings:
        if setting.late not in known_policies():
            print(f'(left out: late = "{setting.late}", which this version of the code does not have)', flush=True)
            continue
        row = next((row for row in rows if asdict(setting).items() <= row.items()), None)
        if row is None:
            profile = cProfile.Profile() if options.profile else None
            row = {**asdict(setting), **measure(setting, profile)}
            if profile is not None:
                profile.dump_stats(options.profile)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        print(line_of(row), flush=True)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
