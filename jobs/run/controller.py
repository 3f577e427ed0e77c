"""The asynchronous controller: one asyncio process that owns ids, slots, versions and the desired state, and no data.

     task ──problem──> [admit] ──request──> [rollouts] ──batch──> [score] ──group──> replay
                          ^                    ^                                      │
                    slot  │                    │ weights                              │ batch of P groups
                          └──── [publish] <────┴──────── version ──────── [learn] <───┘

| loop     | consumes          | produces           | waits for                 | unblocked by                     |
|----------|-------------------|--------------------|---------------------------|----------------------------------|
| admit    | free slots        | requests           | a slot                    | publish, a dropped group         |
| rollouts | requests          | sampled groups     | see `jobs.run.rollouts`       | admit; the workers               |
| score    | sampled groups    | groups in replay   | verdicts, features        | rollouts; space: a draw          |
| learn    | P groups          | a version          | P groups held in replay   | score                            |
| publish  | a version         | live weights       | a trained version         | learn; every serving worker      |

Checkpoints are taken by the learn loop between two steps; generation goes on meanwhile. All queues are bounded by the
number of slots. Every call of a component has a deadline that names what it waits for; what a lost process costs is
told in `jobs.run.components` and `jobs.run.rollouts`. With `deterministic = true` drawing, publishing and saving also
wait for what `jobs.run.fixed_order` says. A bug in any loop ends the run with its own traceback."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from actors.replay import DrawnBatch, Logged
from buffers.admission import FILTERED
from buffers.records import GroupRequest, GroupUsage, Heartbeat, StepReport, WeightUpdate
from buffers.replay import InsertResult
from buffers.rollout_log import RolloutLogError
from buffers.tokens import TokenWaste
from jobs.directory.events import EventKind
from jobs.processes.encoders import EncoderPool
from jobs.processes.failures import first_error, kind_of, reason
from jobs.processes.handles import DataLost
from jobs.processes.restart_budget import RestartBudget
from jobs.processes.supervised import CallGivenUp
from jobs.processes.verdict_counter import VerdictCounter
from jobs.run.autoscale import Meter
from jobs.run.components import Run, Sampled, Scored
from jobs.run.evaluations import Evaluation, Evaluations
from jobs.run.fixed_order import FixedOrder
from jobs.run.fleet import WorkerState
from jobs.run.rollouts import DATA, LOST, TIMEOUT, GroupWork, Rollouts
from jobs.run.watchdog import FIRST_WAIT_S
from learners.checkpoint import CheckpointError
from tasks.stream import ProblemStream

STALE = "stale"
WASTE = {STALE: TokenWaste.STALE, TIMEOUT: TokenWaste.ABORTED, DATA: TokenWaste.FILTERED, LOST: TokenWaste.LOST}
"""What the tokens of a dropped group count as."""
RSS_TIMEOUT_S = 1.0
KEPT_FAULTS = 10


@dataclass
class Tally:
    """What happened since the last step was reported."""

    usages: list[GroupUsage] = field(default_factory=list)
    updates: list[WeightUpdate] = field(default_factory=list)
    encode_s: float = 0.0
    verify_s: float = 0.0
    checkpoint_s: float = 0.0
    publish_s: float = 0.0
    num_published: int = 0
    since: float = field(default_factory=time.monotonic)

    def add_scored(self, scored: Scored) -> None:
        self.encode_s += scored.encode_s
        self.verify_s += sum(verdict.elapsed_s for verdict in scored.verdicts)

    def published(self, since: float) -> None:
        """The learner has handed out its weights, asked at `since`."""
        self.num_published += 1
        self.publish_s += time.monotonic() - since

    def metrics(self) -> dict[str, float]:
        elapsed_s = time.monotonic() - self.since
        response_tokens = sum(usage.response_tokens - usage.resumed_tokens for usage in self.usages)
        per_worker = max(1, len({update.worker_id for update in self.updates}))
        sizes = {"publication/mib": self.updates[-1].nbytes / 2**20} if self.updates else {}
        return {
            **sizes,
            "publication/calls": float(self.num_published + len(self.updates)),
            "time/publish_s": self.publish_s,
            "rollout/groups": float(len(self.usages)),
            "rollout/response_tokens": float(response_tokens),
            "rollout/tokens_per_s": response_tokens / elapsed_s,
            "rollout/idle_s": sum(update.idle_s for update in self.updates) / per_worker,
            "time/check_weights_s": sum(update.check_s for update in self.updates) / per_worker,
            "time/load_weights_s": sum(update.load_s for update in self.updates) / per_worker,
            "time/encode_s": self.encode_s,
            "time/verify_s": self.verify_s,
            "time/checkpoint_s": self.checkpoint_s,
            "time/step_s": elapsed_s,
        }


class Controller:
    """Runs the loops until `config.steps` are trained or a stop is asked for.

    controller = Controller(run)
    step = await controller.run(start_step)       # returns the last step trained; a checkpoint of it exists
    """

    def __init__(
        self, run: Run, *, workers: int | None = None, evaluation: Evaluation | None = None, evaluated: Collection[int] = ()
    ) -> None:
        """`workers`: how many are wanted at first, if not `rollout.workers`. `evaluation`: of the policy, now and then;
        `evaluated`: the steps of which there is one from an earlier start."""
        self._run = run
        self._config = run.config
        self._admission = run.admission
        self._order = FixedOrder(run.admission, prompts_per_step=run.config.prompts_per_step) if run.config.deterministic else None
        self.rollouts = Rollouts(run, self, desired=workers or run.config.rollout.workers)
        self.evaluations = Evaluations(run, evaluation, done=evaluated)
        self.waits = run.waits
        self.faults: deque[str] = deque(maxlen=KEPT_FAULTS)
        self.num_faults: Counter[str] = Counter()
        self.num_refused = 0
        self.last_checkpoint: tuple[int, float] | None = None
        self.trained_version = 0
        self.meter = Meter()
        self.tokens = run.tokens
        self._note = run.note
        self._noted_states: dict[str, WorkerState] = {}
        self._sampled: asyncio.Queue[Sampled] = asyncio.Queue(maxsize=run.admission.capacity)
        self._trained: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(maxsize=1)
        self._changed = asyncio.Condition()  # slots, held groups, live version or the stop flag changed
        self._held: set[int] = set()
        self._num_removed = 0  # times that something left replay
        self._stopping = False
        self._stop_asked = asyncio.Event()
        self._notes: set[asyncio.Task[None]] = set()
        self._tell_failure = run.on_failure
        run.on_failure = self._component_lost
        self._stuck_after_s = run.config.rollout.group_timeout_s + 2 * run.config.wait_timeout_s
        self._tally = Tally()
        self._verdicts = VerdictCounter(max_error_rate=run.config.verifier.max_error_rate)
        self._data_failures = 0
        self._checkpoint_budget = RestartBudget("checkpoint", run.config.supervision)
        self._log_budget = RestartBudget("rollout log", run.config.supervision)
        self._log_was_cut = False

    def stop(self) -> None:
        """Ask for a graceful stop: the step in progress is finished and a checkpoint is written. Call from the event
        loop."""
        self._stopping = True
        self._stop_asked.set()
        self._notify_soon()

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    @property
    def step(self) -> int:
        return self._run.step

    @property
    def live_version(self) -> int:
        return self._admission.live_version

    @property
    def encoders(self) -> EncoderPool:
        return self._run.encoders

    async def scale(self, role: str, count: int, *, by: str) -> None:
        """From now on so many rollout workers, verifier processes or encoders, as `by` wishes."""
        self._note(EventKind.DESIRED, role=role, count=count, by=by)
        if role == "rollout":
            await self.rollouts.scale(count)
        elif role == "verifier":
            await self._run.resize_verifier(count)
        else:
            await self._run.encoders.resize(count, timeout_s=self._config.rollout.start_timeout_s)

    def token_counts(self) -> dict[str, int]:
        """The token ledger."""
        return self.tokens.counts()

    def queues(self) -> dict[str, int]:
        """Groups by where they are, and free slots."""
        sampling = sum(len(worker.groups) for worker in self.rollouts.workers.values())
        return {
            "requests": self.rollouts.requests.qsize(),
            "sampling": sampling,
            "sampled": self._sampled.qsize(),
            "held": len(self._held),
            "free_slots": self._admission.free_slots,
        }

    async def run(self, start_step: int, *, alongside: Sequence[Coroutine[Any, Any, None]] = ()) -> int:
        """Train from `start_step` (the steps already done), with the coroutines `alongside`, which end with it. Raises
        the first exception of any loop."""
        self._run.step = self.trained_version = start_step
        if start_step:
            self.last_checkpoint = (start_step, time.time())
            snapshot, version = await self._run.weights()
            await self.rollouts.publish(version, snapshot)
            self.evaluations.offer(start_step, snapshot)
            del snapshot
        self._held = set(await self._run.held_ids())
        for request in self._admission.in_flight:
            if request.group_id not in self._held:
                self._submit(request)
        self._run.on_rows_lost = self._lost_from_replay
        loops = [self._admit_loop(), self._publish_loop(), self.rollouts.run(), self.evaluations.run_loop(), *alongside]
        loops += [self._score_loop() for _ in range(self._config.prompts_per_step)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop) for loop in loops]
                await self._learn_loop()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        return self._run.step

    # ---- the loops ----

    async def _admit_loop(self) -> None:
        while True:
            with self._waiting("admit", "a free slot"):
                await self._until(lambda: self._admission.free_slots > 0 and (not self._stopping or self._order is not None))
            self._submit(self._run.admit())

    def _submit(self, request: GroupRequest) -> None:
        if self._order is not None:
            self._order.submitted(request.group_id)
        self.rollouts.submit(request)

    async def _score_loop(self) -> None:
        while True:
            sampled = await self._sampled.get()
            try:
                await self._score(sampled)
            except DataLost as error:
                self._sample_again(sampled.request, error)
            except CallGivenUp as error:
                self.note_fault("group", str(sampled.request.group_id), error)
                self._drop(sampled.request.group_id, LOST)
                await self._notify()

    async def _score(self, sampled: Sampled) -> None:
        """From responses to a group in replay. Raises DataLost where its rows went with their node, CallGivenUp where
        it costs too many encoders."""
        with self._waiting("score", f"verdicts and features of group {sampled.request.group_id}"):
            scored = await self._run.verify_and_encode(sampled)
        self._verdicts.add(scored.verdicts)
        self._tally.add_scored(scored)
        await self._insert(scored)

    async def _insert(self, scored: Scored) -> None:
        """Put a group into replay, waiting while it is full until something has left it. That may be stale groups
        alone, which is no step."""
        group_id = scored.request.group_id
        removed = self._num_removed  # as it was before replay was asked: what leaves meanwhile makes room, too
        while (result := await self._run.insert(scored, self._run.step)) is InsertResult.FULL:
            with self._waiting("insert", f"room in replay for group {group_id}"):
                self._require_room()
                await self._until(lambda before=removed: self._num_removed > before)  # type: ignore[misc]
            removed = self._num_removed
        self._note(EventKind.INSERTED, group_id=group_id, result=result.value)
        async with self._changed:
            if result is InsertResult.STALE:
                self._drop(group_id, STALE)
            elif result is InsertResult.FILTERED:
                self._filter(group_id)
            else:
                self._held.add(group_id)
                if self._order is not None:
                    self._order.settled(group_id)
            self._changed.notify_all()

    async def _learn_loop(self) -> None:
        while self._run.step < self._config.steps and not self._stopping:
            waited_from = time.monotonic()
            with self.meter.learner_waits(), self._waiting("learn", f"{self._config.prompts_per_step} groups in replay"):
                batch, drawn = await self._next_batch()
            if drawn is None:
                break
            wait_s = time.monotonic() - waited_from
            with self._waiting("train", f"training step {self._run.step + 1}"):
                await self._train(batch, drawn, wait_s)
            await self._save_what_is_due()
        if self.last_checkpoint is None or self._run.step != self.last_checkpoint[0]:
            await self._checkpoint()
        with self._waiting("evaluate", "the last evaluation"):
            await first_of(self.evaluations.finished(), self._stop_asked.wait())

    async def _next_batch(self) -> tuple[Any, DrawnBatch | None]:
        """The next step's batch; nothing when a stop was asked for."""
        while True:
            await self._until(lambda: self._next_batch_is_in() or self._stopping)
            if self._stopping:
                return None, None
            batch, drawn = await self._run.draw(self._run.step)
            async with self._changed:
                for group_id in drawn.stale_ids:
                    self._drop(group_id, STALE)
                self._held.difference_update(drawn.group_ids, drawn.stale_ids)
                self._num_removed += bool(drawn.group_ids or drawn.stale_ids)
                self._changed.notify_all()
            if drawn.group_ids:
                return batch, drawn

    def _next_batch_is_in(self) -> bool:
        if self._order is not None:
            return self._order.next_batch_is_in(self._held)
        return len(self._held) >= self._config.prompts_per_step

    def _require_room(self) -> None:
        """Raises ValueError where a group that must wait for room would be waited for."""
        if self._order is not None:
            raise ValueError(
                f"replay is full and deterministic = true holds up to {self._admission.capacity} groups: "
                f"raise replay.max_bytes = {self._config.replay.max_bytes}"
            )

    async def _train(self, batch: Any, drawn: DrawnBatch, wait_s: float) -> None:
        run = self._run
        self._note(EventKind.BATCH, step=run.step + 1, group_ids=list(drawn.group_ids))
        scored, bonus_metrics = await run.add_bonus(batch, run.step)
        self._note(EventKind.ABSORBED, step=run.step + 1, groups=len(drawn.group_ids))
        report = await run.learn(scored)
        logged = await self._log(scored, report)
        for group_id in drawn.group_ids:
            self.tokens.trained(group_id)
        del batch, scored
        asked = time.monotonic()
        snapshot, version = await run.weights()
        self._tally.published(asked)
        self.trained_version = version
        self._note(EventKind.TRAINED, step=run.step, version=version)
        self._admission.trained(drawn.group_ids, version=version)
        run.observations.trained(drawn.group_ids, version)
        self.evaluations.offer(run.step, snapshot)
        with self._waiting("hand over", f"the publication of version {version - 1}"):
            await self._trained.put((version, snapshot))
        del snapshot
        await self._notify()
        metrics = {
            **report.metrics,
            **bonus_metrics,
            **self._tally.metrics(),
            **self._ledger_metrics(drawn),
            "replay/log_mib": logged.nbytes / 2**20,
            "replay/log_removed_steps": float(logged.removed_steps),
            **await self._memory_metrics(),
        }
        metrics["time/wait_for_batch_s"] = wait_s
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - wait_s - self._tally.checkpoint_s
        self._tally = Tally()
        run.report(run.step, metrics)

    async def _log(self, batch: Any, report: StepReport) -> Logged:
        """A full disk may be mended while the run waits, for as long as losses may follow one another."""
        while True:
            try:
                logged = await self._run.log(batch, report)
            except RolloutLogError as error:
                self._trouble("rollout log", error)
                delay_s = self._log_budget.failed(error)
                with self._waiting("log", f"room for the rollout log of step {self._run.step + 1}"):
                    await asyncio.sleep(delay_s)
                continue
            self._log_budget.worked()
            if logged.removed_steps and not self._log_was_cut:
                self._run.warn(f"the rollout log has reached replay.log_max_mib = {self._config.replay.log_max_mib:g}: its oldest steps go")
                self._log_was_cut = True
            return logged

    async def _publish_loop(self) -> None:
        while True:
            version, snapshot = await self._trained.get()
            if self._order is not None:
                with self._waiting("publish", f"every group of version {version - 1} to be in replay"):
                    await self._until(self._order.may_publish)
            await self.rollouts.publish(version, snapshot)
            del snapshot
            with self._waiting("publish", f"every serving worker to load version {version}"):
                await self.rollouts.published(version)
            self._note(EventKind.PUBLISHED, version=version, workers=len(self.rollouts.fleet.serving))
            async with self._changed:
                self._run.observations.live(version)
                self._admission.published(version)
                self._changed.notify_all()

    # ---- checkpoints ----

    async def _save_what_is_due(self) -> None:
        every, learner_every = self._config.checkpoint.every, self._config.checkpoint.learner_every
        try:
            if self._run.step % every == 0:
                await self._checkpoint()
            elif learner_every and self._run.step % learner_every == 0:
                await self._run.save_learner()
                self._checkpoint_budget.worked()
        except CheckpointError as error:  # a full disk, say: the run goes on, and tries again when the next is due
            self._trouble("checkpoint", error)
            self._checkpoint_budget.failed(error)

    async def _checkpoint(self) -> None:
        if (order := self._order) is not None:
            with self._waiting("checkpoint", f"version {self._run.step} to be live"):
                await self._until(lambda: order.may_save(self._run.step))
        started = time.monotonic()
        with self._waiting("checkpoint", f"the checkpoint of step {self._run.step}"):
            await self._run.save_checkpoint()
        self._checkpoint_budget.worked()
        self._note(EventKind.CHECKPOINT, step=self._run.step)
        self.last_checkpoint = (self._run.step, time.time())
        self._tally.checkpoint_s += time.monotonic() - started

    # ---- what the rollout workers tell (`jobs.run.rollouts.Observer`) ----

    def sampled(self, work: GroupWork, sampled: Sampled) -> None:
        self._data_failures = 0
        self._tally.usages.append(sampled.usage)
        self._sampled.put_nowait(sampled)

    def dropped(self, work: GroupWork, why: str, error: Exception | None) -> None:
        """Raises `error` where problem after problem cannot be used."""
        if error is not None:
            self.note_fault("group", str(work.request.group_id), error)
        if why == DATA and error is not None:
            self._data_failures += 1
            if self._data_failures > self._config.supervision.max_data_failures:
                raise error
        self._drop(work.request.group_id, why)
        self._notify_soon()

    def _drop(self, group_id: int, why: str) -> None:
        self.tokens.dropped(group_id, WASTE[why])
        given_up = self._admission.drop(group_id, why)
        if given_up is not None:
            problem_id, attempts = given_up.problem.problem_id, given_up.attempts
            self._run.warn(f"problem {problem_id} is given up: {attempts} groups of it were dropped, the last for '{why}' (max_attempts)")
        self._run.observations.dropped(group_id)
        if self._order is not None:
            self._order.dropped(group_id)
            if self._order.num_dropped == 1:
                self._run.warn(f"group {group_id} was dropped ({why}): from here on another start may differ, deterministic or not")
        self._note(EventKind.DROPPED, group_id=group_id, reason=why)

    def _filter(self, group_id: int) -> None:
        """There is nothing to learn from it; another problem takes its slot."""
        self.tokens.dropped(group_id, TokenWaste.FILTERED)
        self._admission.filter(group_id)
        self._run.observations.filtered(group_id)
        if self._order is not None:
            self._order.settled(group_id)
        self._note(EventKind.DROPPED, group_id=group_id, reason=FILTERED)

    def dispatched(self, work: GroupWork, worker: str) -> None:
        group_id = work.request.group_id
        self.tokens.started(worker, group_id, resumed_tokens=work.resumed_tokens)
        self._note(EventKind.DISPATCHED, group_id=group_id, worker=worker, tries=work.tries, resumed_tokens=work.resumed_tokens)

    def returned(self, work: GroupWork, worker: str, usage: GroupUsage | None) -> None:
        tokens = None
        if usage is not None:
            tokens = usage.response_tokens
            self.tokens.sampled(worker, usage.sampled_tokens)
        self.tokens.finished(worker, work.request.group_id, tokens)
        aborted = work.request.num_responses if usage is None else usage.num_aborted
        self._note(EventKind.COMPLETED, group_id=work.request.group_id, worker=worker, tokens=tokens or 0, aborted=aborted)

    def beat(self, worker: str, beat: Heartbeat) -> None:
        self.tokens.sampled(worker, beat.sampled_tokens)
        for group_id, tokens in beat.tokens_by_group.items():
            self.tokens.kept(worker, group_id, tokens)

    def ended(self, worker: str) -> None:
        self.tokens.worker_ended(worker)

    def updated(self, update: WeightUpdate) -> None:
        self._tally.updates.append(update)

    def refused(self, worker: str, version: int, held: int, error: Exception) -> None:
        self.num_refused += 1
        self.note_fault("publication", worker, error)
        self._run.warn(f"{worker} refuses version {version} and goes on under version {held}; it is published again: {reason(error)}")

    def changed(self, worker: str) -> None:
        member = self.rollouts.fleet.members.get(worker)
        if member is not None and self._noted_states.get(worker) != member.state:
            self._noted_states = {name: state for name, state in self._noted_states.items() if name in self.rollouts.fleet.members}
            self._noted_states[worker] = member.state
            self._note(EventKind.WORKER, worker=worker, role="rollout", state=member.state.value, reason=member.detail)

    def lost(self, worker: str, groups: list[int], error: Exception) -> None:
        self._component_lost(worker, error)

    def _component_lost(self, name: str, error: Exception) -> None:
        self.note_fault(name.partition("-")[0], name, error)
        self._tell_failure(name, error)

    def _trouble(self, what: str, error: Exception) -> None:
        """The run goes on, and whoever started it can do something about it."""
        self.note_fault(what, what, error)
        self._run.warn(reason(error))

    def note_fault(self, role: str, name: str, error: Exception) -> None:
        """Counts it, and keeps it for whoever asks."""
        kind = kind_of(error)
        self.num_faults[kind] += 1
        self.faults.append(f"{time.strftime('%H:%M:%S')} {name}: {reason(error)}")
        self._note(EventKind.FAULT, role=role, name=name, kind=kind.value, error=reason(error))

    def _sample_again(self, request: GroupRequest, error: DataLost) -> None:
        """The rows of a group that was sampled went with a node."""
        self.note_fault("score", "data", error)
        self.tokens.dropped(request.group_id, TokenWaste.LOST)
        self._submit(request)

    def _lost_from_replay(self, group_id: int, error: DataLost) -> None:
        """A replay was lost, and the new one cannot have this group of it."""
        (request,) = (request for request in self._admission.in_flight if request.group_id == group_id)
        self._held.discard(group_id)
        self._num_removed += 1
        if self._order is not None:
            self._run.warn(f"group {group_id} was lost from replay: from here on another start may differ, deterministic or not")
        self._sample_again(request, error)
        self._notify_soon()

    # ---- metrics ----

    def _ledger_metrics(self, drawn: DrawnBatch) -> dict[str, float]:
        ledger = self._admission.ledger
        return {
            "replay/held_groups": float(drawn.held_groups),
            "replay/held_mib": drawn.held_bytes / 2**20,
            "groups/dropped_stale": float(ledger.dropped_by_reason.get(STALE, 0)),
            "groups/dropped": float(ledger.dropped - ledger.filtered),
            "groups/filtered": float(ledger.filtered),
            "groups/quarantined": float(ledger.quarantined),
            "faults/infrastructure": float(self.num_faults["infrastructure"]),
            "faults/data": float(self.num_faults["data"]),
            "publication/refused": float(self.num_refused),
            "rollout/workers": float(len(self.rollouts.fleet.serving)),
            **curriculum_metrics(self._run.stream),
            **self.tokens.metrics(),
        }

    async def _memory_metrics(self) -> dict[str, float]:
        """Resident memory of every process that says so, in MiB."""
        handles = self._run.supervised | {encoder.name: encoder for encoder in self._run.encoders.handles}
        found = await asyncio.gather(*(handle.rss_bytes(timeout_s=RSS_TIMEOUT_S) for handle in handles.values()))
        memory = {name: rss for name, rss in zip(handles, found, strict=True) if rss is not None}
        memory |= {name: worker.beat.rss_bytes for name, worker in self.rollouts.workers.items() if worker.beat is not None}
        memory["driver"] = psutil.Process().memory_info().rss
        return {f"memory/{name}_mib": rss / 2**20 for name, rss in memory.items()}

    # ---- waiting ----

    def _waiting(self, loop: str, waiting_for: str) -> AbstractContextManager[None]:
        return self.waits.waiting(loop, waiting_for, usual_s=FIRST_WAIT_S)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`. Raises when nothing in the whole run has changed for longer than a group may take, with
        no call under way that has a deadline of its own. Not `asyncio.wait_for`: in Python 3.11 that loses a
        cancellation that meets a notification."""
        async with self._changed:
            changed_at = time.monotonic()
            while not condition():
                still_s = min(time.monotonic() - changed_at, self.waits.still_s())
                if still_s >= self._stuck_after_s:
                    raise RuntimeError(self._stuck())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._stuck_after_s - still_s):
                        await self._changed.wait()
                        changed_at = time.monotonic()

    def _stuck(self) -> str:
        in_flight = ", ".join(f"{r.group_id} ({r.problem.problem_id})" for r in self._admission.in_flight[:5])
        return (
            f"nothing has moved for {self._stuck_after_s:g} s at step {self._run.step}: {len(self._held)} groups held, "
            f"{self._admission.free_slots} free slots, live version {self._admission.live_version}; in flight: {in_flight or 'none'}"
        )

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _notify_soon(self) -> None:
        task = asyncio.ensure_future(self._notify())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)


def curriculum_metrics(stream: ProblemStream) -> dict[str, float]:
    """What the curriculum has measured; nothing without one."""
    rates = stream.pass_rates
    if not rates:
        return {}
    passed_over = {"curriculum/passed_over": float(stream.num_passed_over)}
    return passed_over | {f"curriculum/pass_rate/{kind}": rate for kind, rate in rates.items()}


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Until one of them has ended; the others are cancelled. Raises what it raises."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
