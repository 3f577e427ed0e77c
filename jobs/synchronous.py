"""The synchronous trainer: the same components called one after the other. What max_policy_lag = 0 must equal, bit for bit."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from buffers.records import WeightUpdate
from buffers.replay import InsertResult
from buffers.tokens import TokenWaste
from jobs.controller import Tally
from jobs.evaluations import Evaluation
from jobs.handles import Handle
from jobs.run import Run, Sampled, VerdictCounter


class SynchronousTrainer:
    """generate, verify and encode, score, learn, publish; then the next step. Takes what `Controller` takes."""

    def __init__(self, run: Run, *, evaluation: Evaluation | None = None) -> None:
        self._run = run
        self._evaluation = evaluation
        self._verdicts = VerdictCounter(max_error_rate=run.config.verifier.max_error_rate)
        self._stopping = False
        self._workers: list[Handle] = []

    def stop(self) -> None:
        self._stopping = True

    async def run(self, start_step: int) -> int:
        """A lost rollout worker ends the run: there is nobody to go on with."""
        run, config = self._run, self._run.config
        run.step = start_step
        self._workers = [run.factory.rollout_worker(number) for number in range(config.rollout.workers)]
        try:
            timeout_s = config.rollout.start_timeout_s
            await asyncio.gather(
                *(worker.call("start", timeout_s=timeout_s, waiting_for=f"{worker.name} to start") for worker in self._workers)
            )
            if start_step:
                await self._load((await run.weights())[0])
            while run.step < config.steps and not self._stopping:
                await self._train()
                if self._evaluation is not None and self._evaluation.is_due(run.step):
                    run.evaluated(run.step, await self._evaluation.run(run.step, self._workers, run.verifier))
                if run.step % config.checkpoint.every == 0 or run.step == config.steps or self._stopping:
                    await run.save_checkpoint()
            return run.step
        finally:
            closing = (worker.call("close", timeout_s=20, waiting_for=f"{worker.name} to close") for worker in self._workers)
            await asyncio.gather(*closing, return_exceptions=True)

    async def _train(self) -> None:
        run, tally = self._run, Tally()
        workers = self._workers
        generate_s = 0.0
        while (missing := run.config.prompts_per_step - len(run.held)) > 0:  # again for groups that were filtered out
            requests = [run.admit() for _ in range(missing)]
            began = time.monotonic()
            sampled = await asyncio.gather(*(run.generate(workers[i % len(workers)], request) for i, request in enumerate(requests)))
            generate_s += time.monotonic() - began
            tally.usages += [group.usage for group in sampled]
            for group in sampled:
                await self._score(group, tally)
        batch, drawn = await run.draw(run.step)
        batch, bonus_metrics = await run.add_bonus(batch, run.step)
        report = await run.learn(batch)
        await run.log(batch, report)
        run.admission.trained(drawn.group_ids, version=report.version)
        run.observations.trained(drawn.group_ids, report.version)
        for group_id in drawn.group_ids:
            run.tokens.trained(group_id)
        asked = time.monotonic()
        snapshot, version = await run.weights()
        tally.published(asked)
        tally.updates = await self._load(snapshot)
        run.observations.live(version)
        run.admission.published(version)
        metrics = {**report.metrics, **bonus_metrics, **tally.metrics(), **run.tokens.metrics(), "time/generate_s": generate_s}
        metrics["time/plumbing_s"] = metrics["time/step_s"] - metrics["time/learn_s"] - generate_s - tally.encode_s
        run.report(run.step, metrics)

    async def _score(self, group: Sampled, tally: Tally) -> None:
        """From responses to a group in replay, or to one that is filtered out."""
        run, group_id = self._run, group.request.group_id
        run.tokens.started(group.usage.worker_id, group_id)
        run.tokens.finished(group.usage.worker_id, group_id, group.usage.response_tokens)
        scored = await run.verify_and_encode(group)
        run.observations.judged(group_id, group.request.problem, scored.verdicts)
        self._verdicts.add(scored.verdicts)
        tally.add_scored(scored)
        result = await run.insert(scored, run.step)
        if result is InsertResult.FILTERED:
            run.tokens.dropped(group_id, TokenWaste.FILTERED)
            run.admission.filter(group_id)
            run.observations.filtered(group_id)
        elif result is not InsertResult.ACCEPTED:
            raise RuntimeError(f"replay refused group {group_id} of a synchronous step: {result}")

    async def _load(self, snapshot: Any) -> list[WeightUpdate]:
        """Every engine takes the weights and proves that it holds them."""
        timeout_s = self._run.config.wait_timeout_s
        loads = (
            worker.call("update", snapshot, timeout_s=timeout_s, waiting_for=f"{worker.name} to load new weights")
            for worker in self._workers
        )
        return list(await asyncio.gather(*loads))
