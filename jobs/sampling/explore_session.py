"""One start of `jobs.explore`: lock the directory, start what is needed, sample, report, end every process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from actors.config import SamplingConfig
from actors.encoder import HiddenStateEncoder
from actors.rollout import PooledFeatures
from actors.verifier import VerifierPool
from buffers.records import Problem
from jobs.configuration.user_error import UserError
from jobs.directory.job_dir import JobDirectory
from jobs.explore_config import CHANGEABLE_BETWEEN_STARTS, ExploreConfig
from jobs.plan import explore_memory_gib
from jobs.processes.build import Closes, all_ready, close_all, launch, namespace, ray_session
from jobs.processes.description import encoder, rollout_worker, verifier_pool
from jobs.processes.environment import prepare_environment
from jobs.processes.handles import Handle
from jobs.processes.models import sampled_model
from jobs.processes.needs import needs_of
from jobs.processes.threads import share_of_cores
from jobs.reports.explore.report import write_report
from jobs.sampling.candidates import CandidateStore, known_verdicts, problem_of, split_by_problem
from jobs.sampling.explorer import Explorer, Sources
from jobs.sampling.job import Bar, interruptibly, posed, problems_of, require_memory, run_to_end
from jobs.sampling.pipeline import FINISHERS
from jobs.sampling.reselect import needs_encoder, reselect
from jobs.sampling.selected import write_selected
from jobs.screens.terminal import say, terminal
from learners.models import check_model, resolve_model
from tasks.base import Task
from tasks.registry import make_task


def run_explore(config: ExploreConfig, old: tuple[pa.Table, dict[str, Any]] | None = None) -> int:
    """Run the job and return its exit code. `old` are candidates that were sampled before, and their settings. Raises
    one of `user_error.REFUSALS` before anything is touched."""
    console = terminal()
    task, problems = _problems(config, console, to_sample=old is None)
    encodes = needs_encoder(config, None if old is None else old[1])
    needs_model = old is None or encodes
    if needs_model:
        check_model(config.model)
    require_memory(explore_memory_gib(config, sampling=old is None, encoding=encodes))
    prepare_environment(config.model)
    model = ""
    sampling: SamplingConfig = config.sampling
    if needs_model:
        say(console, f"model {config.model}: loading")
        computed = old is not None or not config.from_engine
        facts = sampled_model(resolve_model(config.model), config.sampling, config.rollout, computed=computed)
        model = facts.path
        if old is None:
            problems, (sampling,) = posed([facts], problems, config.prompt, config.sampling, task, warn=lambda text: say(console, text))
    with JobDirectory(config.out, config, changeable=CHANGEABLE_BETWEEN_STARTS, kind="the directory", option="--out DIR") as directory:
        session = ExploreSession(config, task, directory.path, console, model=model, sampling=sampling)
        work = session.run(problems) if old is None else session.reselect(*old)
        return run_to_end(lambda: asyncio.run(work), console, directory.path, lambda: len(session.store.finished()))


def _problems(config: ExploreConfig, console: Console, *, to_sample: bool) -> tuple[Task, list[Problem]]:
    task = make_task(config.task, config.verifier)
    if config.verify != "none" and not task.has_verifier:
        raise UserError(f"task {task.name} has no verifier: use --verify none, or set its verifier")
    if not to_sample:
        return task, []
    return task, problems_of(task, config.split, config.problems, warn=lambda text: say(console, f"warning: {text}"))


class ExploreSession:
    """The work of one start."""

    def __init__(
        self, config: ExploreConfig, task: Task, directory: Path, console: Console, *, model: str, sampling: SamplingConfig
    ) -> None:
        """`model` is a directory, and `sampling` says how long a prompt may be."""
        self._config, self._task = config, task
        self._model, self._sampling = model, sampling
        self._directory, self._console = directory, console
        self.store = CandidateStore(directory, config.model_dump(mode="json"))

    async def run(self, problems: Sequence[Problem]) -> None:
        """Sample what is not finished yet, then report on everything."""
        finished = self.store.finished()
        waiting = [problem for problem in problems if (problem.problem_id,) not in finished]
        if waiting:
            await interruptibly(self._sample(waiting, total=len(problems)))
        self.store.compact([(problem.problem_id,) for problem in problems])
        self._report(self.store.read(), self._config.model_dump(mode="json"))

    async def reselect(self, table: pa.Table, settings: dict[str, Any]) -> None:
        """Order and judge candidates that were sampled before."""
        tables = list(split_by_problem(table))
        self._require_same_pools(tables)
        await interruptibly(self._reselect(tables, settings))
        self.store.compact([(problem_of(candidates).problem_id,) for candidates in tables])
        theirs = {key: settings[key] for key in ("model", "sampling", "split", "pool", "task") if key in settings}
        self._report(self.store.read(), self._config.model_dump(mode="json") | theirs)

    def _require_same_pools(self, tables: Sequence[pa.Table]) -> None:
        """Raise UserError where the directory has candidates of other pools."""
        theirs = {problem_of(candidates).problem_id: candidates["response_ids"] for candidates in tables}
        for ours in split_by_problem(self.store.read()) if self.store.finished() else ():
            problem_id = problem_of(ours).problem_id
            if problem_id not in theirs or not ours["response_ids"].combine_chunks().equals(theirs[problem_id].combine_chunks()):
                raise UserError(f"{self._directory} has other answers to {problem_id} already: choose another with --out DIR")

    async def _sample(self, problems: Sequence[Problem], *, total: int) -> None:
        config = self._config
        say(self._console, "starting the engines (about 30 s on two cores)")
        use_encoder = not config.from_engine
        with self._ray(workers=config.rollout.workers, use_encoder=use_encoder, to_verify=config.verify != "none"):
            features = PooledFeatures() if config.from_engine else None
            worker = partial(rollout_worker, prompt=config.prompt, model=self._model, run_id="explore", seed=config.seed, features=features)
            names = [f"rollout-{index}" for index in range(config.rollout.workers)]
            engine = share_of_cores(config.rollout, self._sharing)
            workers = [launch(worker(name, engine, self._sampling)) for name in names]
            sources = Sources(workers=workers, encoder=self._encoder() if use_encoder else None, verifier=self._verifier())
            try:
                encoders = [sources.encoder] if sources.encoder else []
                await all_ready(workers, encoders, timeout_s=config.rollout.start_timeout_s)
                with Bar(self._console, total=total, done=total - len(problems)) as bar:
                    await Explorer(config, self._task, self.store, sources, bar.advance).run(problems)
            finally:
                closing: list[Handle[Closes]] = [*workers, *([sources.verifier] if sources.verifier else [])]
                await close_all(closing)

    async def _reselect(self, tables: Sequence[pa.Table], settings: dict[str, Any]) -> None:
        config = self._config
        use_encoder = needs_encoder(config, settings)
        finished = self.store.finished()
        waiting = [candidates for candidates in tables if (problem_of(candidates).problem_id,) not in finished]
        to_verify = config.verify != "none" and any(len(known_verdicts(one)) < one.num_rows for one in waiting)
        starts_any = use_encoder or to_verify
        with self._ray(workers=0, use_encoder=use_encoder, to_verify=to_verify) if starts_any else nullcontext():
            handle = self._encoder() if use_encoder else None
            sources = Sources(workers=[], encoder=handle, verifier=self._verifier() if to_verify else None)
            try:
                await all_ready([], [sources.encoder] if sources.encoder else [], timeout_s=config.rollout.start_timeout_s)
                with Bar(self._console, total=len(tables), done=len(tables) - len(waiting)) as bar:

                    def keep(candidates: pa.Table) -> None:
                        self.store.add(candidates)
                        bar.advance(None)

                    explorer = Explorer(config, self._task, self.store, sources, bar.advance)
                    await reselect(waiting, explorer, sources.encoder, config, keep)
            finally:
                await close_all([sources.verifier] if sources.verifier else [])

    def _ray(self, *, workers: int, use_encoder: bool, to_verify: bool) -> AbstractContextManager[None]:
        numbers = {"rollout": workers, "encoder": int(use_encoder), "verifier": int(to_verify)}
        needs = [needs_of(role, getattr(self._config, role)) for role, number in numbers.items() for _ in range(number)]
        return ray_session(namespace(self._config.out), needs, warn=partial(say, self._console))

    @property
    def _sharing(self) -> int:
        return self._config.rollout.processes + int(not self._config.from_engine)

    def _encoder(self) -> Handle[HiddenStateEncoder]:
        return launch(encoder(0, share_of_cores(self._config.encoder, self._sharing), model=self._model, group_size=None))

    def _verifier(self) -> Handle[VerifierPool] | None:
        if self._config.verify == "none":
            return None
        return launch(verifier_pool(self._config.task, self._config.verifier, max_concurrency=FINISHERS + 1))

    def _report(self, table: pa.Table, settings: dict[str, Any]) -> None:
        report = write_report(table, settings, self._directory, seed=self._config.seed)
        num_selected = write_selected(table, self._config, self._directory / "selected.jsonl")
        report.print(self._console)
        say(self._console, f"{self._directory}/report.html   pools.parquet   selected.jsonl ({num_selected} answers)   report.json")
