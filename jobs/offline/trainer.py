"""Training in this process on batches that were sampled before: no engines, no verifiers of its own, no Ray.

    with OfflineRun(config, report) as run:           # into config.run_dir
        for step in steps:
            run.train(step)
        run.export()

Bonuses are given anew and the policy is trained anew, by the code of a run and with its arithmetic: the same batches,
from the same initial model and with the same configuration, give the same policy, optimiser and exploration memory, bit
for bit.

RUN_DIR gets metrics.jsonl, tensorboard/, rollouts/, events.jsonl, the policy, and `state/`: learner and bonus as a
checkpoint keeps them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs

from actors.bonus import BonusScorer
from actors.learner import Learner
from actors.replay import trained_rows
from buffers.records import GroupOutcome, StepReport
from buffers.rollout_log import RolloutLog
from buffers.schema import ROLLOUT_SCHEMA, list_column_arrays
from jobs.config import RunConfig
from jobs.directory.events import EVENTS, EventKind, EventLog
from jobs.directory.metrics import MetricsWriter
from jobs.directory.run_dir import POLICY_STEP, RunDirectory
from jobs.processes.policy_model import policy_model
from jobs.screens.console import RunConsole
from jobs.screens.hints import MismatchAdvice
from jobs.user_error import UserError
from learners.checkpoint import CheckpointManager, FileEntry
from learners.layers import CompilerMissing, require_compiler

STATE = "state"
_DECIDED_AT_CONSUMPTION = ROLLOUT_SCHEMA.names[ROLLOUT_SCHEMA.names.index("bonus") :]

OnStep = Callable[[int, dict[str, float]], None]
"""report(step, metrics), after each step."""


def no_report(step: int, metrics: dict[str, float]) -> None:
    """For who wants none."""


def report_to(console: RunConsole) -> OnStep:
    """A row a step, and what calls for action, once each."""
    advice = MismatchAdvice()

    def report(step: int, metrics: dict[str, float]) -> None:
        console.step(step, metrics)
        for text in advice.new(step, metrics):
            console.warn(text)

    return report


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineStep:
    """`batch` as it was drawn, before anything was decided about it; `advantages`: what was then decided, one a row, if
    known."""

    step: int
    group_ids: Sequence[int]
    batch: pa.RecordBatch
    advantages: tuple[float, ...] | None = None


class OfflineRun:
    """The learner, the bonus, and what they leave behind in a directory that has no run in it yet."""

    def __init__(self, config: RunConfig, report: OnStep = no_report) -> None:
        """Raises UserError where the model, the device or the directory cannot be used."""
        device = _device(config)
        model = policy_model(config)
        try:
            if config.learner.compile:
                require_compiler(torch.device(device))
        except CompilerMissing as error:
            raise UserError(str(error)) from None
        self._config = config
        self._report = report
        self.same_steps = 0
        """Steps in which every advantage was, bit for bit, the one recorded."""
        with ExitStack() as opened:
            self._run = opened.enter_context(RunDirectory(config))
            if self._run.has_begun():
                raise UserError(f"run_dir {self._run.path} has a run in it already: choose another with --set run_dir=...")
            size = config.responses_per_prompt
            self._bonus = BonusScorer(bonus=config.bonus, group_size=size, seed=config.seed) if config.bonus.enabled else None
            self.learner = Learner(model, config.learner, temperature=config.sampling.temperature, group_size=size, device=device)
            self._rows = RolloutLog(fs.LocalFileSystem(), str(self._run.rollouts))
            self._metrics = MetricsWriter(self._run.metrics, self._run.tensorboard)
            opened.callback(self._metrics.close)
            self._events = EventLog(self._run.path / EVENTS)
            opened.callback(self._events.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def train(self, recorded: OfflineStep) -> None:
        """Raises UserError where the batch would be trained on uncorrected, which the configuration does not
        accept."""
        step, version = recorded.step, recorded.step - 1
        batch, bonus_metrics = none_newer(recorded.batch, version), dict[str, float]()
        self._refuse_uncorrected(batch, step)
        self._events.write(EventKind.BATCH, step=step, group_ids=list(recorded.group_ids))
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

    def _refuse_uncorrected(self, batch: pa.RecordBatch, step: int) -> None:
        loss = self._config.learner.loss
        versions, _ = list_column_arrays(batch, "version_values")
        if loss.correction == "none" and not loss.accept_uncorrected and len(versions) and versions.min() != step - 1:
            raise UserError(
                f'learner.loss.correction = "none", but step {step} trains version {step - 1} on tokens of version {versions.min()}: '
                'set the correction to "truncated_is", or learner.loss.accept_uncorrected to true if that is meant'
            )

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


def _device(config: RunConfig) -> str:
    """Where the learner of a run is. Raises UserError for a GPU that is not here: in its place nothing would come out
    bit for bit."""
    if not config.learner.num_gpus:
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(
            f"learner.num_gpus = {config.learner.num_gpus:g}, but there is no GPU here: --set learner.num_gpus=0 trains on the CPU"
        )
    return "cuda"


def check_fits(config: RunConfig, batch: pa.RecordBatch, num_groups: int) -> None:
    """Raises UserError where saved groups have another size than the configuration's, or features of another."""
    responses = batch.num_rows // num_groups
    if responses != config.responses_per_prompt:
        raise UserError(f"responses_per_prompt = {config.responses_per_prompt}, but the recorded groups have {responses}")
    values, offsets = list_column_arrays(batch, "feature")
    dims = {int(length) for length in offsets[1:] - offsets[:-1] if length}
    if config.bonus.enabled and not len(values):
        raise UserError("bonus.enabled = true, but the recorded run has no features: --set bonus.enabled=false")
    if config.bonus.enabled and dims != {config.bonus.dim}:
        raise UserError(f"bonus.dim = {config.bonus.dim}, but the recorded features have {sorted(dims)}")


def undecided(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` as it was when it was drawn: bonus, advantage and what came with them are null."""
    for name in _DECIDED_AT_CONSUMPTION:
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, ROLLOUT_SCHEMA.field(at), pa.nulls(batch.num_rows, ROLLOUT_SCHEMA.field(at).type))
    return batch


def none_newer(batch: pa.RecordBatch, version: int) -> pa.RecordBatch:
    """`batch`, its tokens of versions after `version` counted as of that one: versions are those of whoever sampled,
    and in batches of another size their steps come sooner than here."""
    at = batch.schema.get_field_index("version_values")
    values, offsets = list_column_arrays(batch, "version_values")
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.minimum(values, version)))
    return batch.set_column(at, ROLLOUT_SCHEMA.field(at), column)


def read_step(log: RolloutLog, step: int, source: str) -> pa.RecordBatch:
    """What `step` was trained on. Raises UserError, which names `source` and the step, for rows that cannot be
    read."""
    try:
        return log.batch(step, GroupOutcome.TRAINED)
    except (ValueError, OSError) as error:
        raise UserError(f"{source}: the rows of step {step} cannot be read: {' '.join(str(error).split())}") from None


def require_other_directory(option: str, source: Path, config: RunConfig) -> None:
    """Raises UserError where `source` of `option` is `run_dir` itself."""
    if source.absolute().resolve() == Path(config.run_dir).absolute().resolve():
        raise UserError(f"{option} {source} is run_dir itself: choose another with --set run_dir=...")
