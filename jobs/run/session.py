"""One start of a run: it locks the directory, starts the components, trains, saves, exports and ends every process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from actors.learner import Learner
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError, refusing
from jobs.directory.events import EventKind, EventLog
from jobs.directory.metrics import MetricsWriter
from jobs.directory.run_dir import RunDirectory
from jobs.directory.trackers import RunInfo, Trackers, load_trackers
from jobs.processes.build import launch, launch_together, namespace, ray_session
from jobs.processes.description import TrainingComponents, needs_of_run
from jobs.processes.environment import prepare_environment
from jobs.processes.failures import details, first_error, reason
from jobs.processes.models import policy_model
from jobs.processes.prompts import DRAWN, PromptLook
from jobs.run.checkpoints import forget_log_after, restore_checkpoint
from jobs.run.components import Run
from jobs.run.control import Control
from jobs.run.controller import Controller
from jobs.run.faults import Listener
from jobs.run.history import lacks_evaluation, require_known_history, require_own_storage, require_saved_stream, start_step_of
from jobs.run.prometheus import scrape_address
from jobs.run.synchronous import SynchronousTrainer, watch
from jobs.sampling.evaluator import EvaluatorSettings
from jobs.sampling.training_evaluation import TrainingEvaluation
from jobs.screens.console import RunConsole
from jobs.screens.hints import MismatchAdvice, no_signal_warnings
from jobs.screens.json_lines import JsonConsole
from jobs.screens.summary import summary_lines
from learners.models import ModelError, check_model, model_here
from tasks.base import Task
from tasks.registry import make_task
from tasks.stream import ProblemStream, is_endless

EXIT_FAILED = 1


def run_session(config: RunConfig, *, config_path: str, overrides: Sequence[str] = (), resume: str, synchronous: bool) -> int:
    """Run, and return the exit code. Raise UserError when the run is refused; nothing was then touched. `config_path`
    and `overrides` are what the command was given; the summary repeats them."""
    with refusing(ModelError):
        check_model(config.model)
    stream = _problem_stream(config)
    run_directory = RunDirectory(config)
    evaluation = _evaluation(config, stream.task, run_directory)
    require_own_storage(run_directory, config.checkpoint.storage)
    require_known_history(run_directory)
    prepare_environment(config.model)
    start = _looked_at(config, stream, evaluation)
    with run_directory as run:
        start_step = start_step_of(run, resume)
        last_evaluation_is_missing = not synchronous and lacks_evaluation(run, start_step, evaluation)
        if start_step >= config.steps and run.policy_step == start_step and not last_evaluation_is_missing:
            _say(
                config,
                f"{run.path} has all {config.steps} steps already: nothing to do. Train further with "
                f"--set steps={start_step + 20}, or start again with --set run_dir=...",
            )
            return 0
        require_saved_stream(run, start_step, stream)
        with console_of(config, run.run_id) as console:
            session = TrainSession(
                config, config_path, run, stream, console, overrides=overrides, synchronous=synchronous, evaluation=evaluation
            )
            try:
                return asyncio.run(session.run(start, start_step))
            except UserError:
                raise
            except Exception as error:  # the seam to the person who started the run
                session.control.enter("failed", reason(error))
                console.failed(details(error), _failure(run, error))
                return EXIT_FAILED
            except KeyboardInterrupt:
                session.control.enter("stopped", "before the first step")
                console.failed("", "stopped before the first step; nothing to save")
                return 128 + signal.SIGINT


def console_of(config: RunConfig, run_id: str) -> RunConsole:
    """Return what the run says things to, as `logs.format` asks for."""
    return JsonConsole(run_id, config.steps) if config.logs.format == "json" else RunConsole(f"repexp {run_id}", config.steps)


def _say(config: RunConfig, text: str) -> None:
    """Say one line where no console is up."""
    if config.logs.format == "json":
        console_of(config, RunDirectory(config).run_id).note(text)
    else:
        print(text)


def _problem_stream(config: RunConfig) -> ProblemStream:
    """Return the task's training problems, with their data read. Raise UserError where it cannot be trained on."""
    try:
        task = make_task(config.task, config.verifier)
        if not task.has_verifier:
            raise UserError(f"task {task.name} has no verifier, and training needs rewards: set its verifier")
        return ProblemStream(task, "train", config.seed, config.task.curriculum)
    except ValueError as error:
        raise UserError(str(error)) from None


