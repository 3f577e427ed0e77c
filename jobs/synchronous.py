"""The synchronous trainer: the same components called one after the other. What max_policy_lag = 0 must equal, bit for bit."""

from __future__ import annotations

import asyncio
import time

from buffers.replay import InsertResult
from jobs.controller import Tally
from jobs.run import Run, VerdictCounter


class SynchronousTrainer:
    """generate, verify and encode, score, learn, publish; then the next step. Takes what `Controller` takes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._verdicts = VerdictCounter(max_error_rate=run.config.verifier.max_error_rate)
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    async def run(self, start_step: int) -> int:
        config = self._run.config
        step = start_step
        while step < config.steps and not self._stopping:
            await self._train(step + 1)
            step += 1
            if step % config.checkpoint.every == 0 or step == config.steps or self._stopping:
                await self._run.save_checkpoint(step)
        return step

    async def _train(self, step: int) -> None:
        run, tally = self._run, Tally()
        generated_from = time.monotonic()
        workers = run.components.workers
        requests = [run.admit() for _ in range(run.config.prompts_per_step)]
        sampled = await asyncio.gather(*(run.generate(workers[i % len(workers)], request) for i, request in enumerate(requests)))
        generate_s = time.monotonic() - generated_from
        tally.usages = [group.usage for group in sampled]
        for group in sampled:
            scored = await run.verify_and_encode(group)
            self._verdicts.add(scored.verdicts)
            tally.add_scored(scored)
            result = await run.insert(scored, step - 1)
            if result is not InsertResult.ACCEPTED:
                raise RuntimeError(f"replay refused group {group.request.group_id} of a synchronous step: {result}")
        batch, drawn = await run.draw(step - 1)
        batch, bonus_metrics = await run.add_bonus(batch, step - 1)
        report = await run.learn(batch, step)
        await run.log(batch, step, report)
        run.admission.trained(drawn.group_ids, version=report.version)
        snapshot, version = await run.weights()
        tally.updates = await run.load_everywhere(snapshot)
        run.admission.published(version)
        metrics = {**report.metrics, **bonus_metrics, **tally.metrics(), "time/generate_s": generate_s}
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - generate_s - tally.encode_s
        run.report(step, metrics)
