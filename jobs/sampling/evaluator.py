"""Responses for evaluation: sampled, and all of them judged. `jobs.evaluate` and a training run share this code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from actors.config import VerifierConfig
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import Problem
from jobs.processes.handles import Handle
from jobs.sampling.candidates import sampled_candidates
from jobs.sampling.pipeline import CandidateSampling, Judge, OnFinished, SamplingPipeline
from jobs.sampling.samples import MODEL
from tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class EvaluatorSettings:
    """What is asked of a model, and how long it may take."""

    samples: int
    seed: int
    verifier: VerifierConfig
    pool_timeout_s: float
    wait_timeout_s: float


class Evaluator:
    """Samples and judges one model's responses: after `run`, `keep` has had those to every problem."""

    def __init__(
        self,
        task: Task,
        workers: Sequence[Handle[RolloutWorker]],
        verifier: Handle[VerifierPool],
        settings: EvaluatorSettings,
        *,
        label: str,
        version: int = 0,
        keep: Callable[[pa.Table], None],
        on_finished: OnFinished,
    ) -> None:
        """`label` names the model in the table, `version` what the workers hold (0: what they started with)."""
        self._label, self._version, self._keep = label, version, keep
        self._judge = Judge(task, verifier, settings.verifier, timeout_s=settings.wait_timeout_s)
        asked = CandidateSampling(num_responses=settings.samples, seed=settings.seed, prompt=task.prompt, timeout_s=settings.pool_timeout_s)
        self._pipeline = SamplingPipeline(workers, asked, self._finish, on_finished)

    async def run(self, problems: Sequence[Problem]) -> None:
        """Sample and judge the responses to all `problems`. Raises the first exception of any loop."""
        await self._pipeline.run(problems)

    async def _finish(self, problem: Problem, batch: pa.RecordBatch) -> None:
        version = self._version
        if others := set(pc.list_flatten(batch.column("version_values")).to_pylist()) - {version}:
            raise RuntimeError(f"the evaluation of version {version} was sampled in part under version {min(others)}: {problem.problem_id}")
        responses = await self._judge.answered(problem, sampled_candidates(batch).drop_columns(["feature"]))
        judged = await self._judge.judged(problem, responses, range(responses.num_rows))
        labelled = judged.add_column(0, MODEL, pa.array([self._label] * judged.num_rows, pa.string()))
        await asyncio.to_thread(self._keep, labelled)
