"""Train again on the batches of a recorded run, in their order (`jobs.offline.trainer`).

    replayed = replay_events(config, Path("runs/a"))          # into config.run_dir

From the run's event log come the groups of each batch and their order, from its rollout log their rows: tokens,
log-probs, verdicts and features. So from the same initial model and with the same configuration all is as in the
recorded run, bit for bit; with another one (a learning rate, a bonus) this shows what that changes on the very same
batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from buffers.rollout_log import RolloutLog
from buffers.schema import concat_groups, group_ids, split_groups
from jobs.config import RunConfig
from jobs.directory.events import EVENTS, batches, read_events
from jobs.offline.trainer import (
    OfflineRun,
    OfflineStep,
    OnStep,
    check_fits,
    no_report,
    read_step,
    report_to,
    require_other_directory,
    undecided,
)
from jobs.screens.console import RunConsole
from jobs.user_error import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """Steps trained again, and in how many of them every advantage was, bit for bit, the one recorded."""

    steps: int
    same_steps: int


def replay_session(config: RunConfig, source: str) -> int:
    """`python -m jobs.train CONFIG --replay-events SOURCE`; returns the exit code. Raises UserError when refused."""
    name = Path(config.run_dir).name
    with RunConsole(f"repexp {name}, batches of {source}", config.steps) as console:
        replayed = replay_events(config, Path(source), report=report_to(console))
        console.finish(
            name,
            [
                f"{replayed.steps} steps of {source} trained again; in {replayed.same_steps} of them every advantage is the recorded one.",
                f"final policy    {config.run_dir}/policy  (a Hugging Face directory)",
            ],
        )
    return 0


def replay_events(config: RunConfig, source: Path, *, report: OnStep = no_report) -> Replayed:
    """Train the first `config.steps` recorded steps of the run in `source` (all, if there are fewer) into
    `config.run_dir`.

    Raises UserError where the two are one directory, the record cannot be used with this configuration, or is not
    whole."""
    recorded = Record(config, source)
    with OfflineRun(config, report) as run:
        for step in recorded.steps():
            run.train(step)
        run.export()
        return Replayed(steps=run.learner.version, same_steps=run.same_steps)


class Record:
    """What a run left behind of its batches."""

    def __init__(self, config: RunConfig, source: Path) -> None:
        """Raises UserError where there is nothing that could be trained on."""
        require_other_directory("--replay-events", source, config)
        self._config = config
        self._source = source
        try:
            self._batches = batches(read_events(source / EVENTS))
        except FileNotFoundError:
            raise UserError(f"--replay-events {source}: there is no {EVENTS} in it") from None
        except ValueError as error:
            raise UserError(f"--replay-events {source}: {error}") from None
        self._log = RolloutLog(fs.LocalFileSystem(), str(source / "rollouts"))
        if not self.num_steps:
            raise UserError(f"--replay-events {source}: it has no rows of step 1 (replay.log_rollouts writes them)")
        self._step(1)

    @property
    def num_steps(self) -> int:
        """Steps from the first on whose batch and rows are there, up to `config.steps`. A batch that was drawn and not
        trained has none."""
        step = 0
        while step < self._config.steps and step + 1 in self._batches and self._log.has(step + 1):
            step += 1
        return step

    def steps(self) -> Iterator[OfflineStep]:
        """In order, read as they are asked for."""
        return (self._step(step) for step in range(1, self.num_steps + 1))

    def _step(self, step: int) -> OfflineStep:
        ids = self._batches[step]
        groups = {int(group_ids(group)[0]): group for group in split_groups(read_step(self._log, step, f"--replay-events {self._source}"))}
        if groups.keys() != set(ids):
            different = sorted(groups.keys() ^ set(ids))
            raise UserError(f"--replay-events {self._source}: step {step}: groups {different} are in one of batch and rollout log only")
        batch = concat_groups([groups[group_id] for group_id in ids])
        check_fits(self._config, batch, len(ids))
        return OfflineStep(
            step=step, group_ids=ids, batch=undecided(batch), advantages=tuple(batch.column("advantage").to_numpy().tolist())
        )
