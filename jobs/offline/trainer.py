"""Training in this process on batches that were sampled before: no engines, no verifiers of its own, no Ray.

    with OfflineRun(config, model, report) as run:    # into config.run_dir
        for batch in batches:
            run.train(batch)
        run.export()

Bonuses are computed and the policy is trained by the code of a run and with its arithmetic. The same batches, from the
same initial model and with the same configuration, give the same policy, optimiser and exploration memory, bit for bit.
RUN_DIR gets metrics.jsonl, what the trackers write, rollouts/, events.jsonl, the policy, and `state/`: learner and
bonus as a checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import fs

from actors.bonus import BonusScorer
from actors.learner import Learner
from actors.replay import trained_rows
from bonus.base import Need
from buffers.groups import token_versions, trained_tokens
from buffers.records import GroupOutcome, StepReport, VerdictStatus
from buffers.rollout_log import RolloutLog
from buffers.schema import ROLLOUT_SCHEMA, group_ids, list_column_arrays
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError, refusing
from jobs.directory.events import EVENTS, EventKind, EventLog
from jobs.directory.metrics import MetricsWriter
from jobs.directory.run_dir import RunDirectory
from jobs.directory.trackers import RunInfo, Trackers, load_trackers
from jobs.processes.threads import with_threads
from jobs.screens.console import RunConsole
from jobs.screens.hints import MismatchAdvice
from learners.checkpoint import CheckpointManager, FileEntry
from learners.layers import CompilerMissing, require_compiler
from learners.threads import resolve_threads

STATE = "state"
_DECIDED_AT_CONSUMPTION = ROLLOUT_SCHEMA.names[ROLLOUT_SCHEMA.names.index("bonus") :]

ReportStep = Callable[[int, dict[str, float]], None]
"""report(step, metrics), after each step."""


def report_to(console: RunConsole) -> ReportStep:
    """Return a report that shows a row for each step, and once each what calls for action."""
    advice = MismatchAdvice()

    def report(step: int, metrics: dict[str, float]) -> None:
        console.step(step, metrics)
        for text in advice.new(step, metrics):
            console.warn(text)

    return report


class OfflineRun:
    """The learner, the bonus, and what they leave behind in a directory that holds no run yet."""

    def __init__(
        self, config: RunConfig, model: str, report: ReportStep = lambda step, metrics: None, warn: Callable[[str], None] = print
    ) -> None:
        """`model` is the directory of a model that was looked at. Raises UserError for a device or directory that
        cannot be used, ExtensionError for such a tracker."""
        device = _device(config)
        trackers = load_trackers(config.trackers, config.tracker_options)
        with refusing(CompilerMissing):
            if config.learner.compile:
                require_compiler(torch.device(device))
        self._config, self._report = with_threads(config), report
        self.recorded_steps, self.same_steps = 0, 0
        """Steps whose recorded advantages are known, and those in which all of them came out again, bit for bit."""
        with ExitStack() as opened:
            self._run = opened.enter_context(RunDirectory(config))
            if self._run.has_begun():
                raise UserError(f"run_dir {self._run.path} has a run in it already: choose another with --set run_dir=...")
            size = config.responses_per_prompt
            self._bonus = BonusScorer(bonus=config.bonus, group_size=size, seed=config.seed) if config.bonus.enabled else None
            self.learner = Learner(
                model,
                self._config.learner,
                temperature=config.sampling.temperature,
                group_size=size,
                total_steps=config.steps,
                device=device,
            )
            self._rows = RolloutLog(fs.LocalFileSystem(), str(self._run.rollouts))
            started = Trackers(trackers, RunInfo.of(self._run.path, config), warn=warn)
            self._metrics = MetricsWriter(self._run.metrics, started)
            opened.callback(self._metrics.close)
            self._events = EventLog(self._run.path / EVENTS)
            opened.callback(self._events.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def train(self, recorded: pa.RecordBatch) -> None:
        """Train the next step on a batch as it was saved, which holds whole groups. Raises UserError where the batch
        would be trained on uncorrected, which the configuration does not accept."""
        version = self.learner.version
        step, ids = version + 1, list(dict.fromkeys(group_ids(recorded).tolist()))
        batch, bonus_metrics = none_newer(undecided(recorded), version), dict[str, float]()
        self._refuse_uncorrected(batch, step)
        self._events.write(EventKind.BATCH, step=step, group_ids=ids)
        if self._bonus is not None:
            torch.set_num_threads(1)  # as in the run, where each has a process of its own: sums depend on it
            batch, bonus_metrics = self._bonus.score(batch, version)
            self._events.write(EventKind.ABSORBED, step=step, groups=len(ids))
        torch.set_num_threads(resolve_threads(self._config.learner.threads))
        trained: StepReport = self.learner.step(batch, version)
        self._rows.append(step, [trained_rows(batch, step, trained.advantages)])
        self._events.write(EventKind.TRAINED, step=step, version=trained.version)
        advantages = recorded.column("advantage")
        self.recorded_steps += advantages.null_count == 0
        self.same_steps += tuple(advantages.to_pylist()) == trained.advantages
        metrics = {**trained.metrics, **bonus_metrics}
        self._metrics.write(step, metrics)
        self._report(step, metrics)

    def _refuse_uncorrected(self, batch: pa.RecordBatch, step: int) -> None:
        loss = self._config.learner.loss
        versions = token_versions(batch)[trained_tokens(batch)]
        if not loss.is_corrected and not loss.accept_uncorrected and len(versions) and versions.min() != step - 1:
            raise UserError(
                f'learner.loss.correction = "{loss.correction}", but step {step} trains version {step - 1} on tokens of version '
                f'{versions.min()}: set the correction to "truncated_is", or learner.loss.accept_uncorrected to true if that is meant'
            )

    def export(self) -> None:
        """Write the state of the learner and the bonus, and the policy under its own name."""
        step = self.learner.version
        manager = CheckpointManager(str(self._run.path / STATE), keep=1)
        files: list[FileEntry] = self.learner.save_part(manager, step, "learner")
        if self._bonus is not None:
            files += self._bonus.save_part(manager, step, "bonus")
        manager.commit(step, files, {})
        with self._run.exporting_policy(step) as staging:
            self.learner.save_policy(str(staging))


def _device(config: RunConfig) -> str:
    """Return where a run's learner is. Raises UserError without its GPU: a CPU gives nothing equal bit for bit."""
    if not (gpus := config.learner.num_gpus):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"learner.num_gpus = {gpus:g}, but there is no GPU here: --set learner.num_gpus=0 trains on the CPU")
    return "cuda"


