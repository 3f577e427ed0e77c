"""A whole run in this process: the real worker, encoder, verifier, replay and learner behind local handles, no Ray.

    run = LocalRun(small_config(tiny_model, tmp_path, steps=3))
    assert run.train() == 3
    run.check_valid()

Faults are injected from outside: a component's method is replaced when it is made (`on_made`), a function goes around
every call of the components (`around`), or a process is killed (`run.handles["learner"].kill()`)."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import fs
from safetensors.torch import load_file

from actors.bonus import BonusScorer
from actors.learner import Learner
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from bonus.kinds import READS
from buffers.records import Problem, Verdict, VerdictStatus
from buffers.rollout_log import RolloutLog
from jobs.config import RunConfig
from jobs.directory.events import EventKind
from jobs.directory.run_dir import RunDirectory
from jobs.processes.description import Component, TrainingComponents
from jobs.processes.handles import Handle, LocalHandle
from jobs.run.checkpoints import forget_log_after, restore_checkpoint
from jobs.run.components import Run
from jobs.run.controller import Controller
from jobs.run.evaluations import Evaluation
from jobs.run.faults import Listener
from jobs.run.synchronous import SynchronousTrainer
from tasks.registry import make_task
from tasks.stream import ProblemStream

BOUND_S = 60.0
PROMPTS, RESPONSES = 2, 4

Around = Callable[[str, str, tuple[Any, ...], Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""around(component, method, arguments, proceed): what happens instead of a call; `proceed()` makes it."""


OnMade = Callable[[str, Any], None]
"""on_made(name, component): called with every component that is made, before anybody calls it."""


def small_config(model: str, directory: Path, **values: Any) -> RunConfig:
    """A run of two groups of four short answers a step. Sections of `values` are merged into those below."""
    base: dict[str, Any] = {
        "run_dir": str(directory / "run"),
        "model": model,
        "steps": 3,
        "prompts_per_step": PROMPTS,
        "responses_per_prompt": RESPONSES,
        "max_policy_lag": 1,
        "wait_timeout_s": BOUND_S,
        "sampling": {"max_response_tokens": 6},
        "rollout": {"engine": "transformers", "dtype": "float32", "group_timeout_s": BOUND_S},
        "encoder": {"dtype": "float32"},
        # a bonus for every group and for responses without an end, so that there is a gradient in every step; a rate at
        # which two steps give other samples
        "bonus": {"dim": 8, "memory": "run", "gate": "always", "ridge": "auto", "cut_off": "keep"},
        "learner": {"dtype": "float32", "lr": 1e-2, "warmup_steps": 0, "advantage": {"combine": "advantage", "beta": 0.5}},
    }
    if kind := values.get("bonus", {}).get("kind"):  # a bonus that does not know what the elliptical one is told
        base["bonus"] = {"dim": 8, **({"cut_off": "keep"} if "cut_off" in READS.get(kind, ()) else {})}
    for key, value in values.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(base)


class CoinJudge:
    """In place of the verifier pool: half of all answers are correct, always the same ones."""

    def verify_batch(self, problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        return self.verify(problem, batch.column("response_text").to_pylist())

    def verify(self, problem: Problem, responses: Sequence[str]) -> list[Verdict]:
        return [self.verdict(text) for text in responses]

    def verdict(self, text: str) -> Verdict:
        correct = zlib.crc32(text.encode()) % 2 == 0
        return Verdict(status=VerdictStatus.CORRECT if correct else VerdictStatus.INCORRECT, reward=float(correct))


class VerifierProcess:
    """A process around the judge: what is done to it is not done to the next one."""

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)


class Interposed(Handle[Any]):
    """A handle with a function around each of its calls."""

    def __init__(self, handle: Handle[Any], around: Around) -> None:
        self.name = handle.name
        self._handle = handle
        self._around = around

    async def call_named(self, method: str, args: tuple[Any, ...], **options: Any) -> Any:
        return await self._around(self.name, method, args, lambda: self._handle.call_named(method, args, **options))

    async def placed(self) -> str | None:
        return await self._handle.placed()

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        return await self._handle.rss_bytes(timeout_s=timeout_s)

    def kill(self) -> None:
        self._handle.kill()


