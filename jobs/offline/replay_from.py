"""Train on saved rollouts, with no engine. The groups are taken in the order in which they were saved, prompts_per_step
for each batch. The rollouts of a run, with its configuration, are its own batches: every loss is that of the run, and
the policy too, bit for bit. Another configuration (a learning rate, a bonus) shows what it changes on the very same
batches. Rows from elsewhere and batches of another size work too, and a verifier can give the rewards again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from actors.replay import with_rewards
from actors.verifier import VerifierPool, VerifierPoolError
from buffers.extensions import ExtensionError
from buffers.records import Problem, Verdict
from buffers.rollout_log import RolloutLogError
from buffers.schema import concat_groups, from_record_batch
from jobs.config import RunConfig
from jobs.configuration.user_error import EXIT_FAILED, UserError
from jobs.offline.saved_rows import SavedRows, require_computable
from jobs.offline.trainer import OfflineRun, ReportStep, check_fits, report_to, require_other_directory
from jobs.processes.environment import prepare_environment
from jobs.processes.models import policy_model
from jobs.processes.verdict_counter import VerdictCounter, VerifierFailure
from jobs.screens.console import RunConsole
from learners.checkpoint import CheckpointError
from learners.model_check import ModelFacts
from tasks.base import TaskError
from tasks.mixture import names_in
from tasks.registry import make_task

JudgeGroup = Callable[[Problem, pa.RecordBatch], Sequence[Verdict]]
"""Return one verdict for each response of a group."""


FAILURES = (ExtensionError, TaskError, RolloutLogError, CheckpointError, SafetensorError, ValueError, FloatingPointError, OSError)
"""What ends training that has begun: a method that refuses a batch, a gradient that is not finite, a disk."""


class TrainingFailed(RuntimeError):
    """Training that had begun cannot continue. The message is one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What was trained."""

    steps: int
    groups_left: int
    """Groups left over because they fill no batch."""
    recorded_steps: int = 0
    """Steps whose advantages were recorded, as a run does."""
    same_steps: int = 0
    """Recorded steps in which every advantage is, bit for bit, the one recorded."""
    changed_verdicts: int = 0
    """Of all `verdicts` that were given again, those that differ from the saved ones."""
    verdicts: int = 0
    missing_steps: tuple[int, ...] = ()
    """Steps of the run, before the last one saved, whose rollouts are gone."""

    def lines(self, source: str) -> list[str]:
        """Return what a person must know."""
        lines = [f"{self.steps} steps trained on rollouts of {source}."]
        if gone := self.missing_steps:
            lines.append(f"{len(gone)} earlier steps of the run are gone (the first is {gone[0]}): these are others.")
        if self.recorded_steps:
            lines.append(f"In {self.same_steps} of {self.recorded_steps} steps every advantage is the recorded one.")
        if self.verdicts:
            lines.append(f"{self.changed_verdicts} of {self.verdicts} verdicts differ from those saved.")
        if self.groups_left:
            lines.append(f"{self.groups_left} groups were left over: fewer than prompts_per_step.")
        return lines


def replay_from_session(config: RunConfig, source: str, *, rescore: bool) -> int:
    """Run `python -m jobs.train CONFIG --replay-from SOURCE` and return its exit code. Raises one of
    `jobs.configuration.user_error.REFUSALS` where it is refused."""
    name = Path(config.run_dir).name
    prepare_environment(config.model)
    with RunConsole(f"repexp {name}, rollouts of {source}", config.steps) as console, ExitStack() as opened:
        judge = None
        try:
            if rescore:
                if not (task := make_task(config.task)).has_verifier:
                    raise UserError(f"--rescore: task {task.name} has no verifier")
                pool = VerifierPool(config.task, config.verifier, final_answers=config.needs_answers)
                judge = opened.enter_context(pool).verify_batch
            trained = replay_from(config, Path(source), judge=judge, report=report_to(console), warn=console.warn)
        except (VerifierFailure, VerifierPoolError, TrainingFailed) as error:
            console.failed("", f"error: the run failed: {error}")
            return EXIT_FAILED
        console.finish(name, [*trained.lines(source), f"final policy    {config.run_dir}/policy  (a Hugging Face directory)"])
    return 0


def replay_from(
    config: RunConfig,
    source: Path,
    *,
    judge: JudgeGroup | None = None,
    report: ReportStep = lambda step, metrics: None,
    warn: Callable[[str], None] = print,
) -> Trained:
    """Train `config.steps` steps (fewer, if there are not enough groups) into `config.run_dir`. With `judge` the
    rewards are given again. Raises UserError where the two are one directory or the rows do not fit the configuration,
    ModelError for its model, VerifierFailure where too many responses could not be scored, TrainingFailed for a method
    of one's own or a disk that fails once training has begun."""
    require_other_directory(source, config)
    facts = policy_model(config)
    rescorer = Rescorer(config, judge) if judge is not None else None
    rows = SavedRows(config, source, rescore=judge is not None)
    groups = _checked(config, facts, source, rows.groups(), rescore=judge is not None)
    first = list(islice(groups, config.prompts_per_step))  # read before anything is written: most mistakes show here
    if len(first) < config.prompts_per_step:
        raise UserError(f"--replay-from {source}: {len(first)} groups, but prompts_per_step = {config.prompts_per_step}")
    with OfflineRun(config, facts.path, report, warn) as run:
        batch = first
        try:
            while len(batch) == config.prompts_per_step and run.learner.version < config.steps:
                run.train(concat_groups(batch if rescorer is None else [rescorer.rescored(group) for group in batch]))
                batch = list(islice(groups, config.prompts_per_step)) if run.learner.version < config.steps else []
            run.export()
        except FAILURES as error:
            raise TrainingFailed(str(error)) from error
        return Trained(
            steps=run.learner.version,
            groups_left=len(batch),
            recorded_steps=run.recorded_steps,
            same_steps=run.same_steps,
            changed_verdicts=0 if rescorer is None else rescorer.num_changed,
            verdicts=0 if rescorer is None else rescorer.counter.num_verdicts,
            missing_steps=rows.missing_steps(),
        )


