"""The rollout worker: owns one inference engine and turns admitted groups into Arrow batches.

worker = RolloutWorker(worker_id="rollout-0", ...)
await worker.start()
batch, usage = await worker.generate(request, messages)           # K responses to one prompt; several groups at once
batch, usage = await worker.generate(request, messages, resume)   # the same, after what another worker has sampled
batch, usage = await worker.sample_pool(request, messages, seed)  # the same, alone in the engine and reproducible
progress, heartbeat = await worker.watch(cursor, timeout_s)       # all tokens of its groups, when they have grown
await worker.update(weights)                                      # new weights; requests continue
await worker.abort(group_id)"""

import asyncio
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from actors.config import NovelSamplingConfig, PromptConfig, RolloutConfig, SamplingConfig
from actors.engine import AsyncEngine, EngineSetup, Sample, SampleRequest
from actors.features import Projector
from actors.novel_sampling import NovelSampler
from actors.progress import NOTHING, progress_batch, resumed_samples
from actors.prompts import DataError, Messages, Prompts
from actors.step_loop import start_engine
from actors.weight_transfer import Weights, check_weights
from bonus.config import BonusConfig
from buffers.records import FinishReason, GroupRequest, GroupUsage, Heartbeat, Rollout, WeightUpdate
from buffers.schema import to_record_batch, with_features
from learners.forward import causal_lm_shapes
from learners.precision import resolve_dtype

Generated = tuple[pa.RecordBatch, GroupUsage]

REFRESH_SHARE, REFRESH_MAX_S = 0.25, 1.0
"""The part of a `watch` that is left for asking the engine, which answers after its step."""


def request_keys(request: GroupRequest) -> list[str]:
    """Return the engine's keys of a group's responses. The part behind the colon seeds a deterministic engine. It names
    the problem, the version at admission and the attempt, not the group, so that a resume samples the same."""
    seed = f"{request.problem.problem_id}/{request.admitted_version}/{request.attempt}"
    return [f"{request.group_id}:{seed}/{index}" for index in range(request.num_responses)]


def group_seed(key: str) -> str:
    """Return what all keys of a group share behind the colon."""
    return key.partition(":")[2].rpartition("/")[0]


@dataclass(slots=True)
class _Response:
    """One response of a group. Until it ends, `sample` holds the tokens that it came with or had at the last look."""

    key: str
    sample: Sample
    num_resumed: int
    is_running: bool


@dataclass(slots=True)
class _Group:
    responses: list[_Response]
    is_aborted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledFeatures:
    """How a worker makes features from the mean hidden state of each response (`actors.pooled_states`)."""

    bonus: BonusConfig | None = None  # Settings of the projection. None: features are the mean states themselves.
    projection_seed: int = 0


