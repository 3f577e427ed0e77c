"""The rollout worker: owns one inference engine and turns admitted groups into Arrow batches.

worker = RolloutWorker(worker_id="rollout-0", ...)
batch, usage = await worker.generate(request, messages)   # K responses to one prompt, several groups at once
batch, usage = await worker.sample_pool(request, messages, seed)  # the same, alone in the engine and reproducible
await worker.update(snapshot)                             # new weights, requests kept
await worker.abort(group_id)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from actors.config import NovelSamplingConfig, RolloutConfig, SamplingConfig
from actors.engine import AsyncEngine, Sample, SampleRequest, StepLoop
from actors.features import Projector
from actors.novel_sampling import NovelSampler
from bonus.config import BonusConfig
from buffers.records import GroupRequest, GroupUsage, Rollout, WeightUpdate
from buffers.schema import to_record_batch, with_features
from learners.weights import WeightSnapshot


def build_engine(model: str, config: RolloutConfig, sampling: SamplingConfig, *, seed: int, pool_states: bool = False) -> AsyncEngine:
    """The engine that `config.engine` names."""
    if config.engine == "vllm-async":
        from actors.vllm_engine import AsyncVllmEngine

        return AsyncVllmEngine(model, config, sampling, seed=seed, pool_states=pool_states)
    if config.engine == "vllm":
        from actors.vllm_engine import VllmEngine

        return StepLoop(lambda: VllmEngine(model, config, sampling, seed=seed, pool_states=pool_states))
    from actors.reference_engine import ReferenceEngine

    return StepLoop(lambda: ReferenceEngine(model, config, sampling, seed=seed, pool_states=pool_states))


def request_keys(request: GroupRequest) -> list[str]:
    """Engine keys of a group's responses: unique by group; what follows the colon seeds a deterministic engine.

    The seed part names the problem and the version it was admitted under, not the group, so a group sampled again after a
    resume is the same group.
    """
    seed = f"{request.problem.problem_id}/{request.admitted_version}/{request.attempt}"
    return [f"{request.group_id}:{seed}/{index}" for index in range(request.num_responses)]


class RolloutWorker:
    """Samples groups of K responses with a shared prompt; every token carries the policy version that sampled it.

    With `pool_states` a group also carries the mean hidden state of each response (`actors.pooled_states`) as its feature,
    projected where there is a bonus config.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        run_id: str,
        model: str,
        config: RolloutConfig,
        sampling: SamplingConfig,
        seed: int,
        pool_states: bool = False,
        bonus: BonusConfig | None = None,
        projection_seed: int = 0,
    ) -> None:
        from transformers import AutoTokenizer

        self._worker_id = worker_id
        self._run_id = run_id
        self._model = model
        self._config = config
        self._sampling = sampling
        self._seed = seed
        self._pool_states = pool_states
        self._bonus = bonus
        self._projection_seed = projection_seed
        self._projector: Projector | None = None
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._engine: AsyncEngine | None = None
        self._running: dict[int, list[str]] = {}

    async def start(self) -> str:
        """Build the engine; returns the worker's id once it can serve."""
        options: dict[str, Any] = {"seed": self._seed, "pool_states": self._pool_states}
        if self._config.engine == "vllm-async":  # binds to this event loop
            self._engine = build_engine(self._model, self._config, self._sampling, **options)
        else:
            self._engine = await asyncio.to_thread(build_engine, self._model, self._config, self._sampling, **options)
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
            timed = await asyncio.gather(*(self._sample_timed(key, prompt_ids) for key in keys))
        finally:
            del self._running[request.group_id]
        return self._batch(request, prompt_ids, [sample for sample, _ in timed], [seconds for _, seconds in timed], started)

    async def sample_pool(self, request: GroupRequest, messages: Sequence[dict[str, str]], seed: int) -> tuple[pa.RecordBatch, GroupUsage]:
        """Sample the group with nothing else in the engine, begun from `seed`: the same pool whatever was sampled before it.

        Raises as `generate`, and RuntimeError while the engine has other requests.
        """
        started = time.monotonic()
        prompt_ids = self._prompt_ids(request, messages)
        requests = [SampleRequest(key=key, prompt_ids=prompt_ids) for key in request_keys(request)]
        samples = await self._serving().sample_batch(requests, seed=seed)
        elapsed_s = time.monotonic() - started
        return self._batch(request, prompt_ids, samples, [elapsed_s] * len(samples), started)

    async def sample_novel_pool(
        self, request: GroupRequest, messages: Sequence[dict[str, str]], seed: int, config: NovelSamplingConfig
    ) -> tuple[pa.RecordBatch, GroupUsage]:
        """As `sample_pool`, steered towards novelty chunk by chunk (`actors.novel_sampling`). Needs `pool_states`."""
        started = time.monotonic()
        prompt_ids = self._prompt_ids(request, messages)
        sampler = NovelSampler(self._serving(), config, max_tokens=self._sampling.max_response_tokens)
        samples = await sampler.sample(request_keys(request), prompt_ids, seed=seed)
        elapsed_s = time.monotonic() - started
        return self._batch(request, prompt_ids, samples, [elapsed_s] * len(samples), started)

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

    async def _sample_timed(self, key: str, prompt_ids: list[int]) -> tuple[Sample, float]:
        started = time.monotonic()
        return await self._serving().sample(key, prompt_ids), time.monotonic() - started

    def _batch(
        self, request: GroupRequest, prompt_ids: list[int], samples: Sequence[Sample], seconds: Sequence[float], started: float
    ) -> tuple[pa.RecordBatch, GroupUsage]:
        usage = GroupUsage(
            worker_id=self._worker_id,
            prompt_tokens=len(prompt_ids),
            response_tokens=sum(len(sample.token_ids) for sample in samples),
            generate_s=time.monotonic() - started,
        )
        rollouts = [self._rollout(prompt_ids, sample, elapsed_s) for sample, elapsed_s in zip(samples, seconds, strict=True)]
        batch = to_record_batch(self._run_id, request, rollouts, worker_id=self._worker_id)
        return (self._with_features(batch, request, samples) if self._pool_states else batch), usage

    def _rollout(self, prompt_ids: list[int], sample: Sample, elapsed_s: float) -> Rollout:
        return Rollout(
            prompt_ids=tuple(prompt_ids),
            response_ids=sample.token_ids,
            behavior_logprobs=sample.logprobs,
            version_starts=sample.version_starts,
            version_values=sample.version_values,
            finish_reason=sample.finish_reason,
            response_text=self._tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            generate_s=elapsed_s,
        )

    def _with_features(self, batch: pa.RecordBatch, request: GroupRequest, samples: Sequence[Sample]) -> pa.RecordBatch:
        """Null where no token was sampled: a response aborted before its first."""
        means = [sample.state_mean for sample in samples]
        valid = np.array([mean is not None for mean in means])
        if not valid.any():
            return batch
        hidden_size = next(len(mean) for mean in means if mean is not None)
        mean_KH = np.stack([np.zeros(hidden_size, dtype=np.float32) if mean is None else mean for mean in means])
        if self._bonus is None:
            return with_features(batch, mean_KH, valid)
        if self._projector is None:
            self._projector = Projector(self._bonus, hidden_size=hidden_size, seed=self._projection_seed)
        features_KD = self._projector(torch.from_numpy(mean_KH).double(), request.problem.problem_id, request.admitted_version)
        return with_features(batch, features_KD.numpy().astype(np.float32), valid)
