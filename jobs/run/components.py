"""A run's parts, and the steps of a group and of a batch, which both trainers go through.

    request ──generate──> Sampled ──verify_and_encode──> Scored ──insert──> replay          (a group)
    draw ──> add_bonus ──> learn ──> log ──> weights                                        (a step)

Bulk data is passed on as references. Every step has a deadline that names what it waits for. Every component but the
rollout workers (`jobs.run.rollouts`) is supervised: where its process is lost, a new one is brought to where the run
is, and the call is made again. What a new one needs for that is here, or on disk:

| component | its state, again                                                                                     |
|-----------|------------------------------------------------------------------------------------------------------|
| learner   | the newest checkpoint or snapshot, then the rollout log of the steps since, trained on again          |
| bonus     | the newest checkpoint, then the rollout log of the steps since, absorbed again                        |
| replay    | the groups inserted and not yet drawn, whose references are kept until they are trained on            |
| encoders, verifier | none                                                                                        |
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from actors.replay import DrawnBatch, Logged
from actors.verifier import ResizeError
from buffers.admission import Admission
from buffers.records import GroupRequest, GroupUsage, Problem, StepReport, Verdict
from buffers.replay import InsertResult
from buffers.tokens import TokenLedger
from jobs.config import RunConfig
from jobs.directory.events import EventKind
from jobs.processes.encoders import EncoderPool
from jobs.processes.handles import DataLost, Handle
from jobs.processes.restart_budget import RestartBudget
from jobs.processes.supervised import OnFailure, Supervised
from jobs.run.observations import Observations
from jobs.run.watchdog import FIRST_WAIT_S, SHORT_WAIT_S, Waits
from learners.checkpoint import CheckpointManager, FileEntry
from tasks.base import Task, TaskError
from tasks.stream import ProblemStream

OnStep = Callable[[int, dict[str, float]], None]


MOST_PASSED_OVER = 1000


class StateLost(RuntimeError):
    """A component's state cannot be found again; the run can only be resumed from its checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """A generated group: `batch` is a reference to its rows."""

    request: GroupRequest
    batch: Any
    usage: GroupUsage


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A group ready for replay."""

    request: GroupRequest
    batch: Any
    verdicts: list[Verdict]
    encode_s: float


class Factory(Protocol):
    """Makes components: a handle is there at once, its process is ready later."""

    def rollout_worker(self, number: int) -> Handle: ...
    def evaluation_worker(self) -> Handle: ...
    def encoder(self, number: int) -> Handle: ...
    def learner(self) -> Handle: ...
    def bonus(self) -> Handle: ...
    def verifier(self) -> Handle: ...
    def replay(self) -> Handle: ...


class Run:
    """What a trainer works with: configuration, components, and the state the controller's process owns.

    `report(step, metrics)` is called after every step, `evaluated(step, metrics)` after every evaluation of one,
    `on_failure(role, error)` whenever a process is lost, `note(kind, **fields)` with every event
    (`jobs.directory.events`), `warn(text)` with what whoever started the run should know. `step` counts the steps
    trained: the version the learner has, and must have again if it is replaced."""

    def __init__(
        self,
        *,
        config: RunConfig,
        factory: Factory,
        task: Task,
        stream: ProblemStream,
        admission: Admission,
        checkpoints: CheckpointManager,
        snapshots: CheckpointManager,
        log_directory: str,
        report: OnStep,
        on_failure: OnFailure = lambda role, error: None,
        warn: Callable[[str], None] = lambda text: None,
        evaluated: OnStep = lambda step, metrics: None,
        note: Callable[..., None] = lambda kind, **fields: None,
        run_id: str = "",
    ) -> None:
        self.config = config
        self.factory = factory
        self.task = task
        self.stream = stream
        self.admission = admission
        self.checkpoints = checkpoints
        self.snapshots = snapshots
        self.report = report
        self.on_failure = on_failure
        self.warn = warn
        self.evaluated = evaluated
        self.note = note
        self.run_id = run_id
        self.tokens = TokenLedger()
        self.waits = Waits(floor_s=SHORT_WAIT_S)
        self.observations = Observations(
            lambda problem, num_correct, num_scored: stream.observe(problem, num_correct=num_correct, num_scored=num_scored)
        )
        self.step = 0
        self.on_rows_lost: Callable[[int, DataLost], None] = _raise
        """on_rows_lost(group_id, error): a group is no longer in replay, because its rows went with a node. It is still
        in flight."""
        self.held: dict[int, Scored] = {}
        """Groups in replay that arrived since this start, by id."""
        self._log_directory = log_directory
        self._num_verifiers: int | None = None
        self._restored_rows: Any = None  # a reference to the groups that came with a restored checkpoint, and which are still held
        self._restored_ids: set[int] = set()
        self._drawn_ids: set[int] = set()  # the step in progress
        self._unlogged: Any = None  # the batch of a step that the learner has done and the log has not
        self.learner = self._supervised("learner", factory.learner, self._restore_learner)
        self.replay = self._supervised("replay", factory.replay, self._restore_replay)
        self.verifier = self._supervised("verifier", factory.verifier, self._restore_verifier)
        self.bonus = self._supervised("bonus", factory.bonus, self._restore_bonus) if config.bonus.enabled else None
        self.encoders = EncoderPool(self._encoder, config.encoder.replicas if config.bonus.feature_source == "encoder" else 0)

    @property
    def stateful(self) -> dict[str, Handle]:
        """The parts of a checkpoint, by name."""
        parts: dict[str, Handle] = {"learner": self.learner, "replay": self.replay}
        return parts | ({"bonus": self.bonus} if self.bonus else {})

    @property
    def supervised(self) -> dict[str, Handle]:
        """Every component but rollout workers and encoders, by role."""
        return self.stateful | {"verifier": self.verifier}

    async def ready(self) -> None:
        """Wait until every component that has something to load has loaded it. Raises the first one's own error."""
        timeout_s = self.config.rollout.start_timeout_s
        loading = [handle for handle in (self.learner, self.bonus, *self.encoders.handles) if handle is not None]
        await asyncio.gather(*(handle.ready(timeout_s=timeout_s) for handle in loading))

    async def close(self) -> None:
        """Let verifier processes end by themselves. Rollout workers are closed by `jobs.run.rollouts`, the others with
        Ray."""
        with suppress(Exception):  # on the way out; what matters was raised before
            await self.verifier.close()

    async def resize_verifier(self, num_workers: int) -> None:
        """So many verifier processes; a verifier pool that is lost later is made anew with as many. Raises ResizeError
        where they do not start: there are then as many as before."""
        await self._call(self.verifier, "resize", num_workers, waiting_for=f"{num_workers} verifier processes")
        self._num_verifiers = num_workers

    # ---- a group ----

    def admit(self) -> GroupRequest:
        """Take a free slot for the next problem that was not given up. Raises RuntimeError without a slot, TaskError
        where every problem was given up."""
        request = self.admission.admit(self._next_problem)
        self.note(
            EventKind.ADMITTED,
            group_id=request.group_id,
            problem_id=request.problem.problem_id,
            attempt=request.attempt,
            version=request.admitted_version,
        )
        return request

    def _next_problem(self) -> Problem:
        given_up = self.admission.quarantined
        for _ in range(2 * len(given_up) + MOST_PASSED_OVER):  # two epochs of these, and enough for a rare part of a mixture
            problem = next(self.stream)
            if not self.admission.is_quarantined(problem):
                return problem
        last = given_up[-1]
        raise TaskError(
            f"no problem is left to train on: all {len(given_up)} were given up after max_attempts groups each, the last "
            f"({last.problem.problem_id}) for '{last.reason}'"
        )

    async def generate(self, worker: Handle, request: GroupRequest, resume: Any = None) -> Sampled:
        """`resume` refers to what was sampled of the group before (`RolloutWorker.generate`)."""
        batch, usage = await worker.call(
            "generate",
            request,
            self.task.prompt(request.problem),
            resume,
            returns=2,
            timeout_s=self.config.rollout.group_timeout_s,
            waiting_for=f"group {request.group_id} ({request.problem.problem_id}) on {worker.name}",
        )
        return Sampled(request=request, batch=batch, usage=usage)

    async def verify_and_encode(self, sampled: Sampled) -> Scored:
        """Verification and encoding run side by side once a group's responses are in. Raises CallGivenUp where it costs
        too many encoders."""
        scored = await self._verify_and_encode(sampled)
        request, counts = scored.request, Counter(verdict.status.value for verdict in scored.verdicts)
        self.note(EventKind.VERDICTS, group_id=request.group_id, counts=dict(counts))
        self.observations.judged(request.group_id, request.problem, scored.verdicts)
        return scored

    async def _verify_and_encode(self, sampled: Sampled) -> Scored:
        request = sampled.request
        verifying = self._call(
            self.verifier, "verify_batch", request.problem, sampled.batch, waiting_for=f"verdicts of group {request.group_id}"
        )
        if not len(self.encoders):
            return Scored(request=request, batch=sampled.batch, verdicts=await verifying, encode_s=0.0)
        tries, timeout_s = self.config.supervision.max_group_tries, self.config.wait_timeout_s
        encoding = self.encoders.encode(request.group_id, sampled.batch, timeout_s=timeout_s, max_tries=tries)
        with self.waits.ending():
            verdicts, (batch, encode_s) = await asyncio.gather(verifying, encoding)
        return Scored(request=request, batch=batch, verdicts=verdicts, encode_s=encode_s)

    async def insert(self, scored: Scored, version: int) -> InsertResult:
        """DUPLICATE is what a group gets whose first answer was lost: it is in."""
        group_id = scored.request.group_id
        arguments = (scored.batch, scored.verdicts, version, self._is_filterable(scored.request))
        result: InsertResult = await self._call(self.replay, "insert", *arguments, waiting_for=f"replay to take group {group_id}")
        if result in (InsertResult.ACCEPTED, InsertResult.DUPLICATE):
            self.held[group_id] = scored
        return result

    def _is_filterable(self, request: GroupRequest) -> bool:
        """Whether another may take its place: not if so many were sampled for the same step already. Version 0 samples
        for S steps more."""
        dynamic = self.config.dynamic_sampling
        steps = 1 + (self.config.max_policy_lag if request.admitted_version == 0 else 0)
        return dynamic.enabled and request.place < (dynamic.max_batches - 1) * steps * self.config.prompts_per_step

    async def held_ids(self) -> list[int]:
        """Groups in replay."""
        ids: list[int] = await self._call(self.replay, "held_ids", waiting_for="replay's group ids")
        return ids

    # ---- a step ----

    async def draw(self, version: int) -> tuple[Any, DrawnBatch]:
        """A step's batch (a reference; its value is None while too few groups are held) and what was taken out."""
        lowest = min((request.group_id for request in self.admission.in_flight), default=0)
        arguments = (self.config.prompts_per_step, version, lowest)
        batch, drawn = await self._call(self.replay, "sample", *arguments, returns=2, waiting_for="a batch from replay")
        self._drawn_ids = set(drawn.group_ids)
        for group_id in (*drawn.group_ids, *drawn.stale_ids):
            self.held.pop(group_id, None)
            self._restored_ids.discard(group_id)
        if not self._restored_ids:
            self._restored_rows = None
        return batch, drawn

    async def add_bonus(self, batch: Any, version: int) -> tuple[Any, dict[str, float]]:
        """Score the step's batch, about to be trained on by policy `version`, and absorb it: one call, once a step, in
        the order of steps."""
        if self.bonus is None:
            return batch, {}
        scored, metrics = await self._call(self.bonus, "score", batch, version, returns=2, waiting_for="the step's bonuses")
        return scored, metrics

    async def learn(self, batch: Any) -> StepReport:
        """Train step `self.step + 1`."""
        report: StepReport = await self._call(self.learner, "step", batch, self.step, waiting_for=f"training step {self.step + 1}")
        self._unlogged = batch
        return report

    async def log(self, batch: Any, report: StepReport) -> Logged:
        """Write down what step `self.step + 1` was trained on; it then counts as trained. Raises RolloutLogError where
        that cannot be written: it may be asked for again."""
        step = self.step + 1
        logged: Logged = await self._call(self.replay, "log", step, batch, report.advantages, waiting_for=f"the rollout log of step {step}")
        self.step, self._unlogged = step, None
        return logged

    async def weights(self) -> tuple[Any, int]:
        """The learner's current weights (a reference) and their version."""
        snapshot, version = await self._call(self.learner, "publish", returns=2, waiting_for="the learner's weights")
        return snapshot, version

    # ---- checkpoints ----

    async def save_checkpoint(self) -> None:
        """Save every part, then the ledger, then the manifest.

        The ledger is read after replay was saved: every group the saved replay holds is then in the ledger, and a group
        that arrived in between is in flight without being held, so it is sampled again after a restore, never lost and
        never doubled."""
        step = self.step
        files: list[FileEntry] = []
        for part, handle in self.stateful.items():
            waiting_for = f"part '{part}' of the checkpoint of step {step}"
            files += await self._call(handle, "save_part", self.checkpoints, step, part, waiting_for=waiting_for)
        meta = {
            "run_id": self.run_id,
            "admission": self.admission.state_dict(),
            "stream": self.stream.state_dict(),
            "observations": self.observations.state_dict(),
            "tokens": self.tokens.state_dict(),
        }
        await asyncio.to_thread(self.checkpoints.commit, step, files, meta)

    async def save_learner(self) -> None:
        """The learner's state alone: what a lost learner is restored from sooner than from the last checkpoint."""
        step = self.step
        files = await self._call(
            self.learner, "save_part", self.snapshots, step, "learner", waiting_for=f"the learner's snapshot of step {step}"
        )
        await asyncio.to_thread(self.snapshots.commit, step, files, {})

    async def restore_checkpoint(self, step: int) -> None:
        """Load every part and the ledger. Weights go to the engines before anything is admitted: see
        `jobs.run.rollouts`."""
        self.step = step
        meta: dict[str, Any] = self.checkpoints.meta(step)
        for part, handle in self.stateful.items():
            waiting_for = f"part '{part}' of the checkpoint of step {step}"
            await self._call(handle, "load_part", self.checkpoints, step, part, waiting_for=waiting_for)
        await self.forget_log_after(step)
        self._restored_rows, ids = await self._call(self.replay, "held_rows", returns=2, waiting_for="replay's rows")
        self._restored_ids = set(ids)
        self.admission.load_state_dict(meta["admission"], held=ids, keep_lost=self.config.deterministic)
        self.stream.load_state_dict(meta["stream"])
        if "observations" in meta:
            self.observations.load_state_dict(meta["observations"], held=ids)
        self.tokens.load_state_dict(meta.get("tokens") or no_tokens(ids), held=ids)

    async def forget_log_after(self, step: int) -> None:
        """What an earlier start logged beyond `step` will be trained again."""
        await self._call(self.replay, "forget_log_after", step, waiting_for="the rollout log")

    # ---- what a new process is given ----

    async def _restore_learner(self, handle: Handle) -> None:
        await self._loaded(handle)
        manager = max((self.checkpoints, self.snapshots), key=lambda manager: self._newest(manager) or -1)
        step = self._newest(manager)
        if step is not None:
            await self._call(handle, "load_part", manager, step, "learner", waiting_for=f"the learner's state of step {step}")
        await self._catch_up(handle, "train_log", since=step or 0)
        if self._unlogged is not None:  # somebody asked for weights while the step was being logged
            await self._call(
                handle, "step", self._unlogged, self.step, waiting_for=f"the new learner to go through step {self.step + 1} again"
            )

    async def _restore_bonus(self, handle: Handle) -> None:
        await self._loaded(handle)
        step = self._newest(self.checkpoints)
        if step is not None:
            await self._call(handle, "load_part", self.checkpoints, step, "bonus", waiting_for=f"the bonus's state of step {step}")
        await self._catch_up(handle, "absorb_log", since=step or 0)

    async def _restore_replay(self, handle: Handle) -> None:
        """Every group held whose rows are still there, in the order of their ids; whatever else was ever admitted and
        is not on its way counts as seen."""
        outside = {request.group_id for request in self.admission.in_flight} - self._drawn_ids
        await self._call(handle, "take_over", self.admission.ledger.admitted, sorted(outside), waiting_for="the new replay")
        if self._restored_ids:
            ids = sorted(self._restored_ids)
            try:
                await self._call(handle, "insert_rows", self._restored_rows, ids, waiting_for="the new replay to take restored groups")
            except DataLost as error:
                self._rows_lost(ids, error)
        for group_id, scored in sorted(self.held.items()):
            arguments = (scored.batch, scored.verdicts, 0)  # version 0: whether it is stale is found when a batch is drawn
            try:
                await self._call(handle, "insert", *arguments, waiting_for=f"the new replay to take group {group_id}")
            except DataLost as error:
                self._rows_lost([group_id], error)

    def _rows_lost(self, group_ids: Sequence[int], error: DataLost) -> None:
        for group_id in group_ids:
            self.held.pop(group_id, None)
            self._restored_ids.discard(group_id)
            self.on_rows_lost(group_id, error)

    async def _restore_verifier(self, handle: Handle) -> None:
        await self.placed(handle, "verifier")
        if self._num_verifiers is not None:
            try:
                await self._call(handle, "resize", self._num_verifiers, waiting_for="the new verifier pool")
            except ResizeError as error:
                self.warn(f"the new verifier pool has the size it starts with, not {self._num_verifiers} processes: {error}")

    async def _loaded(self, handle: Handle) -> None:
        timeout_s = self.config.rollout.start_timeout_s
        await handle.call("ready", timeout_s=timeout_s, waiting_for=f"the {handle.name} to load its model")

    async def _catch_up(self, handle: Handle, method: str, *, since: int) -> None:
        """Have `handle` go through the logged steps after `since`."""
        if since >= self.step:
            return
        if not self.config.replay.log_rollouts:
            raise StateLost(
                f"the {handle.name} was lost at step {self.step}, its last state is of step {since}, and replay.log_rollouts = false "
                "keeps nothing to go through again"
            )
        await handle.call(
            method,
            self._log_directory,
            self.step,
            timeout_s=self.config.wait_timeout_s * (self.step - since),
            waiting_for=f"the new {handle.name} to go through steps {since + 1} to {self.step} again",
        )

    def _newest(self, manager: CheckpointManager) -> int | None:
        """The newest state that is not of a step to come: an earlier start may have left one behind."""
        return max((step for step in manager.steps() if step <= self.step), default=None)

    def _encoder(self, number: int) -> Supervised:
        return self._supervised(f"encoder-{number}", lambda: self.factory.encoder(number), self._loaded)

    def _supervised(self, role: str, create: Callable[[], Handle], restore: Callable[[Handle], Awaitable[None]]) -> Supervised:
        budget = RestartBudget(role, self.config.supervision)
        return Supervised(role, create=create, restore=restore, budget=budget, on_failure=lambda role, error: self.on_failure(role, error))

    async def placed(self, handle: Handle, loop: str) -> str | None:
        """Until it has its resources, which takes a cluster as long as it does; the id of its node."""
        with self.waits.waiting(loop, f"the resources of {handle.name}", usual_s=FIRST_WAIT_S), self.waits.ending():
            return await handle.placed()

    async def _call(self, handle: Handle, method: str, *args: Any, waiting_for: str, returns: int = 1) -> Any:
        with self.waits.ending():
            return await handle.call(method, *args, timeout_s=self.config.wait_timeout_s, waiting_for=waiting_for, returns=returns)


def _raise(group_id: int, error: DataLost) -> None:
    raise error


def no_tokens(held: Sequence[int]) -> dict[str, Any]:
    """The token ledger of a checkpoint that has none."""
    empty = TokenLedger().state_dict()
    return empty | {"groups": [[group_id, 0] for group_id in held]}


def make_admission(config: RunConfig) -> Admission:
    return Admission(
        prompts_per_step=config.prompts_per_step,
        group_size=config.responses_per_prompt,
        max_policy_lag=config.max_policy_lag,
        max_attempts=config.max_attempts,
    )
