"""Train again on the batches of a recorded run, in their order, in this process: no engines, no verifiers, no Ray.

    replayed = replay_events(config, Path("runs/a"))          # into config.run_dir

From the run's event log come the groups of each batch and their order, from its rollout log their rows: tokens, log-probs, verdicts and
features. Bonuses are given anew and the policy is trained anew. So from the same initial model and with the same configuration the policy,
its optimiser and what exploration remembers are those of the recorded run, bit for bit; with another one (a learning rate, a bonus) this
shows what that changes on the very same batches.

RUN_DIR gets metrics.jsonl, tensorboard/, rollouts/, events.jsonl, the policy, and `state/`: learner and bonus as a checkpoint keeps them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import fs

from actors.bonus import BonusScorer
from actors.learner import Learner
from actors.replay import trained_rows
from buffers.records import GroupOutcome, StepReport
from buffers.rollout_log import RolloutLog
from buffers.schema import ROLLOUT_SCHEMA, concat_groups, group_ids, list_column_arrays, split_groups
from jobs.config import ConfigError, RunConfig
from jobs.console import RunConsole
from jobs.events import EVENTS, EventKind, EventLog, batches, read_events
from jobs.metrics import MetricsWriter
from jobs.run_dir import POLICY_STEP, RunDirectory
from learners.checkpoint import CheckpointManager, FileEntry
from learners.models import ModelError, resolve_model

STATE = "state"
_DECIDED_AT_CONSUMPTION = ROLLOUT_SCHEMA.names[ROLLOUT_SCHEMA.names.index("bonus") :]

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """Steps trained again, and in how many of them every advantage was, bit for bit, the one recorded."""

    steps: int
    same_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedStep:
    """`batch` as it was drawn, before anything was decided about it; `advantages`: what was then decided, one a row."""

    step: int
    group_ids: Sequence[int]
    batch: pa.RecordBatch
    advantages: tuple[float, ...]


def replay_session(config: RunConfig, source: str) -> int:
    """`python -m jobs.train CONFIG --replay-events SOURCE`; returns the exit code. Raises ConfigError when refused."""
    name = Path(config.run_dir).name
    with RunConsole(f"repexp {name}, batches of {source}", config.steps) as console:
        replayed = replay_events(config, Path(source), report=console.step)
        console.finish(
            name,
            [
                f"{replayed.steps} steps of {source} trained again; in {replayed.same_steps} of them every advantage is the recorded one.",
                f"final policy    {config.run_dir}/policy  (a Hugging Face directory)",
            ],
        )
    return 0


def replay_events(config: RunConfig, source: Path, *, report: Report = lambda step, metrics: None) -> Replayed:
    """Train the first `config.steps` recorded steps of the run in `source` (all, if there are fewer) into `config.run_dir`.

    Raises ConfigError where the two are one directory, the record cannot be used with this configuration, or is not whole.
    """
    recorded = Record(config, source)
    try:
        model = resolve_model(config.model)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    with RunDirectory(config) as run:
        if run.has_begun():
            raise ConfigError(f"run_dir {run.path} has a run in it already: choose another with --set run_dir=...")
        replay = _Replay(config, model, run, report)
        try:
            for step in recorded.steps():
                replay.train(step)
        finally:
            replay.close()
        replay.export()
        return Replayed(steps=replay.learner.version, same_steps=replay.same_steps)


class Record:
    """What a run left behind of its batches."""

    def __init__(self, config: RunConfig, source: Path) -> None:
        """Raises ConfigError where there is nothing that could be trained on."""
        self._config = config
        self._source = source
        if source.absolute().resolve() == Path(config.run_dir).absolute().resolve():
            raise ConfigError(f"--replay-events {source} is run_dir itself: choose another with --set run_dir=...")
        try:
            self._batches = batches(read_events(source / EVENTS))
        except FileNotFoundError:
            raise ConfigError(f"--replay-events {source}: there is no {EVENTS} in it") from None
        except ValueError as error:
            raise ConfigError(f"--replay-events {source}: {error}") from None
        self._log = RolloutLog(fs.LocalFileSystem(), str(source / "rollouts"))
        if not self.num_steps:
            raise ConfigError(f"--replay-events {source}: it has no rows of step 1 (replay.log_rollouts writes them)")
        self._step(1)

    @property
    def num_steps(self) -> int:
        """Steps from the first on whose batch and rows are there, up to `config.steps`. A batch that was drawn and not trained has none."""
        step = 0
        while step < self._config.steps and step + 1 in self._batches and self._log.has(step + 1):
            step += 1
        return step

    def steps(self) -> Iterator[RecordedStep]:
        """In order, read as they are asked for."""
        return (self._step(step) for step in range(1, self.num_steps + 1))

    def _step(self, step: int) -> RecordedStep:
        ids = self._batches[step]
        groups = {int(group_ids(group)[0]): group for group in split_groups(self._log.batch(step, GroupOutcome.TRAINED))}
        if groups.keys() != set(ids):
            different = sorted(groups.keys() ^ set(ids))
            raise ConfigError(f"--replay-events {self._source}: step {step}: groups {different} are in one of batch and rollout log only")
        batch = concat_groups([groups[group_id] for group_id in ids])
        self._check_fits(batch, len(ids))
        return RecordedStep(
            step=step, group_ids=ids, batch=undecided(batch), advantages=tuple(batch.column("advantage").to_numpy().tolist())
        )

    def _check_fits(self, batch: pa.RecordBatch, num_groups: int) -> None:
        config, responses = self._config, batch.num_rows // num_groups
        if responses != config.responses_per_prompt:
            raise ConfigError(f"responses_per_prompt = {config.responses_per_prompt}, but the recorded groups have {responses}")
        values, offsets = list_column_arrays(batch, "feature")
        dims = {int(length) for length in offsets[1:] - offsets[:-1] if length}
        if config.bonus.enabled and not len(values):
            raise ConfigError("bonus.enabled = true, but the recorded run has no features: --set bonus.enabled=false")
        if config.bonus.enabled and dims != {config.bonus.dim}:
            raise ConfigError(f"bonus.dim = {config.bonus.dim}, but the recorded features have {sorted(dims)}")


class _Replay:
    """The learner, the bonus, and what they leave behind."""

    def __init__(self, config: RunConfig, model: str, run: RunDirectory, report: Report) -> None:
        self._config = config
        self._run = run
        self._report = report
        size = config.responses_per_prompt
        self._bonus = BonusScorer(bonus=config.bonus, group_size=size, seed=config.seed) if config.bonus.enabled else None
        self.learner = Learner(model, config.learner, temperature=config.sampling.temperature, group_size=size)
        self.same_steps = 0
        self._rows = RolloutLog(fs.LocalFileSystem(), str(run.rollouts))
        self._metrics = MetricsWriter(run.metrics, run.tensorboard)
        self._events = EventLog(run.path / EVENTS)

    def train(self, recorded: RecordedStep) -> None:
        step, version = recorded.step, recorded.step - 1
        self._events.write(EventKind.BATCH, step=step, group_ids=list(recorded.group_ids))
        batch, bonus_metrics = recorded.batch, dict[str, float]()
        if self._bonus is not None:
            torch.set_num_threads(1)  # as in the run, where each has a process of its own: sums depend on it
            batch, bonus_metrics = self._bonus.score(batch, version)
            self._events.write(EventKind.ABSORBED, step=step, groups=len(recorded.group_ids))
        torch.set_num_threads(self._config.learner.threads)
        trained: StepReport = self.learner.step(batch, version)
        self._rows.append(step, [trained_rows(batch, step, trained.advantages)])
        self._events.write(EventKind.TRAINED, step=step, version=trained.version)
        self.same_steps += trained.advantages == recorded.advantages
        metrics = {**trained.metrics, **bonus_metrics}
        self._metrics.write(step, metrics)
        self._report(step, metrics)

    def export(self) -> None:
        """The learner's and the bonus's state, and the policy under its own name."""
        step = self.learner.version
        manager = CheckpointManager(str(self._run.path / STATE), keep=1)
        files: list[FileEntry] = self.learner.save_part(manager, step, "learner")
        if self._bonus is not None:
            files += self._bonus.save_part(manager, step, "bonus")
        manager.commit(step, files, {})
        staging = self._run.path / "policy.partial"
        shutil.rmtree(staging, ignore_errors=True)
        self.learner.save_policy(str(staging))
        (staging / POLICY_STEP).write_text(json.dumps({"step": step}))
        staging.replace(self._run.policy)

    def close(self) -> None:
        self._metrics.close()
        self._events.close()


def undecided(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` as it was when it was drawn: bonus, advantage and what came with them are null."""
    for name in _DECIDED_AT_CONSUMPTION:
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, ROLLOUT_SCHEMA.field(at), pa.nulls(batch.num_rows, ROLLOUT_SCHEMA.field(at).type))
    return batch