class Rescorer:
    """Gives the responses of saved groups new verdicts and rewards."""

    def __init__(self, config: RunConfig, judge: JudgeGroup) -> None:
        self._config = config
        self._known = names_in(make_task(config.task))
        self._judge = judge
        self.counter = VerdictCounter(max_error_rate=config.verifier.max_error_rate)
        self.num_changed = 0

    def rescored(self, group: pa.RecordBatch) -> pa.RecordBatch:
        """Return `group` with new rewards. Raises UserError where it is of another task."""
        (stored,) = from_record_batch(group)
        problem = stored.request.problem
        if problem.task not in self._known:
            name = self._config.task.name
            parts = f" of {', '.join(self._known)}" if name == "mixture" else ""
            raise UserError(f"--rescore: problem {problem.problem_id} is of task {problem.task}, but task.name = {name}{parts}")
        verdicts = list(self._judge(problem, group))
        self.counter.add(verdicts)
        before = [None if verdict is None else verdict.reward for verdict in stored.verdicts]
        self.num_changed += sum(not _same(old, new.reward) for old, new in zip(before, verdicts, strict=True))
        return with_rewards(group, verdicts, self._config.reward, self._config.sampling.max_response_tokens)


def _same(reward: float | None, other: float | None) -> bool:
    """Return whether two rewards of the task are one. A saved one is what shaping added to it and took off again."""
    return reward == other if reward is None or other is None else abs(reward - other) < 1e-9


def _checked(
    config: RunConfig, facts: ModelFacts, source: Path, groups: Iterable[pa.RecordBatch], *, rescore: bool
) -> Iterator[pa.RecordBatch]:
    for group in groups:
        require_computable(group, facts, source)
        check_fits(config, group, rescore=rescore)
        yield group
