"""The components of a run, and the calls that take a group and a step through them.

    request ──generate──> Sampled ──verify_and_encode──> Scored ──insert──> replay          (a group)
    draw ──> add_bonus ──> learn ──> log ──> weights                                        (a step)

Bulk data is passed on as references. Every call has a deadline that names what it waits for. Every component but the
rollout workers (`jobs.run.rollouts`) is supervised: where its process is lost, `jobs.run.recovery` brings a new one to
where the run is, and the call is made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, overload

from actors.bonus import BonusScorer
from actors.encoder import HiddenStateEncoder
from actors.learner import Learner
from actors.replay import DrawnBatch, Logged, Replay
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import GroupRequest, GroupUsage, StepReport, Verdict
from buffers.replay import InsertResult
from jobs.config import RunConfig
from jobs.directory.run_dir import RunDirectory
from jobs.processes.build import close_all
from jobs.processes.description import Launch, LaunchTogether, TrainingComponents
from jobs.processes.encoders import EncoderPool
from jobs.processes.handles import Handle
from jobs.processes.learner_group import LearnerGroup
from jobs.processes.restart_budget import RestartBudget
from jobs.processes.supervised import Supervised, wait_until_loaded
from jobs.processes.verdict_counter import VerdictCounter
from jobs.run.books import GroupBooks
from jobs.run.faults import Faults, Listener
from jobs.run.recovery import Recovery, Stateful
from jobs.run.watchdog import FIRST_WAIT_S, SHORT_WAIT_S, Waits
from tasks.stream import ProblemStream

C = TypeVar("C")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


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


class Run:
    """What a trainer works with: configuration, components, books, and the state that this process owns.

    `launch_together` starts the ranks of a learner; None starts one after the other. `step` counts the steps trained:
    the version that the learner has, and must have again if it is replaced.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        components: TrainingComponents,
        launch: Launch,
        launch_together: LaunchTogether | None = None,
        stream: ProblemStream,
        directory: RunDirectory,
        listener: Listener,
    ) -> None:
        self.config = config
        self.components = components
        self.launch = launch
        self._launch_together = launch_together
        self.stream = stream
        self.task = stream.task
        self.directory = directory
        self.listener = listener
        self.books = GroupBooks(config, stream, note=listener.note, warn=listener.warn)
        self.faults = Faults(listener)
        self.waits = Waits(floor_s=SHORT_WAIT_S)
        self.step = 0
        self.recovery = Recovery(self)
        self._verdicts = VerdictCounter(max_error_rate=config.verifier.max_error_rate)
        recovery = self.recovery
        self.learner: Handle[Learner] = self._supervised("learner", self._launch_learner, recovery.restore_learner)
        self.replay: Handle[Replay] = self._supervised("replay", lambda: launch(components.replay()), recovery.restore_replay)
        self.verifier = self._supervised("verifier", lambda: launch(components.verifier()), recovery.restore_verifier)
        self.bonus: Handle[BonusScorer] | None = None
        if config.bonus.enabled:
            self.bonus = self._supervised("bonus", lambda: launch(components.bonus()), recovery.restore_bonus)
        self.encoders = EncoderPool(self._encoder, config.num_encoders)

    def _launch_learner(self) -> Handle[Learner]:
        ranks = self.config.learner.ranks
        if ranks == 1:
            return self.launch(self.components.learner())
        components = [self.components.learner_rank(rank) for rank in range(ranks)]
        if self._launch_together is None:
            return LearnerGroup([self.launch(component) for component in components])
        return LearnerGroup(self._launch_together(components))

    def _encoder(self, number: int) -> Supervised[HiddenStateEncoder]:
        return self._supervised(
            f"encoder-{number}",
            lambda: self.launch(self.components.encoder(number)),
            self.recovery.restore_encoder,
            max_tries=self.config.supervision.max_group_tries,
        )

    def _supervised(
        self, role: str, create: Callable[[], Handle[C]], restore: Callable[[Handle[C]], Awaitable[None]], max_tries: int | None = None
    ) -> Supervised[C]:
        budget = RestartBudget(role, self.config.supervision)
        return Supervised(role, create=create, restore=restore, budget=budget, on_failure=self.faults.process_lost, max_tries=max_tries)

    @property
    def stateful(self) -> dict[str, Handle[Stateful]]:
        """The parts of a checkpoint, by name."""
        parts: dict[str, Handle[Stateful]] = {"learner": self.learner, "replay": self.replay}
        return parts | ({"bonus": self.bonus} if self.bonus is not None else {})

    @property
    def supervised(self) -> dict[str, Handle[Any]]:
        """Every component but rollout workers and encoders, by role."""
        return {**self.stateful, "verifier": self.verifier}

    async def ready(self) -> None:
        """Wait until every component that has something to load has loaded it. Raise the first error of one: what the
        first process cannot do, its replacement cannot do either."""
        timeout_s = self.config.rollout.start_timeout_s
        loading = [handle for handle in (self.learner, self.bonus, *self.encoders.handles) if isinstance(handle, Supervised)]
        await asyncio.gather(*(wait_until_loaded(handle.first, timeout_s=timeout_s) for handle in loading))

    async def close(self) -> None:
        """Let verifier processes end by themselves; a pool that does not is not replaced. `jobs.run.rollouts` closes
        rollout workers, Ray ends the others."""
        await close_all([self.verifier.first])

    async def resize_verifier(self, num_workers: int) -> None:
        """Resize the verifier pool to `num_workers` processes. A pool that is restarted later gets the same size. Raise
        ResizeError where the new processes do not start: the pool then keeps its size."""
        await self.call(self.verifier, VerifierPool.resize, num_workers, waiting_for=f"{num_workers} verifier processes")
        self.recovery.num_verifiers = num_workers

    # ---- a group ----

    async def generate(self, worker: Handle[RolloutWorker], request: GroupRequest, resume: Any = None, *, timeout_s: float) -> Sampled:
        """Sample a group. `resume` refers to what was sampled of it before (`RolloutWorker.generate`)."""
        batch, usage = await worker.call(
            RolloutWorker.generate,
            request,
            self.task.prompt(request.problem),
            resume,
            returns=2,
            timeout_s=timeout_s,
            waiting_for=f"group {request.group_id} ({request.problem.problem_id}) on {worker.name}",
        )
        return Sampled(request=request, batch=batch, usage=usage)

    async def verify_and_encode(self, sampled: Sampled) -> Scored:
        """Verify and encode a group side by side. Raise CallGivenUp where it costs too many encoders, VerifierFailure
        where too many responses cannot be scored."""
        request, num_encoders = sampled.request, len(self.encoders)
        verifying = self.call(
            self.verifier, VerifierPool.verify_batch, request.problem, sampled.batch, waiting_for=f"verdicts of group {request.group_id}"
        )
        batch, encode_s = sampled.batch, 0.0
        if num_encoders:
            encoding = self.encoders.encode(request.group_id, batch, timeout_s=self.config.wait_timeout_s)
            with self.waits.ending():
                verdicts, (batch, encode_s) = await asyncio.gather(verifying, encoding)
        else:
            verdicts = await verifying
        self.books.judged(request, verdicts)
        self._verdicts.add(verdicts)
        return Scored(request=request, batch=batch, verdicts=verdicts, encode_s=encode_s)

    async def insert(self, scored: Scored, version: int) -> InsertResult:
        """Offer a group to replay. DUPLICATE is the answer for a group whose first answer was lost: replay holds it."""
        group_id = scored.request.group_id
        result = await self.call(
            self.replay,
            Replay.insert,
            scored.batch,
            scored.verdicts,
            version,
            self._is_filterable(scored.request),
            waiting_for=f"replay to take group {group_id}",
        )
        is_in = result in (InsertResult.ACCEPTED, InsertResult.DUPLICATE)
        if is_in and not self.books.has_left_replay(group_id):
            self.recovery.rows.held[group_id] = scored
        return result

    def _is_filterable(self, request: GroupRequest) -> bool:
        """Return whether another group may take its place: not if many were sampled for the same step already. Under
        version 0, groups are sampled for S further steps."""
        dynamic = self.config.dynamic_sampling
        steps = 1 + (self.config.max_policy_lag if request.admitted_version == 0 else 0)
        return dynamic.enabled and request.place < (dynamic.max_batches - 1) * steps * self.config.prompts_per_step

    # ---- a step ----

    async def draw(self, version: int) -> tuple[Any, DrawnBatch]:
        """Take a step's batch out of replay (a reference; its value is None while too few groups are held)."""
        lowest = min((request.group_id for request in self.books.admission.in_flight), default=0)
        num_due = self.books.num_due(version)
        batch, drawn = await self.call(
            self.replay, Replay.sample, self.config.prompts_per_step, version, lowest, num_due, returns=2, waiting_for="a batch from replay"
        )
        self.recovery.rows.drawn(drawn)
        self.books.drawn(drawn, step=self.step + 1)
        return batch, drawn

    async def add_bonus(self, batch: Any, version: int) -> tuple[Any, dict[str, float]]:
        """Score the step's batch, about to be trained on by policy `version`, and absorb it: one call a step, in the
        order of steps."""
        if self.bonus is None:
            return batch, {}
        return await self.call(self.bonus, BonusScorer.score, batch, version, returns=2, waiting_for="the step's bonuses")

    async def learn(self, batch: Any) -> StepReport:
        """Train step `self.step + 1`."""
        report = await self.call(self.learner, Learner.step, batch, self.step, waiting_for=f"training step {self.step + 1}")
        self.recovery.unlogged = batch
        return report

    async def log(self, batch: Any, report: StepReport) -> Logged:
        """Write down what step `self.step + 1` was trained on; it then counts as trained. Raise RolloutLogError where
        that cannot be written: the call may be made again."""
        step = self.step + 1
        logged = await self.call(self.replay, Replay.log, step, batch, report.advantages, waiting_for=f"the rollout log of step {step}")
        self.step, self.recovery.unlogged = step, None
        return logged

    async def weights(self) -> tuple[Any, int]:
        """Return the learner's current weights (a reference) and their version."""
        return await self.call(self.learner, Learner.publish, returns=2, waiting_for="the learner's weights")

    # ---- calls ----

    async def placed(self, handle: Handle[Any], loop: str) -> str | None:
        """Wait until a component has its resources, as long as the cluster takes; return the id of its node."""
        with self.waits.waiting(loop, f"{handle.name} to find {handle.needs}", usual_s=FIRST_WAIT_S), self.waits.ending():
            return await handle.placed()

    @overload
    async def call(
        self, handle: Handle[C], method: Callable[[C, *Ts], Coroutine[Any, Any, R]], *args: *Ts, waiting_for: str, returns: int = 1
    ) -> R: ...
    @overload
    async def call(self, handle: Handle[C], method: Callable[[C, *Ts], R], *args: *Ts, waiting_for: str, returns: int = 1) -> R: ...
    async def call(self, handle: Handle[C], method: Callable[[C, *Ts], Any], *args: *Ts, waiting_for: str, returns: int = 1) -> Any:
        """Call a component with the deadline `wait_timeout_s`."""
        with self.waits.ending():
            return await handle.call(method, *args, timeout_s=self.config.wait_timeout_s, waiting_for=waiting_for, returns=returns)
