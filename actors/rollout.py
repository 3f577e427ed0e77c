"""The rollout worker: owns one inference engine and turns admitted groups into Arrow batches.

worker = RolloutWorker(worker_id="rollout-0", ...)
batch, usage = await worker.generate(request, messages)   # K responses to one prompt, several groups at once
await worker.update(snapshot)                             # new weights, requests kept
await worker.abort(group_id)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import AsyncEngine, Sample, StepLoop
from buffers.records import GroupRequest, GroupUsage, Rollout, WeightUpdate
from buffers.schema import to_record_batch
from learners.weights import WeightSnapshot


def build_engine(model: str, config: RolloutConfig, sampling: SamplingConfig, *, seed: int) -> AsyncEngine:
    """The engine that `config.engine` names."""
    if config.engine == "vllm-async":
        from actors.vllm_engine import AsyncVllmEngine

        return AsyncVllmEngine(model, config, sampling, seed=seed)
    if config.engine == "vllm":
        from actors.vllm_engine import VllmEngine

        return StepLoop(lambda: VllmEngine(model, config, sampling, seed=seed))
    from actors.reference_engine import ReferenceEngine

    return StepLoop(lambda: ReferenceEngine(model, config, sampling, seed=seed))


def request_keys(request: GroupRequest) -> list[str]:
    """Engine keys of a group's responses: unique by group; what follows the colon seeds a deterministic engine.

    The seed part names the problem and the version it was admitted under, not the group, so a group sampled again after a
    resume is the same group.
    """
    seed = f"{request.problem.problem_id}/{request.admitted_version}/{request.attempt}"
    return [f"{request.group_id}:{seed}/{index}" for index in range(request.num_responses)]


class RolloutWorker:
    """Samples groups of K responses with a shared prompt; every token carries the policy version that sampled it."""

    def __init__(self, *, worker_id: str, run_id: str, model: str, config: RolloutConfig, sampling: SamplingConfig, seed: int) -> None:
        from transformers import AutoTokenizer

        self._worker_id = worker_id
        self._run_id = run_id
        self._model = model
        self._config = config
        self._sampling = sampling
        self._seed = seed
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._engine: AsyncEngine | None = None
        self._running: dict[int, list[str]] = {}

    async def start(self) -> str:
        """Build the engine; returns the worker's id once it can serve."""
        if self._config.engine == "vllm-async":  # binds to this event loop
            self._engine = build_engine(self._model, self._config, self._sampling, seed=self._seed)
        else:
            self._engine = await asyncio.to_thread(build_engine, self._model, self._config, self._sampling, seed=self._seed)
        return self._worker_id

    async def generate(self, request: GroupRequest, messages: Sequence[dict[str, str]]) -> tuple[pa.RecordBatch, GroupUsage]:
        """Sample the group. Aborted responses come back with their tokens so far.

        Raises ValueError when the prompt is longer than `max_prompt_tokens`, EngineError when the engine has failed.
        """
        started = time.monotonic()
        prompt_ids = self._prompt_ids(request, messages)
        keys = request_keys(request)
        self._running[request.group_id] = keys
        try:
            rollouts = await asyncio.gather(*(self._rollout(key, prompt_ids) for key in keys))
        finally:
            del self._running[request.group_id]
        usage = GroupUsage(
            worker_id=self._worker_id,
            prompt_tokens=len(prompt_ids),
            response_tokens=sum(len(rollout.response_ids) for rollout in rollouts),
            generate_s=time.monotonic() - started,
        )
        return to_record_batch(self._run_id, request, rollouts, worker_id=self._worker_id), usage

    async def abort(self, group_id: int) -> None:
        """End a group early; its `generate` returns what was sampled. Unknown groups are ignored: they have ended."""
        await self._serving().abort(self._running.get(group_id, []))

    async def update(self, snapshot: WeightSnapshot) -> WeightUpdate:
        """Load new weights between two steps and prove them. Raises WeightMismatch, after which the worker serves nothing."""
        engine = self._serving()
        started = time.monotonic()
        await engine.load(snapshot)
        return WeightUpdate(
            worker_id=self._worker_id, version=snapshot.version, load_s=time.monotonic() - started, idle_s=engine.take_idle_s()
        )

    async def close(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    def _serving(self) -> AsyncEngine:
        if self._engine is None:
            raise RuntimeError(f"{self._worker_id} has not been started")
        return self._engine

    def _prompt_ids(self, request: GroupRequest, messages: Sequence[dict[str, str]]) -> list[int]:
        prompt_ids: list[int] = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        limit = self._sampling.max_prompt_tokens
        if len(prompt_ids) > limit:
            raise ValueError(
                f"the prompt of problem {request.problem.problem_id} has {len(prompt_ids)} tokens, more than "
                f"sampling.max_prompt_tokens = {limit}"
            )
        return prompt_ids

    async def _rollout(self, key: str, prompt_ids: list[int]) -> Rollout:
        started = time.monotonic()
        sample: Sample = await self._serving().sample(key, prompt_ids)
        return Rollout(
            prompt_ids=tuple(prompt_ids),
            response_ids=sample.token_ids,
            behavior_logprobs=sample.logprobs,
            version_starts=sample.version_starts,
            version_values=sample.version_values,
            finish_reason=sample.finish_reason,
            response_text=self._tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            generate_s=time.monotonic() - started,
        )
