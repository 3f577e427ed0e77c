"""One start of `jobs.explore`: lock the directory, start what is needed, fill the pools, report, end every process."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from buffers.records import GroupUsage, Problem
from jobs.build import all_ready, close_all, encoder, namespace, ray_session, rollout_worker, verifier_pool
from jobs.config import ConfigError
from jobs.environment import prepare_environment
from jobs.explore_config import CHANGEABLE_BETWEEN_STARTS, ExploreConfig
from jobs.explore_report import console_lines, write_report
from jobs.explorer import FINISHERS, Explorer, Sources
from jobs.failures import NAMED_FAILURES, details, reason
from jobs.handles import Handle
from jobs.job_dir import JobDirectory
from jobs.plan import available_memory_gib, explore_memory_gib
from jobs.pools import PoolStore, known_verdicts, problem_of, read_pools, split_pools
from jobs.reselect import needs_encoder, reselect
from jobs.selected import write_selected
from jobs.session import EXIT_FAILED
from learners.models import ModelError, check_model, resolve_model
from tasks.base import Task, TaskError
from tasks.registry import make_task
from tasks.stream import is_endless


class Stopped(Exception):
    """A signal asked for the end; what is finished is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_explore(config: ExploreConfig, *, from_pools: str | None) -> int:
    """Returns the exit code. Raises ConfigError when the job is refused; nothing was then touched."""
    task, problems = _problems(config, from_pools)
    old = read_pools(from_pools) if from_pools else None
    _check_model(config, None if old is None else old[1])
    _require_memory(config, sampling=old is None)
    prepare_environment(config.model)
    console = Console()
    with JobDirectory(config.out, config, changeable=CHANGEABLE_BETWEEN_STARTS, kind="the directory", option="--out DIR") as directory:
        session = _Session(config, task, directory.path, console)
        try:
            asyncio.run(session.run(problems) if old is None else session.reselect(*old))
            return 0
        except ConfigError:
            raise
        except Stopped as stopped:
            done = len(session.store.finished())
            console.print(
                f"stopped with {done} pools finished in {directory.path}; the same command goes on",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            return 128 + stopped.number
        except Exception as error:  # the seam to the person who started the job
            done = len(session.store.finished())
            if text := details(error, named=(*NAMED_FAILURES, OSError)):
                print(text, file=sys.stderr)
            print(f"error: the job failed: {reason(error)} ({done} pools are finished; the same command goes on)", file=sys.stderr)
            return EXIT_FAILED


def _problems(config: ExploreConfig, from_pools: str | None) -> tuple[Task, list[Problem]]:
    """The task, and the problems to sample for. Raises ConfigError."""
    try:
        task = make_task(config.task)
        if config.verify != "none" and not task.has_verifier:
            raise ConfigError(f"task {task.name} has no verifier: use --verify none, or set its verifier")
        if from_pools:
            return task, []
        if config.problems == 0 and is_endless(task):
            raise ConfigError(f"problems = 0 asks for the whole split '{config.split}', but task {task.name} has no end: give --problems N")
        stream = task.problems(config.split)
        problems = list(itertools.islice(stream, config.problems or None))
    except (TaskError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from None
    if not problems:
        raise ConfigError(f"task {task.name} has no problems in split '{config.split}'")
    return task, problems


def _check_model(config: ExploreConfig, settings: dict[str, Any] | None) -> None:
    if settings is not None and not needs_encoder(config, settings):
        return
    try:
        check_model(config.model)
    except ModelError as error:
        raise ConfigError(str(error)) from None


def _require_memory(config: ExploreConfig, *, sampling: bool) -> None:
    needed, available = explore_memory_gib(config, sampling=sampling), available_memory_gib()
    if needed is not None and needed > available:
        raise ConfigError(
            f"this job needs about {needed:.1f} GiB of memory and {available:.1f} GiB are available: close other programs, or lower "
            "rollout.workers or rollout.kv_cache_gib"
        )


class _Session:
    def __init__(self, config: ExploreConfig, task: Task, directory: Path, console: Console) -> None:
        self._config = config
        self._task = task
        self._directory = directory
        self._console = console
        self.store = PoolStore(directory, config.model_dump(mode="json"))

    async def run(self, problems: Sequence[Problem]) -> None:
        """Sample what is not finished yet, then report on all of it."""
        finished = self.store.finished()
        waiting = [problem for problem in problems if problem.problem_id not in finished]
        if waiting:
            await self._interruptibly(self._sample(waiting, total=len(problems)))
        table = self.store.compact([problem.problem_id for problem in problems])
        self._report(table, self._config.model_dump(mode="json"))

    async def reselect(self, table: pa.Table, settings: dict[str, Any]) -> None:
        """Order and judge pools sampled before."""
        pools = list(split_pools(table))
        await self._interruptibly(self._reselect(pools, settings))
        table = self.store.compact([problem_of(pool).problem_id for pool in pools])
        ours = self._config.model_dump(mode="json")
        self._report(table, ours | {key: settings[key] for key in ("model", "sampling", "split", "pool", "task") if key in settings})

    async def _sample(self, problems: Sequence[Problem], *, total: int) -> None:
        config = self._config
        self._say(f"model {config.model}: loading")
        try:
            model = await asyncio.to_thread(resolve_model, config.model)
        except ModelError as error:
            raise ConfigError(str(error)) from None
        self._say("starting the engines (about 30 s on two cores)")
        use_encoder = not config.from_engine
        with ray_session(namespace(config.out), config.rollout.workers + 1 + int(use_encoder)):
            workers = [
                rollout_worker(
                    index, config.rollout, config.sampling, model=model, run_id="explore", seed=config.seed, pool_states=config.from_engine
                )
                for index in range(config.rollout.workers)
            ]
            sources = Sources(workers=workers, encoder=self._encoder(model) if use_encoder else None, verifier=self._verifier())
            try:
                encoders = [sources.encoder] if sources.encoder else []
                await all_ready(workers, encoders, timeout_s=config.rollout.start_timeout_s)
                with _Bar(self._console, total=total, done=total - len(problems)) as bar:
                    await Explorer(config, self._task, self.store, sources, bar.advance).run(problems)
            finally:
                await close_all([*workers, *([sources.verifier] if sources.verifier else [])])

    async def _reselect(self, pools: Sequence[pa.Table], settings: dict[str, Any]) -> None:
        config = self._config
        use_encoder = needs_encoder(config, settings)
        finished = self.store.finished()
        waiting = [pool for pool in pools if problem_of(pool).problem_id not in finished]
        to_verify = config.verify != "none" and any(len(known_verdicts(pool)) < pool.num_rows for pool in waiting)
        session = ray_session(namespace(config.out), 1 + int(use_encoder)) if use_encoder or to_verify else nullcontext()
        with session:
            model = await asyncio.to_thread(resolve_model, config.model) if use_encoder else ""
            sources = Sources(
                workers=[], encoder=self._encoder(model) if use_encoder else None, verifier=self._verifier() if to_verify else None
            )
            try:
                await all_ready([], [sources.encoder] if sources.encoder else [], timeout_s=config.rollout.start_timeout_s)
                with _Bar(self._console, total=len(pools), done=len(pools) - len(waiting)) as bar:

                    def keep(pool: pa.Table) -> None:
                        self.store.add(pool)
                        bar.advance(None)

                    explorer = Explorer(config, self._task, self.store, sources, bar.advance)
                    await reselect(waiting, explorer, sources.encoder, config, keep)
            finally:
                await close_all([sources.verifier] if sources.verifier else [])

    def _encoder(self, model: str) -> Handle:
        return encoder(0, self._config.encoder, model=model, group_size=None)

    def _verifier(self) -> Handle | None:
        if self._config.verify == "none":
            return None
        return verifier_pool(self._config.task, self._config.verifier, max_concurrency=FINISHERS)

    async def _interruptibly(self, work: Any) -> None:
        """Until done, or until the first SIGINT or SIGTERM: what is in flight is then given up. A second one ends the process."""
        task = asyncio.ensure_future(work)
        got: list[int] = []
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if got:
                os._exit(128 + number)
            got.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            await task
        except asyncio.CancelledError:
            if not got:
                raise
            raise Stopped(got[0]) from None

    def _report(self, table: pa.Table, settings: dict[str, Any]) -> None:
        report = write_report(table, settings, self._directory, seed=self._config.seed)
        num_selected = write_selected(table, self._config, self._directory / "selected.jsonl")
        for line in console_lines(report):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._say(f"{self._directory}/report.html   pools.parquet   selected.jsonl ({num_selected} answers)   report.json")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Bar:
    """Progress with a remaining time where there is a terminal, else a line a pool."""

    def __init__(self, console: Console, *, total: int, done: int) -> None:
        self._console, self._total, self._done = console, total, done
        columns = (TextColumn("pools"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.description}"), console=console) if console.is_terminal else None
        self._task = self._progress.add_task("", total=total, completed=done) if self._progress else None

    def __enter__(self) -> _Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, usage: GroupUsage | None) -> None:
        self._done += 1
        speed = "" if usage is None else f"{usage.response_tokens} tokens, {usage.response_tokens / max(usage.generate_s, 1e-9):.0f}/s"
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=self._done, description=speed)
        else:
            self._console.print(f"pool {self._done}/{self._total}  {speed}", highlight=False, markup=False, soft_wrap=True)
