"""Faults in a whole run in this process, each at a moment of the run's own progress: the n-th call of a method.

chaos = Chaos(Fault("learner", "step", nth=2, how=How.BEFORE))
run = chaos.start(config)
assert run.train() == 4
check(run, chaos, tmp_path)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from actors.engine import EngineSetup, Sample, SampleRequest
from actors.reference_engine import ReferenceEngine
from actors.step_loop import RunningRequests
from buffers.config import Late
from buffers.records import FinishReason
from jobs.config import RunConfig
from jobs.directory.events import EventKind
from jobs.run.faults import KEPT_FAULTS
from learners.weights import WeightSnapshot
from tests.jobs.components_fixture import BOUND_S, Around, LocalRun, small_config

POLICIES = get_args(Late)
"""What may be done with late groups."""
PROGRESS = "progress"
"""In place of a method: an answer of `watch` that tells of tokens of unfinished groups."""


def quick_config(model: str, directory: Path, **values: Any) -> RunConfig:
    """Two workers that often tell how far they are, and no delay before a lost process is replaced. Each group is
    encoded by itself, so that its features do not depend on what else waits."""
    base: dict[str, Any] = {
        "steps": 3,
        "sampling": {"max_response_tokens": 6},
        "rollout": {"engine": "transformers", "dtype": "float32", "group_timeout_s": BOUND_S, "workers": 2, "progress_tokens": 1},
        "encoder": {"dtype": "float32", "tokens_per_batch": 1},
        "supervision": {"backoff_s": 0.0, "heartbeat_s": 0.5},
        "checkpoint": {"every": 2},
    }
    for key, value in values.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return small_config(model, directory, **base)


class How(StrEnum):
    """What happens at a call."""

    BEFORE = "before"
    """The process dies when it is called: nothing is done."""
    AFTER = "after"
    """The process dies when it has done it: its answer is lost."""
    TOLD = "told"
    """The process dies when its answer has arrived."""
    HALFWAY = "halfway"
    """The process dies with half of its files written (`save_part`, `log`)."""
    HANGS = "hangs"
    """The process answers nothing from now on."""
    STALLS = "stalls"
    """This call is never answered, others are."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """At the `nth` call of `method`, counted over all processes of a role, or of one process where `who` is its
    name."""

    who: str
    method: str
    how: How
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.who}.{self.method}-{self.nth}-{self.how}"


class Died(Exception):
    """Raised inside of a process that dies: nobody hears of it."""


class Chaos:
    """Watches over a run and breaks it."""

    def __init__(self, *faults: Fault, around: Around | None = None) -> None:
        """`around` is what happens otherwise: delays, say."""
        self.waiting = list(faults)
        self.fired: list[Fault] = []
        self.snapshots: dict[int, WeightSnapshot] = {}
        """Weights by version: all that the learner ever published."""
        self.told: dict[str, pa.RecordBatch] = {}
        """The last progress that each worker's `watch` told of."""
        self.reported: Counter[str] = Counter()
        """Tokens sampled, as far as each worker told of them."""
        self._otherwise = around
        self._calls: Counter[tuple[str, str]] = Counter()
        self._targets: dict[str, Any] = {}
        self._hanging: set[int] = set()

    def start(self, config: RunConfig, **options: Any) -> LocalRun:
        self.run = LocalRun(config, around=self._around, on_made=self._on_made, **options)
        return self.run

    def _on_made(self, name: str, target: Any) -> None:
        self._targets[name] = target

    async def _around(self, name: str, method: str, args: tuple[Any, ...], proceed: Callable[[], Awaitable[Any]]) -> Any:
        fault = self._due(name, method)
        if fault is not None:
            self._break_before(fault, name, method)
        elif id(self._targets[name]) in self._hanging:
            setattr(self._targets[name], method, _never)
        result = await (self._otherwise(name, method, args, proceed) if self._otherwise else proceed())
        if fault is None and method == "watch" and result[1].tokens_by_group:
            fault = self._due(name, PROGRESS)
        if fault is not None and fault.how in (How.AFTER, How.TOLD):
            self.kill(name)
            if fault.how is How.AFTER:
                return await proceed()  # which the dead do not answer
        self._note(name, method, result)
        return result

    def kill(self, name: str) -> None:
        self.run.handles[name].kill()

    def _due(self, name: str, method: str) -> Fault | None:
        role = name.partition("-")[0]
        for who in {name, role}:
            self._calls[who, method] += 1
        for fault in self.waiting:
            if fault.who in (name, role) and fault.method == method and self._calls[fault.who, method] == fault.nth:
                self.waiting.remove(fault)
                self.fired.append(fault)
                return fault
        return None

    def _break_before(self, fault: Fault, name: str, method: str) -> None:
        target = self._targets[name]
        match fault.how:
            case How.BEFORE:
                self.kill(name)
            case How.HALFWAY:
                self._die_halfway(name, target, method)
            case How.HANGS:
                self._hanging.add(id(target))
                setattr(target, method, _never)
            case How.STALLS:
                original = getattr(target, method)

                async def stall(*args: Any) -> Any:
                    setattr(target, method, original)
                    return await _never()

                setattr(target, method, stall)

    def _die_halfway(self, name: str, target: Any, method: str) -> None:
        """Every file that the call writes is there, a half of each; then its process is gone."""
        loop = asyncio.get_running_loop()

        def die() -> None:
            loop.call_soon_threadsafe(self.kill, name)  # heard of before the answer is
            raise Died

        def save_half(directory: Path) -> None:
            type(target).save(target, directory)
            for file in (path for path in directory.rglob("*") if path.is_file()):
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            die()

        def log_half(step: int, batches: Sequence[pa.RecordBatch]) -> None:
            directory = Path(target._log._directory)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"step_{step:06d}.parquet.partial").write_bytes(b"PAR1")
            die()

        if method == "save_part":
            target.save = save_half
        else:
            target._log.append = log_half

    def _note(self, name: str, method: str, result: Any) -> None:
        match method:
            case "publish":
                self.snapshots[result[1]] = result[0]
            case "watch":
                self.told[name] = result[0]
                self.reported[name] = max(self.reported[name], result[1].sampled_tokens)
            case "generate":
                self.reported[name] = max(self.reported[name], result[1].sampled_tokens)


