"""Train on saved rollouts, with no engine (`jobs.offline.trainer`).

    trained = replay_from(config, Path("runs/a"))                  # into config.run_dir

The groups are taken in the order in which they were saved, prompts_per_step to a batch. Those of a run, with its
configuration, are its own batches: every loss is that of the run, and the policy too, bit for bit. Unlike
`jobs.offline.replay_events` this needs no event log, takes batches of another size, rows of anybody, and can give
rewards anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from actors.replay import with_rewards
from actors.verifier import VerifierPool, VerifierPoolError
from buffers.records import Problem, Verdict
from buffers.schema import concat_groups, from_record_batch, group_ids
from jobs.config import RunConfig
from jobs.offline.saved_rows import SavedRows, require_known_tokens, vocabulary_of
from jobs.offline.trainer import OfflineRun, OfflineStep, OnStep, check_fits, no_report, report_to, require_other_directory, undecided
from jobs.processes.verdict_counter import VerdictCounter, VerifierFailure
from jobs.screens.console import RunConsole
from jobs.user_error import UserError
from learners.models import ModelError, resolve_model
from tasks.mixture import names_in
from tasks.registry import make_task

JudgeGroup = Callable[[Problem, pa.RecordBatch], Sequence[Verdict]]
"""One verdict a response of a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Steps trained, groups left over because they fill no batch, and verdicts that came out otherwise than saved, of
    so many given."""

    steps: int
    groups_left: int
    changed_verdicts: int = 0
    verdicts: int = 0


def replay_from_session(config: RunConfig, source: str, *, rescore: bool) -> int:
    """`python -m jobs.train CONFIG --replay-from SOURCE`; returns the exit code. Raises UserError when refused."""
    name = Path(config.run_dir).name
    with RunConsole(f"repexp {name}, rollouts of {source}", config.steps) as console, ExitStack() as opened:
        judge = None
        try:
            if rescore:
                _require_verifier(config)
                judge = opened.enter_context(VerifierPool(config.task, config.verifier)).verify_batch
            trained = replay_from(config, Path(source), judge=judge, report=report_to(console))
        except (VerifierFailure, VerifierPoolError) as error:
            console.failed("", f"error: the run failed: {error}")
            return 1
        console.finish(name, [*summary_of(trained, source), f"final policy    {config.run_dir}/policy  (a Hugging Face directory)"])
    return 0


def summary_of(trained: Trained, source: str) -> list[str]:
    lines = [f"{trained.steps} steps trained on rollouts of {source}."]
    if trained.verdicts:
        lines.append(f"{trained.changed_verdicts} of {trained.verdicts} verdicts are other than those saved.")
    if trained.groups_left:
        lines.append(f"{trained.groups_left} groups were left over: fewer than prompts_per_step.")
    return lines


def replay_from(config: RunConfig, source: Path, *, judge: JudgeGroup | None = None, report: OnStep = no_report) -> Trained:
    """Train `config.steps` steps (fewer, if there are not enough groups) into `config.run_dir`. With `judge` rewards
    are given anew.

    Raises UserError where the two are one directory or the rows cannot be used with this configuration,
    VerifierFailure where too many responses could not be scored."""
    require_other_directory("--replay-from", source, config)
    rescorer = Rescorer(config, judge) if judge is not None else None
    groups = _checked(config, source, SavedRows(config, source, rescore=judge is not None).groups())
    first = list(islice(groups, config.prompts_per_step))  # before anything is written: what is wrong is wrong from the start, as a rule
    if len(first) < config.prompts_per_step:
        raise UserError(f"--replay-from {source}: {len(first)} groups, but prompts_per_step = {config.prompts_per_step}")
    with OfflineRun(config, report) as run:
        step, batch = 0, first
        while len(batch) == config.prompts_per_step and step < config.steps:
            step += 1
            scored = batch if rescorer is None else [rescorer.rescored(group) for group in batch]
            ids = [int(group_ids(group)[0]) for group in scored]
            run.train(OfflineStep(step=step, group_ids=ids, batch=undecided(concat_groups(scored))))
            batch = list(islice(groups, config.prompts_per_step)) if step < config.steps else []
        run.export()
    verdicts = (rescorer.num_changed, rescorer.counter.num_verdicts) if rescorer is not None else (0, 0)
    return Trained(steps=step, groups_left=len(batch), changed_verdicts=verdicts[0], verdicts=verdicts[1])


class Rescorer:
    """Gives the responses of saved groups verdicts and rewards anew."""

    def __init__(self, config: RunConfig, judge: JudgeGroup) -> None:
        self._config = config
        self._known = names_in(make_task(config.task))
        self._judge = judge
        self.counter = VerdictCounter(max_error_rate=config.verifier.max_error_rate)
        self.num_changed = 0

    def rescored(self, group: pa.RecordBatch) -> pa.RecordBatch:
        """Raises UserError where the group is of another task."""
        (stored,) = from_record_batch(group)
        problem = stored.request.problem
        if problem.task not in self._known:
            parts = f" of {', '.join(self._known)}" if self._config.task.name == "mixture" else ""
            raise UserError(
                f"--rescore: problem {problem.problem_id} is of task {problem.task}, but task.name = {self._config.task.name}{parts}"
            )
        verdicts = list(self._judge(problem, group))
        self.counter.add(verdicts)
        before = [None if verdict is None else verdict.reward for verdict in stored.verdicts]
        self.num_changed += sum(old != new.reward for old, new in zip(before, verdicts, strict=True))
        return with_rewards(group, verdicts, self._config.reward, self._config.sampling.max_response_tokens)


def _checked(config: RunConfig, source: Path, groups: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        vocabulary = vocabulary_of(resolve_model(config.model))
    except ModelError as error:
        raise UserError(str(error)) from None
    for group in groups:
        require_known_tokens(group, vocabulary, source)
        check_fits(config, group, 1)
        yield group


def _require_verifier(config: RunConfig) -> None:
    try:
        task = make_task(config.task)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not task.has_verifier:
        raise UserError(f"--rescore: task {task.name} has no verifier")