def _evaluation(config: RunConfig, task: Task, directory: RunDirectory) -> TrainingEvaluation | None:
    """Return the evaluation of the policy, with its problems read; None without one. Raise UserError."""
    if not config.evaluation.every:
        return None
    settings = EvaluatorSettings(
        samples=config.evaluation.samples,
        seed=config.seed,
        verifier=config.verifier,
        pool_timeout_s=config.wait_timeout_s,
        wait_timeout_s=config.wait_timeout_s,
    )
    return TrainingEvaluation(config.evaluation, task, settings, directory.evaluations)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was found before anything is started."""

    model: str
    """The directory of the model."""
    config: RunConfig
    """What the processes are made with: the run's configuration with a number as `sampling.max_prompt_tokens`."""
    warnings: tuple[str, ...]


def _looked_at(config: RunConfig, stream: ProblemStream, evaluation: TrainingEvaluation | None) -> Start:
    """Look at the model and at the prompts of all problems, and have those left out that are to be. Raise UserError."""
    if model_here(config.model) is None:
        _say(config, f"model {config.model}: loading (the embedded model is unpacked once, about 20 s)")
    facts = policy_model(config)
    with refusing(ModelError):
        look = PromptLook(facts, config.prompt, config.sampling, stream.task.prompt)
    fit = look.at([*stream.known(DRAWN), *(evaluation.problems if evaluation else [])], is_all=not is_endless(stream.task))
    if config.prompt.too_long == "leave_out":
        stream.leave_out(look.may_pose)
    if evaluation is not None:
        evaluation.leave_out(fit.unusable)
    warnings = (*(evaluation.warnings if evaluation else ()), *fit.warnings)
    return Start(model=facts.path, config=config.model_copy(update={"sampling": fit.sampling}), warnings=warnings)


def _failure(run: RunDirectory, error: Exception) -> str:
    latest = run.checkpoints.latest()
    left = f"the same command resumes from step {latest}" if latest is not None else "there is no checkpoint yet"
    return f"error: the run failed: {reason(error)} ({left})"


def evaluation_line(step: int, metrics: dict[str, float]) -> str:
    rates = sorted((int(name.rpartition("@")[2]), rate) for name, rate in metrics.items() if name.startswith("eval/pass@"))
    return f"evaluation of step {step}: " + ", ".join(f"pass@{k} {rate:.2f}" for k, rate in rates)