class RolloutWorker:
    """Samples groups of K responses to one prompt. Every token carries the policy version that sampled it."""

    def __init__(
        self,
        *,
        worker_id: str,
        run_id: str,
        model: str,
        config: RolloutConfig,
        sampling: SamplingConfig,
        prompt: PromptConfig | None = None,
        seed: int,
        features: PooledFeatures | None = None,
        isolated: bool = False,
    ) -> None:
        """`features`: every group carries features made from the engine's own states; None: it carries none.
        `isolated`: a group is sampled alone and from a seed of its own. It is then the same whenever and on whichever
        worker it is sampled, and the caller of `generate` awaits one group before the next."""
        self._worker_id, self._run_id = worker_id, run_id
        self._setup = EngineSetup(model=model, config=config, sampling=sampling, seed=seed, pool_states=features is not None)
        self._sampling = sampling
        self._features, self._isolated = features, isolated
        self._projector: Projector | None = None
        self._prompts = Prompts(model, prompt or PromptConfig())
        self._tokenizer: Any = self._prompts.tokenizer
        self._engine: AsyncEngine | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtype = resolve_dtype(config.dtype, on_gpu=config.num_gpus > 0)
        self._groups: dict[int, _Group] = {}
        self._version = 0
        self._left_out = False  # from the last report, because the engine did not answer in time
        self._leaving: asyncio.Future[Any] | None = None  # held so that it is not collected before it ends

    async def start(self) -> str:
        """Start the engine, and return the worker's id once it can serve."""
        self._engine = await start_engine(self._setup)
        self._shapes = await asyncio.to_thread(causal_lm_shapes, self._setup.model)
        return self._worker_id

    async def generate(self, request: GroupRequest, messages: Messages, resume: pa.RecordBatch | pa.Table | None = None) -> Generated:
        """Sample the group. Aborted responses return with their tokens so far. Seconds are those in this worker.
        `resume` has rows with the columns of PROGRESS_SCHEMA, of this and any other group: a progress batch, or the
        batch of an aborted group. Responses that have ended are kept, "aborted" ones continue, and those without a row
        begin. With `features` it is ignored, because the hidden states of the old tokens are unknown. If this raises or
        is cancelled, none of its requests stays in the engine. Raises DataError for a prompt that cannot be
        made or is longer than `max_prompt_tokens`, EngineError if the engine has failed, and RuntimeError if the group
        is here already."""
        started = time.monotonic()
        prompt_ids = self._prompt_ids(request, messages)
        group = self._enter(request, resume)
        try:
            if self._isolated:
                seconds = await self._respond_alone(request, group, prompt_ids)
            else:
                seconds = await asyncio.gather(*(self._respond(group, response, prompt_ids) for response in group.responses))
        except BaseException:  # cancelled, or one of them refused
            self._leaving = asyncio.gather(self.abort(request.group_id), return_exceptions=True)
            await asyncio.sleep(0)  # up to its first wait, so that later requests to the engine come after it
            raise
        finally:
            del self._groups[request.group_id]
        samples = [response.sample for response in group.responses]
        resumed_tokens = sum(response.num_resumed for response in group.responses)
        return self._batch(request, prompt_ids, samples, seconds, started, resumed_tokens=resumed_tokens)

    async def sample_pool(self, request: GroupRequest, messages: Messages, seed: int) -> Generated:
        """Sample the group alone in the engine and from `seed`, so that it does not depend on what was sampled before.
        Raises what `generate` raises, and RuntimeError while the engine has other requests."""
        started = time.monotonic()
        prompt_ids = self._prompt_ids(request, messages)
        requests = [SampleRequest(key=key, prompt_ids=prompt_ids) for key in request_keys(request)]
        samples = await self._serving().sample_batch(requests, seed=seed)
        return self._batch(request, prompt_ids, samples, None, started)

    async def sample_novel_pool(self, request: GroupRequest, messages: Messages, seed: int, config: NovelSamplingConfig) -> Generated:
        """Do as `sample_pool`, steered towards novelty chunk by chunk (`actors.novel_sampling`). Needs `features`."""
        started = time.monotonic()
        prompt_ids = self._prompt_ids(request, messages)
        sampler = NovelSampler(self._serving(), config, max_tokens=self._sampling.max_response_tokens)
        samples = await sampler.sample(request_keys(request), prompt_ids, seed=seed)
        return self._batch(request, prompt_ids, samples, None, started)

    async def abort(self, group_id: int) -> None:
        """End a group early. Its `generate` returns what was sampled. Unknown groups are ignored: they have ended."""
        group = self._groups.get(group_id)
        if group is not None:
            group.is_aborted = True  # for responses that are not in the engine yet
            await self._serving().abort([response.key for response in group.responses if response.is_running])

    async def watch(self, cursor: int, timeout_s: float) -> tuple[pa.RecordBatch, Heartbeat]:
        """Report all tokens of the groups in the worker once its running responses have grown by
        `config.progress_tokens` on average since the call that returned `sampled_tokens == cursor` (0 for the first
        call), or shortly before `timeout_s` is over. The batch has PROGRESS_SCHEMA and a row for every response with a
        token. If the engine is in a step and does not answer in time, the rows are as they were, and the next call does
        not wait for more tokens; `sampled_tokens` is as of the engine's last step. Raises EngineError once the engine
        has failed."""
        engine = self._serving()
        deadline = asyncio.get_running_loop().time() + timeout_s
        if not self._left_out:
            await self._until_grown(cursor, timeout_s - min(REFRESH_SHARE * timeout_s, REFRESH_MAX_S))
        try:
            async with asyncio.timeout_at(deadline):
                sampled_tokens = await self._refresh()
            self._left_out = False
        except TimeoutError:
            sampled_tokens = engine.sampled_tokens
            self._left_out = True
        samples = {group_id: [response.sample for response in group.responses] for group_id, group in self._groups.items()}
        rows = [(group_id, index, sample) for group_id in samples for index, sample in enumerate(samples[group_id]) if sample.token_ids]
        tokens = {group_id: sum(len(sample.token_ids) for sample in samples[group_id]) for group_id, _, _ in rows}
        rss_bytes = psutil.Process().memory_info().rss
        return progress_batch(rows), Heartbeat(
            worker_id=self._worker_id, version=self._version, tokens_by_group=tokens, sampled_tokens=sampled_tokens, rss_bytes=rss_bytes
        )

    async def update(self, weights: Weights) -> WeightUpdate:
        """Check new weights while the engine continues, load them between two steps and prove them. Raises
        WeightsRefused if they are not those published or do not fit the model; nothing has changed then. Raises
        EngineError if the load fails (WeightMismatch if the proof does); the worker then serves no more."""
        engine = self._serving()
        started = time.monotonic()
        await asyncio.to_thread(check_weights, weights, shapes=self._shapes, dtype=self._dtype)
        check_s = time.monotonic() - started
        load_s = await engine.load(weights)
        self._version, idle_s = weights.version, engine.take_idle_s()
        return WeightUpdate(
            worker_id=self._worker_id, version=self._version, load_s=load_s, idle_s=idle_s, check_s=check_s, nbytes=weights.nbytes
        )

    async def close(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    def _serving(self) -> AsyncEngine:
        if self._engine is None:
            raise RuntimeError(f"{self._worker_id} has not been started")
        return self._engine

    def _prompt_ids(self, request: GroupRequest, messages: Messages) -> list[int]:
        prompt_ids = self._prompts.token_ids(request.problem.problem_id, messages)
        if (limit := self._sampling.max_prompt_tokens) is not None and len(prompt_ids) > limit:
            prompt = f"the prompt of problem {request.problem.problem_id}"
            raise DataError(f"{prompt} has {len(prompt_ids)} tokens, more than sampling.max_prompt_tokens = {limit}")
        return prompt_ids

    def _enter(self, request: GroupRequest, resume: pa.RecordBatch | pa.Table | None) -> _Group:
        if request.group_id in self._groups:
            raise RuntimeError(f"group {request.group_id} is in {self._worker_id} already")
        resumed: dict[int, Sample] = {}
        if resume is not None and self._features is None:
            resumed = resumed_samples(resume, request, max_tokens=self._sampling.max_response_tokens)
        samples = [resumed.get(index, NOTHING) for index in range(request.num_responses)]
        responses = [
            _Response(key, sample, num_resumed=len(sample.token_ids), is_running=sample.finish_reason is FinishReason.ABORTED)
            for key, sample in zip(request_keys(request), samples, strict=True)
        ]
        group = self._groups[request.group_id] = _Group(responses)
        return group

    async def _respond(self, group: _Group, response: _Response, prompt_ids: list[int]) -> float:
        started = time.monotonic()
        if not response.is_running:
            return 0.0
        if not group.is_aborted:
            sampled = response.sample if response.num_resumed else None
            response.sample = await self._serving().sample(response.key, prompt_ids, sampled)
        response.is_running = False
        return time.monotonic() - started

    async def _respond_alone(self, request: GroupRequest, group: _Group, prompt_ids: list[int]) -> list[float]:
        """Sample all responses of the group, alone in the engine, and return the seconds of each. The seed has the
        request's place, which a resume keeps; it tells groups of one problem and version apart (with few problems)."""
        started = time.monotonic()
        requests = [SampleRequest(key=response.key, prompt_ids=prompt_ids) for response in group.responses]
        seed = zlib.crc32(f"{self._setup.seed}/{group_seed(requests[0].key)}/{request.place}".encode())
        samples = await self._serving().sample_batch(requests, seed=seed)
        for response, sample in zip(group.responses, samples, strict=True):
            response.sample, response.is_running = sample, False
        return [time.monotonic() - started] * len(samples)

    async def _until_grown(self, cursor: int, within_s: float) -> None:
        """Wait until as many tokens were sampled since `cursor` as are to be reported, for at most `within_s`."""
        engine = self._serving()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while engine.sampled_tokens < (due := cursor + self._setup.config.progress_tokens * max(1, self._num_running())):
                    await engine.wait_for_tokens(due)

    def _num_running(self) -> int:
        return sum(response.is_running for group in self._groups.values() for response in group.responses)

    async def _refresh(self) -> int:
        """Ask the engine for the running responses' tokens, and return how many it had sampled by then. Those that had
        ended by then are complete, because the engine's answers reach this event loop in order."""
        running = {response.key: response for group in self._groups.values() for response in group.responses if response.is_running}
        progress = await self._serving().partials(list(running))
        for key, sample in progress.samples.items():
            if running[key].is_running:
                running[key].sample = sample
        return progress.sampled_tokens

    def _batch(
        self,
        request: GroupRequest,
        prompt_ids: list[int],
        samples: Sequence[Sample],
        seconds: Sequence[float] | None,
        started: float,
        *,
        resumed_tokens: int = 0,
    ) -> Generated:
        generate_s = time.monotonic() - started
        usage = GroupUsage(
            worker_id=self._worker_id,
            prompt_tokens=len(prompt_ids),
            response_tokens=sum(len(sample.token_ids) for sample in samples),
            generate_s=generate_s,
            resumed_tokens=resumed_tokens,
            num_aborted=sum(sample.finish_reason is FinishReason.ABORTED for sample in samples),
            sampled_tokens=self._serving().sampled_tokens,
        )
        rollouts = [
            Rollout(
                prompt_ids=tuple(prompt_ids),
                response_ids=sample.token_ids,
                behavior_logprobs=sample.logprobs,
                version_starts=sample.version_starts,
                version_values=sample.version_values,
                finish_reason=sample.finish_reason,
                response_text=self._tokenizer.decode(sample.token_ids, skip_special_tokens=True),
                generate_s=elapsed_s,
            )
            for sample, elapsed_s in zip(samples, seconds or [generate_s] * len(samples), strict=True)
        ]
        batch = to_record_batch(self._run_id, request, rollouts, worker_id=self._worker_id)
        return self._with_features(batch, request, samples), usage

    def _with_features(self, batch: pa.RecordBatch, request: GroupRequest, samples: Sequence[Sample]) -> pa.RecordBatch:
        """Add the features, if any. A response that was aborted before its first token has none (null)."""
        settings = self._features
        means = [sample.state_mean for sample in samples]
        valid = np.array([mean is not None for mean in means])
        if settings is None or not valid.any():
            return batch
        hidden_size = next(len(mean) for mean in means if mean is not None)
        mean_KH = np.stack([np.zeros(hidden_size, dtype=np.float32) if mean is None else mean for mean in means])
        if settings.bonus is None:
            return with_features(batch, mean_KH, valid)
        if self._projector is None:
            self._projector = Projector(settings.bonus, hidden_size=hidden_size, seed=settings.projection_seed)
        features_KD = self._projector(torch.from_numpy(mean_KH).double(), request.problem.problem_id, request.admitted_version)
        return with_features(batch, features_KD.numpy().astype(np.float32), valid)