async def _never(*args: Any) -> Any:
    await asyncio.Event().wait()


def check(run: LocalRun, chaos: Chaos, directory: Path, *, nothing_else: bool = True) -> None:
    """Everything that must hold after a run that came to its end, and that every fault happened and was noted.
    `nothing_else`: and no other loss was, which a short deadline on a busy machine may bring."""
    assert not chaos.waiting, f"did not happen: {[str(fault) for fault in chaos.waiting]}"
    run.check_valid()
    run.check_restorable(directory)
    noted = Counter(event["role"] for event in run.noted(EventKind.FAULT, kind="infrastructure"))
    fired = Counter(fault.who.partition("-")[0] for fault in chaos.fired)
    assert noted == fired if nothing_else else noted >= fired
    assert len(run.run.faults.newest) == min(KEPT_FAULTS, sum(run.run.faults.counts.values()))


def check_every_token(run: LocalRun, chaos: Chaos) -> None:
    """Every token trained on is the one that the weights of its version give there, whoever sampled it and after
    however many losses."""
    config = run.config
    reference = ReferenceEngine()
    reference.start(EngineSetup(model=config.model, config=config.rollout, sampling=config.sampling, seed=config.seed))
    engine = RunningRequests(reference)
    rows = run.logged()
    for version in sorted({version for row in rows for version in row["version_values"]}):
        if version:
            engine.load(chaos.snapshots[version])
        for row in rows:
            for position in _positions(row, version):
                expected = (row["response_ids"][position], row["behavior_logprobs"][position])
                assert _next_token(engine, row, position) == expected, f"token {position} of group {row['group_id']}, version {version}"


def _positions(row: dict[str, Any], version: int) -> list[int]:
    """Those of the response's tokens that were sampled under `version`."""
    ends = [*row["version_starts"][1:], len(row["response_ids"])]
    runs = zip(row["version_starts"], ends, row["version_values"], strict=True)
    return [position for start, end, value in runs if value == version for position in range(start, end)]


def _next_token(engine: RunningRequests, row: dict[str, Any], position: int) -> tuple[int, float]:
    key = f"0:{row['problem_id']}/{row['admitted_version']}/{row['attempt']}/{row['index']}"
    before = Sample(
        token_ids=tuple(row["response_ids"][:position]),
        logprobs=tuple(row["behavior_logprobs"][:position]),
        version_starts=(0,),
        version_values=(0,),
        finish_reason=FinishReason.ABORTED,
    )
    engine.add(SampleRequest(key=key, prompt_ids=row["prompt_ids"], max_tokens=position + 1, sampled=before))
    ((_, sample),) = engine.step()
    return sample.token_ids[-1], float(pa.scalar(sample.logprobs[-1], pa.float32()).as_py())