class TrainSession:
    def __init__(
        self,
        config: RunConfig,
        config_path: str,
        directory: RunDirectory,
        stream: ProblemStream,
        console: RunConsole,
        *,
        overrides: Sequence[str] = (),
        synchronous: bool,
        evaluation: TrainingEvaluation | None,
    ) -> None:
        self._config = config
        self._stream = stream
        self._config_path, self._overrides = config_path, overrides
        self._directory = directory
        self._console = console
        self._synchronous = synchronous
        self._evaluation = evaluation
        self.control = Control(directory.path, directory.run_id, config, warn=console.warn)
        self._signal: int | None = None
        self._mismatch_advice = MismatchAdvice()
        self._writer: MetricsWriter | None = None
        self._events: EventLog | None = None

    async def run(self, start: Start, start_step: int) -> int:
        config, console = self._config, self._console
        if start_step:
            self.control.checkpointed(start_step)
        self.control.enter("starting", step=start_step)
        for text in (*start.warnings, *self.control.wishes()):
            console.warn(text)
        console.status("starting Ray")
        json_logs = config.logs.format == "json"
        with ray_session(namespace(config.run_dir), needs_of_run(config), warn=console.warn, json_logs=json_logs):
            self.control.scraped_at(scrape_address())
            console.status("starting the engine and the learner (about 30 s on two cores)")
            log_directory = str(self._directory.rollouts)
            components = TrainingComponents(start.config, start.model, run_id=self._directory.run_id, log_directory=log_directory)
            return await self._train(components, start_step)

    async def _train(self, components: TrainingComponents, start_step: int) -> int:
        listener = Listener(
            stepped=self._report,
            evaluated=self._evaluated,
            warn=self._console.warn,
            note=self._note,
            replaced=lambda name, error: self._console.warn(f"{name} is replaced: {reason(error)}"),
        )
        run = Run(
            self._config,
            components=components,
            launch=launch,
            launch_together=launch_together,
            stream=self._stream,
            directory=self._directory,
            listener=listener,
        )
        try:
            await run.ready()
            self._events = self._open_events(start_step)
            return await self._train_prepared(run, start_step)
        finally:
            await run.close()
            if self._events is not None:
                with suppress(OSError):
                    self._events.close()

    def _open_events(self, start_step: int) -> EventLog:
        """Open the event log. Raise UserError where an earlier start's cannot be read."""
        path = self._directory.events
        try:
            return EventLog(path, resume_step=start_step, max_bytes=self._config.logs.events_max_mib << 20)
        except ValueError as error:
            raise UserError(f"{error}: move {path} away to continue without the events before") from None

    async def _train_prepared(self, run: Run, start_step: int) -> int:
        config, directory = self._config, self._directory
        directory.forget_snapshots()
        if start_step:
            self._console.status(f"restoring the checkpoint of step {start_step}")
            await restore_checkpoint(run, start_step)
        else:
            await forget_log_after(run, 0)
        info = RunInfo.of(directory.path, config, resume_step=start_step)
        trackers = Trackers(load_trackers(config.trackers, config.tracker_options), info, warn=self._console.warn)
        self._writer = writer = MetricsWriter(
            directory.metrics, trackers, resume_step=start_step, max_bytes=config.logs.metrics_max_mib << 20
        )
        self._console.status("sampling the first groups")
        try:
            step = await self._run_trainer(run, start_step)
        finally:
            writer.close()
        if step >= config.steps:
            await self._export(run, step)
        stopped = "" if self._signal is None else f"by signal {self._signal}"
        self.control.enter("finished" if step >= config.steps else "stopped", stopped, step=step)
        flags = ["--synchronous"] if self._synchronous else []
        lines = summary_lines(directory, self._config_path, writer.history, config.steps, overrides=self._overrides, flags=flags)
        self._console.finish(directory.run_id, lines)
        return 0 if self._signal is None else 128 + self._signal

    async def _run_trainer(self, run: Run, start_step: int) -> int:
        if self._synchronous:
            trainer = SynchronousTrainer(run, evaluation=self._evaluation)
            self._stop_on_signal(trainer)
            try:
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(watch(trainer, self.control, self._directory.path, self._console.warn))
                    step = await trainer.train(start_step)
                    watching.cancel()
            except BaseExceptionGroup as errors:
                raise first_error(errors) from None
            return step
        assert self._writer is not None
        evaluated = self._writer.evaluated
        controller = Controller(run, workers=self.control.desired.rollout, evaluation=self._evaluation, evaluated=evaluated)
        self._stop_on_signal(controller)
        return await controller.train(start_step, alongside=[self.control.loop(controller)])

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        self._written(lambda writer: writer.write(step, metrics))
        self.control.stepped(metrics)
        self._console.step(step, metrics)
        for text in [*no_signal_warnings(step, metrics, self._config), *self._mismatch_advice.new(step, metrics)]:
            self._console.warn(text)

    def _evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self._written(lambda writer: writer.write_evaluation(step, metrics))
        self.control.evaluated(metrics)
        self._console.note(evaluation_line(step, metrics))

    def _written(self, write: Callable[[MetricsWriter], None]) -> None:
        """Write metrics. What cannot be written is kept for the next try: a run does not fail for it."""
        assert self._writer is not None
        try:
            write(self._writer)
        except OSError as error:
            self._console.warn(f"the metrics cannot be written, and are kept for the next step: {error.strerror}")

    def _note(self, kind: EventKind, /, **fields: Any) -> None:
        """Write an event. One that cannot be written is kept for the next try: a run does not fail for its log."""
        assert self._events is not None
        if kind is EventKind.CHECKPOINT:
            self.control.checkpointed(fields["step"], time.time())
        self._console.event(kind, fields)
        try:
            self._events.write(kind, **fields)
        except OSError as error:
            self._console.warn(f"{self._directory.events} cannot be written: {error.strerror}")

    def _stop_on_signal(self, trainer: Controller | SynchronousTrainer) -> None:
        """Called after Ray, which sets handlers of its own. A second signal ends the run at once."""
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if self._signal is not None:
                os._exit(128 + number)
            self._signal = number
            self._console.status("stopping: the step in progress is finished and a checkpoint written (again: stop at once)")
            trainer.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)

    async def _export(self, run: Run, step: int) -> None:
        with self._directory.exporting_policy(step) as staging:
            await run.call(run.learner, Learner.save_policy, str(staging), waiting_for="the final policy to be written")
