"""Exploration in this process: a real worker and encoder behind local handles, the tiny model, no Ray."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.encoder import HiddenStateEncoder
from actors.rollout import PooledFeatures, RolloutWorker
from buffers.records import GroupUsage, Problem, Verdict, VerdictStatus
from jobs.explore_config import ExploreConfig
from jobs.processes.handles import LocalHandle
from jobs.sampling.candidates import CandidateStore, problem_of, split_by_problem
from jobs.sampling.explorer import Explorer, Sources
from jobs.sampling.job import problems_of
from jobs.sampling.reselect import reselect
from tasks.registry import make_task

BOUND_S = 60.0


def small_explore(model: str, directory: Path, **values: Any) -> ExploreConfig:
    """Three problems, six short answers to each. Sections of `values` are merged into those below."""
    base: dict[str, Any] = {
        "out": str(directory / "out"),
        "model": model,
        "problems": 3,
        "pool": 6,
        "select": [1, 2, 4],
        "sampling": {"max_prompt_tokens": 128, "max_response_tokens": 8},
        "rollout": {"engine": "transformers", "dtype": "float32"},
        "encoder": {"dtype": "float32"},
        "selection": {"dim": 8},
    }
    for key, value in values.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return ExploreConfig.model_validate(base)


class CoinVerifier:
    """In place of the verifier pool: about half of all answers are correct, always the same ones."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def verify(self, problem: Problem, responses: Sequence[str]) -> list[Verdict]:
        self.asked += responses
        correct = [zlib.crc32(text.encode()) % 2 == 0 for text in responses]
        return [Verdict(status=VerdictStatus.CORRECT if ok else VerdictStatus.INCORRECT, reward=float(ok)) for ok in correct]


class LocalExplore:
    """One start of the job, up to the finished table: everything fresh but the directory."""

    def __init__(self, config: ExploreConfig) -> None:
        self.config = config
        self.task = make_task(config.task)
        self.problems = problems_of(self.task, config.split, config.problems, warn=print)
        directory = Path(config.out)
        directory.mkdir(parents=True, exist_ok=True)
        self.store = CandidateStore(directory, config.model_dump(mode="json"))
        self.verifier = CoinVerifier()
        self.workers = [self._worker(index) for index in range(config.rollout.workers)]
        self.encoder = None if config.from_engine else self.make_encoder()
        self.usages: list[GroupUsage] = []
        self.on_finished: Callable[[], None] = lambda: None

    def _worker(self, index: int) -> RolloutWorker:
        config = self.config
        return RolloutWorker(
            worker_id=f"rollout-{index}",
            run_id="explore",
            model=config.model,
            config=config.rollout,
            sampling=config.sampling,
            seed=config.seed,
            features=PooledFeatures() if config.from_engine else None,
        )

    def make_encoder(self) -> HiddenStateEncoder:
        return HiddenStateEncoder(model=self.config.model, config=self.config.encoder, group_size=None)

    def sources(self, encoder: HiddenStateEncoder | None) -> Sources:
        return Sources(
            workers=[LocalHandle(worker, f"rollout-{index}") for index, worker in enumerate(self.workers)],
            encoder=LocalHandle(encoder, "encoder") if encoder else None,
            verifier=None if self.config.verify == "none" else LocalHandle(self.verifier, "verifier"),
        )

    def run(self) -> pa.Table:
        """Sample what is not finished; returns the whole table."""
        asyncio.run(self._run())
        self.store.compact([(problem.problem_id,) for problem in self.problems])
        return self.store.read()

    async def _run(self) -> None:
        finished = self.store.finished()
        waiting = [problem for problem in self.problems if (problem.problem_id,) not in finished]
        try:
            async with asyncio.timeout(BOUND_S):
                for worker in self.workers:
                    await worker.start()
                await Explorer(self.config, self.task, self.store, self.sources(self.encoder), self._note).run(waiting)
        finally:
            for worker in self.workers:
                await worker.close()

    def _note(self, usage: GroupUsage) -> None:
        self.usages.append(usage)
        self.on_finished()

    def reselect(self, table: pa.Table, *, encode: bool = False) -> pa.Table:
        """Order and judge the candidates of `table` with this job's settings."""
        tables = list(split_by_problem(table))
        sources = self.sources(self.make_encoder() if encode else None)
        explorer = Explorer(self.config, self.task, self.store, sources, self._note)
        asyncio.run(reselect(tables, explorer, sources.encoder, self.config, self.store.add))
        self.store.compact([(problem_of(candidates).problem_id,) for candidates in tables])
        return self.store.read()
