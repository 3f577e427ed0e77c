"""Runs, and evaluation in this process: real workers behind local handles, the tiny model, no Ray."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.config import RolloutConfig, SamplingConfig, VerifierConfig
from actors.rollout import RolloutWorker
from buffers.records import GroupUsage
from jobs.config import RunConfig
from jobs.directory.run_dir import POLICY_STEP, RunDirectory
from jobs.processes.handles import LocalHandle
from jobs.sampling.candidates import CandidateStore
from jobs.sampling.evaluator import Evaluator, EvaluatorSettings
from jobs.sampling.job import problems_of
from jobs.sampling.samples import MODEL_AND_PROBLEM
from tasks.config import TaskConfig
from tasks.registry import make_task
from tests.jobs.explore_fixture import CoinVerifier

BOUND_S = 60.0
SETTINGS = EvaluatorSettings(samples=6, seed=0, verifier=VerifierConfig(), pool_timeout_s=30, wait_timeout_s=30)


def make_worker(model: str, *, name: str = "rollout-0") -> RolloutWorker:
    return RolloutWorker(
        worker_id=name,
        run_id="evaluate",
        model=model,
        config=RolloutConfig(engine="transformers", dtype="float32"),
        sampling=SamplingConfig(max_prompt_tokens=128, max_response_tokens=8),
        seed=0,
    )


class LocalEvaluate:
    """One start of sampling and judging: everything fresh but the directory."""

    def __init__(self, directory: Path, models: dict[str, str], *, num_problems: int = 3, num_workers: int = 1) -> None:
        directory.mkdir(exist_ok=True)
        self.store = CandidateStore(directory, {}, file="samples.parquet", key=MODEL_AND_PROBLEM)
        self.task = make_task(TaskConfig())
        self.problems = problems_of(self.task, "test", num_problems, warn=print)
        self.verifier = CoinVerifier()
        self.usages: list[GroupUsage] = []
        self.on_finished: Callable[[], None] = lambda: None
        self._models = models
        self._num_workers = num_workers

    def run(self) -> pa.Table:
        """Sample what is not finished; returns the whole table."""
        asyncio.run(self._run())
        self.store.compact([(label, problem.problem_id) for label in self._models for problem in self.problems])
        return self.store.read()

    async def _run(self) -> None:
        for label, model in self._models.items():
            finished = self.store.finished()
            waiting = [problem for problem in self.problems if (label, problem.problem_id) not in finished]
            workers = [make_worker(model, name=f"rollout-{index}") for index in range(self._num_workers)]
            handles = [LocalHandle(worker, f"rollout-{index}") for index, worker in enumerate(workers)]
            verifier = LocalHandle(self.verifier, "verifier")
            try:
                async with asyncio.timeout(BOUND_S):
                    for worker in workers:
                        await worker.start()
                    evaluator = Evaluator(self.task, handles, verifier, SETTINGS, label=label, keep=self.store.add, on_finished=self._note)
                    await evaluator.run(waiting)
            finally:
                for worker in workers:
                    await worker.close()

    def _note(self, usage: GroupUsage) -> None:
        self.usages.append(usage)
        self.on_finished()


def make_run(
    directory: Path, model: str, *, checkpoints: Sequence[int] = (), policy: int | None = None, settings: dict[str, Any] | None = None
) -> Path:
    """A training run's directory as one leaves it behind, with the weights of `model` in every checkpoint."""
    config = RunConfig.model_validate({"run_dir": str(directory), "model": model, "checkpoint": {"keep": 10}} | (settings or {}))
    with RunDirectory(config) as run:
        for step in checkpoints:
            files = run.checkpoints.save(step, "learner", lambda part: _save_learner(model, part))
            run.checkpoints.commit(step, files, {})
        if policy is not None:
            shutil.copytree(model, run.policy)
            (run.policy / POLICY_STEP).write_text(json.dumps({"step": policy}))
    return directory


def _save_learner(model: str, part: Path) -> None:
    shutil.copytree(model, part / "policy")
    (part / "optimiser.safetensors").write_bytes(b"moments")