class LocalRun:
    """One start of a run in `config.run_dir`: everything fresh, restored from the newest checkpoint if there is one."""

    def __init__(
        self,
        config: RunConfig,
        *,
        judge: Any = None,
        around: Around | None = None,
        synchronous: bool = False,
        on_made: OnMade | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.config = config
        self.directory = RunDirectory(config)
        self.checkpoints = self.directory.checkpoints
        self.task = make_task(config.task)
        self.stream = ProblemStream(self.task, "train", config.seed, config.task.curriculum)
        self.reports: list[tuple[int, dict[str, float]]] = []
        self.events: list[tuple[EventKind, dict[str, Any]]] = []
        self.warnings: list[str] = []
        self.evaluated: list[tuple[int, dict[str, float]]] = []
        self.on_report: Callable[[int], None] = lambda step: None
        self.judge = judge or CoinJudge()
        self.parts: dict[str, list[Any]] = {}
        """Every component ever made, by role, oldest first."""
        self.handles: dict[str, Handle] = {}
        """The newest handle by name: `run.handles["learner"].kill()`."""
        self._around = around
        self._on_made = on_made
        components = TrainingComponents(config, config.model, run_id="test", log_directory=str(self.directory.rollouts))
        listener = Listener(
            stepped=self._report,
            evaluated=lambda step, metrics: self.evaluated.append((step, metrics)),
            warn=self.warnings.append,
            note=self._note,
        )
        self.run = Run(
            config,
            components=components,
            launch=self._launch,
            stream=self.stream,
            directory=self.directory,
            listener=listener,
        )
        self.books = self.run.books
        self.admission = self.books.admission
        self.trainer = (SynchronousTrainer if synchronous else Controller)(self.run, evaluation=evaluation)

    def _launch(self, component: Component[Any]) -> Handle[Any]:
        """An object in this process, made as Ray would make it; the judge stands in for the verifier's processes."""
        name = component.name
        target = VerifierProcess(self.judge) if component.cls is VerifierPool else component.make()
        local = LocalHandle(target, name)
        handle: Handle[Any] = Interposed(local, self._around) if self._around else local
        if self._on_made:
            self._on_made(name, target)
        self.parts.setdefault(name.partition("-")[0], []).append(target)
        self.handles[name] = handle
        return handle

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        self.reports.append((step, metrics))
        self.on_report(step)

    def _note(self, kind: EventKind, /, **fields: Any) -> None:
        self.events.append((kind, fields))
        self.books.check_valid()

    def train(self) -> int:
        """Train in an event loop of its own; returns the last step."""
        return asyncio.run(self.train_async())

    async def train_async(self) -> int:
        start_step = self.checkpoints.latest() or 0
        try:
            async with asyncio.timeout(BOUND_S):
                self.directory.forget_snapshots()
                if start_step:
                    await restore_checkpoint(self.run, start_step)
                else:
                    await forget_log_after(self.run, 0)
                return await self.trainer.train(start_step)
        finally:
            for worker in [
                *self.parts.get("rollout", []),
                *self.parts.get("evaluation", []),
            ]:  # engines of killed workers have a thread in this process
                await RolloutWorker.close(worker)

    # ---- what was learnt ----

    @property
    def the_learner(self) -> Learner:
        """The newest one."""
        learner: Learner = self.parts["learner"][-1]
        return learner

    @property
    def the_bonus(self) -> BonusScorer | None:
        return self.parts["bonus"][-1] if "bonus" in self.parts else None

    def logged(self, outcome: str = "trained") -> list[dict[str, Any]]:
        """Rows of the rollout log with `outcome`, in step order."""
        table = RolloutLog(fs.LocalFileSystem(), str(self.directory.rollouts)).read()
        return [row for row in table.to_pylist() if row["outcome"] == outcome]

    def trained_problems(self) -> list[str]:
        """One id a group, in the order trained."""
        rows = self.logged()
        return [row["problem_id"] for row in rows[:: self.config.responses_per_prompt]]

    def samples(self) -> list[tuple[str, ...]]:
        """All that was trained on, in order."""
        columns = ("step", "problem_id", "index", "response_ids", "behavior_logprobs", "version_values", "reward", "bonus", "advantage")
        return [tuple(str(row[column]) for column in columns) for row in self.logged()]

    def noted(self, kind: EventKind, /, **fields: Any) -> list[dict[str, Any]]:
        """Events of this kind that have these fields, in order."""
        return [event for found, event in self.events if found is kind and fields.items() <= event.items()]

    def outcomes(self) -> Counter[tuple[str, str]]:
        """(problem, what became of it) of every problem that the stream has handed out, over all starts."""
        found = [(problem, "trained") for problem in self.trained_problems()]
        found += [(request.problem.problem_id, "in flight") for request in self.admission.in_flight]
        found += [(entry["problem"]["problem_id"], "waiting") for entry in self.admission.state_dict()["waiting"]]
        found += [(entry.problem.problem_id, "quarantined") for entry in self.admission.quarantined]
        return Counter(found)

    def problems_handed_out(self) -> list[str]:
        """Over all starts, in order."""
        fresh = ProblemStream(self.task, "train", self.config.seed)
        return [next(fresh).problem_id for _ in range(self.stream.cursor)]

    def lags(self) -> list[int]:
        """Versions between the sampling of a trained row's oldest token and its gradient."""
        trained = [(row, [v for v in row["version_values"] if v >= (row["trained_from_version"] or 0)]) for row in self.logged()]
        return [row["step"] - 1 - min(versions) for row, versions in trained if versions]

    def check_valid(self) -> None:
        """What holds after any run that came to its end, however it went."""
        steps = self.config.steps
        self.books.check_valid()
        self.books.tokens.check_sums()
        counts = self.books.tokens.counts()
        assert counts["trained"] + counts["masked"] == sum(len(row["response_ids"]) for row in self.logged())
        assert self.checkpoints.latest() == steps
        assert self.the_learner.version == steps
        rows, trained = self.logged(), self.trained_problems()
        assert Counter(row["step"] for row in rows) == {step: PROMPTS * RESPONSES for step in range(1, steps + 1)}
        assert len(set(trained)) == steps * PROMPTS, "a problem was trained on twice"
        assert len({row["group_id"] for row in rows}) == steps * PROMPTS, "a group was trained on twice"
        for row in rows:
            newest, first = row["step"] - 1, row["trained_from_version"]
            versions = {version for version in row["version_values"] if first is None or version >= first}
            assert versions <= set(range(newest - self.config.max_policy_lag, newest + 1)), f"{versions} in step {row['step']}"
            assert first is None or self.config.late == "mask"
        ledger = self.admission.ledger
        assert ledger.trained + ledger.released == steps * PROMPTS
        accounted = Counter(problem for problem, _ in self.outcomes().elements())
        assert accounted == Counter(self.problems_handed_out()), "a problem was lost or doubled"
        if isinstance(self.trainer, Controller):
            self._check_events()

    def _check_events(self) -> None:
        """What was noted in this start adds up to what there is."""
        admitted = [event["group_id"] for event in self.noted(EventKind.ADMITTED)]
        drawn = [group_id for event in self.noted(EventKind.BATCH) for group_id in event["group_ids"]]
        dropped = [event["group_id"] for event in self.noted(EventKind.DROPPED)]
        in_flight = [request.group_id for request in self.admission.in_flight]
        ended = Counter(drawn + dropped + in_flight)
        assert set(ended.values()) <= {1}, f"a group has two ends: {ended.most_common(3)}"
        assert ended.keys() >= set(admitted), f"groups without an end: {set(admitted) - ended.keys()}"
        assert len(self.noted(EventKind.FAULT)) == sum(self.run.faults.counts.values())
        self._check_joiners()

    def _check_joiners(self) -> None:
        """A worker that joined after a version was live everywhere samples nothing under an older one."""
        live, live_when_joined, given = 0, {}, {}
        for kind, event in self.events:
            if kind is EventKind.PUBLISHED:
                live = event["version"]
            elif kind is EventKind.WORKER and event["state"] == "serving":
                live_when_joined[event["worker"]] = live
            elif kind is EventKind.DISPATCHED:
                given[event["group_id"]] = event
        for row in self.logged():
            last = given.get(row["group_id"])
            if last is not None and last["resumed_tokens"] == 0:
                assert min(row["version_values"]) >= live_when_joined[row["worker_id"]], f"{row['worker_id']} sampled under old weights"

    def check_restorable(self, directory: Path) -> None:
        """The last checkpoint is whole, and a fresh start from it has all that was learnt."""
        fresh = LocalRun(self.config)
        asyncio.run(restore_checkpoint(fresh.run, self.config.steps))
        assert_same_state(self.state(directory / "mine"), fresh.state(directory / "restored"))
        fresh.admission.check_valid()
        fresh.books.tokens.check_sums()
        assert Counter(problem for problem, _ in fresh.outcomes().elements()) == Counter(fresh.problems_handed_out())

    def state(self, directory: Path) -> dict[str, torch.Tensor]:
        """All that is learnt, by name: parameters, moments, covariance. The generator of the process is shared, hence
        left out."""
        directory.mkdir(parents=True)
        self.the_learner.save(directory)
        (weights,) = [*directory.glob("policy/model.safetensors"), *directory.glob("adapter/adapter_model.safetensors")]
        state = {f"policy/{name}": tensor for name, tensor in load_file(weights).items()}
        state |= {f"optimiser/{name}": tensor for name, tensor in load_file(directory / "optimiser.safetensors").items() if name != "rng"}
        if self.the_bonus is not None:
            self.the_bonus.save(directory)
            state |= {f"bonus/{name}": tensor for name, tensor in load_file(directory / "bonus.safetensors").items()}
        return state


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])]
    assert not different, different


def random_delays(rng: random.Random, *, most_s: float = 0.02) -> Around:
    """Every call begins late and its answer arrives late; now and then much later."""

    async def around(component: str, method: str, args: Sequence[Any], proceed: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(rng.random() * most_s)
        result = await proceed()
        await asyncio.sleep(rng.random() * most_s * (8 if rng.random() < 0.15 else 1))
        return result

    return around
