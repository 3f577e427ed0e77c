"""The synchronous trainer: the same components called one after the other. What max_policy_lag = 0 must equal, bit for bit."""

from __future__ import annotations

import asyncio
import time

from buffers.admission import Admission
from buffers.replay import InsertResult
from jobs import scoring
from jobs.components import Components, publish, save_checkpoint
from jobs.config import RunConfig
from jobs.controller import Report, Tally
from learners.checkpoint import CheckpointManager
from tasks.base import Task
from tasks.stream import ProblemStream


class SynchronousTrainer:
    """generate, verify and encode, score, learn, publish; then the next step. Takes what `Controller` takes."""

    def __init__(
        self,
        config: RunConfig,
        components: Components,
        *,
        task: Task,
        stream: ProblemStream,
        admission: Admission,
        checkpoints: CheckpointManager,
        report: Report,
    ) -> None:
        self._config = config
        self._components = components
        self._task = task
        self._stream = stream
        self._admission = admission
        self._checkpoints = checkpoints
        self._report = report
        self._verdicts = scoring.VerdictCounter(max_error_rate=config.verifier.max_error_rate)
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    async def run(self, start_step: int) -> int:
        step = start_step
        while step < self._config.steps and not self._stopping:
            await self._train(step + 1)
            step += 1
            if step % self._config.checkpoint.every == 0 or step == self._config.steps or self._stopping:
                await save_checkpoint(
                    self._components, self._checkpoints, step, self._admission, self._stream, timeout_s=self._config.wait_timeout_s
                )
        return step

    async def _train(self, step: int) -> None:
        tally = Tally()
        generated_from = time.monotonic()
        workers = self._components.workers
        requests = [self._admission.admit(lambda: next(self._stream)) for _ in range(self._config.prompts_per_step)]
        sampled = await asyncio.gather(
            *(scoring.generate(self._config, self._task, workers[i % len(workers)], request) for i, request in enumerate(requests))
        )
        generate_s = time.monotonic() - generated_from
        tally.usages = [group.usage for group in sampled]
        for group in sampled:
            scored = await scoring.verify_and_encode(self._config, self._components, group)
            self._verdicts.add(scored.verdicts)
            tally.encode_s += scored.encode_s
            tally.verify_s += sum(verdict.elapsed_s for verdict in scored.verdicts)
            result = await scoring.insert(self._config, self._components, scored, step - 1)
            if result is not InsertResult.ACCEPTED:
                raise RuntimeError(f"replay refused group {group.request.group_id} of a synchronous step: {result}")
        batch, drawn = await scoring.draw(self._config, self._components, step - 1)
        batch, bonus_metrics = await scoring.add_bonus(self._config, self._components, batch)
        report = await scoring.learn(self._config, self._components, batch, step)
        await scoring.log(self._config, self._components, batch, step, report)
        self._admission.trained(drawn.group_ids, version=report.version)
        tally.updates = await publish(self._components, timeout_s=self._config.wait_timeout_s)
        self._admission.published(report.version)
        metrics = {**report.metrics, **bonus_metrics, **tally.metrics(), "time/generate_s": generate_s}
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - generate_s - tally.encode_s
        self._report(step, metrics)