def check_fits(config: RunConfig, group: pa.RecordBatch, *, rescore: bool) -> None:
    """Raise UserError where a saved group has another size than the configuration's, or lacks what the bonus or the
    advantages need. With `rescore` the verifier will give it the final answers."""
    of_bonus, advantage = config.bonus.needs, f'learner.advantage.estimator = "{config.learner.advantage.estimator}"'
    if group.num_rows != config.responses_per_prompt:
        raise UserError(f"responses_per_prompt = {config.responses_per_prompt}, but the recorded groups have {group.num_rows}")
    if config.feature_source is not None:
        values, offsets = list_column_arrays(group, "feature")
        dims = {int(length) for length in offsets[1:] - offsets[:-1] if length}
        if not len(values):
            if Need.FEATURES in of_bonus:
                raise UserError("bonus.enabled = true, but the recorded run has no features: --set bonus.enabled=false")
            who, remedy = advantage, "choose another estimator"
            if product := config.learner.advantage.diversity_product:
                who, remedy = f"learner.advantage.diversity_product = {product:g}", "--set learner.advantage.diversity_product=0"
            raise UserError(f"{who} needs features, and the recorded run has none: {remedy}")
        if dims != {config.bonus.dim}:
            raise UserError(f"bonus.dim = {config.bonus.dim}, but the recorded features have {sorted(dims)}")
    if config.reward.is_shaped and not rescore and group.column("reward_format").null_count == group.num_rows:
        raise UserError("[reward] shapes rewards, and the recorded ones are not shaped: --rescore gives them again, or leave [reward] out")
    if config.needs_answers and not rescore:
        answers, statuses = (group.column(name).to_pylist() for name in ("final_answer", "verdict_status"))
        if any(answer is None and status == VerdictStatus.CORRECT for answer, status in zip(answers, statuses, strict=True)):
            who, remedy = f'bonus.kind = "{config.bonus.label}"', "--set bonus.enabled=false"
            if Need.ANSWERS not in of_bonus:
                who, remedy = advantage, "choose another estimator"
            raise UserError(
                f"{who} needs final answers, and the recorded rows have none: --replay-from with --rescore reads them again, or {remedy}"
            )


def undecided(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` as it was when it was drawn: without bonus, advantage and whatever else was decided with them."""
    for name in _DECIDED_AT_CONSUMPTION:
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, ROLLOUT_SCHEMA.field(at), pa.nulls(batch.num_rows, ROLLOUT_SCHEMA.field(at).type))
    return batch


def none_newer(batch: pa.RecordBatch, version: int) -> pa.RecordBatch:
    """Return `batch` with tokens of versions after `version` counted as tokens of `version`, and so not as too old.
    Versions are those of the run that sampled. In batches of another size its steps come sooner than here."""
    at = batch.schema.get_field_index("version_values")
    values, offsets = list_column_arrays(batch, "version_values")
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.minimum(values, version)))
    batch = batch.set_column(at, ROLLOUT_SCHEMA.field(at), column)
    at = batch.schema.get_field_index("trained_from_version")
    return batch.set_column(at, ROLLOUT_SCHEMA.field(at), pc.min_element_wise(batch.column(at), version, skip_nulls=False))


def read_step(log: RolloutLog, step: int, source: str) -> pa.RecordBatch:
    """Return what `step` was trained on. Raises UserError with `source` and step for rows that cannot be read."""
    try:
        return log.batch(step, GroupOutcome.TRAINED)
    except (ValueError, OSError) as error:
        raise UserError(f"{source}: the rows of step {step} cannot be read: {' '.join(str(error).split())}") from None


def require_other_directory(source: Path, config: RunConfig) -> None:
    """Raise UserError where `source` is `run_dir` itself."""
    if source.absolute().resolve() == Path(config.run_dir).absolute().resolve():
        raise UserError(f"--replay-from {source} is run_dir itself: choose another with --set run_dir=...")
