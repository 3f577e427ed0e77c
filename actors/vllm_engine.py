"""vLLM behind the two engine interfaces: `VllmEngine` (in process, CPU) and `AsyncVllmEngine` (own process, GPU).

vllm is imported inside functions only. What was learnt the hard way, and where it is handled:

- A tied head is packed separately on CPU and a reload leaves the old copy serving: `actors.vllm_worker`.
- Log-probs must be those after temperature: `logprobs_mode="processed_logprobs"`.
- A prefix cached under older weights must not be seen by a request admitted under newer ones: the version is its salt. `AsyncVllmEngine`
  therefore hands over no request while weights are replaced: it would have the salt of the old ones and be computed with the new ones.
- Per-request seeds with chunked prefill kill the CPU engine: none are passed. `reset` seeds the worker's own generator instead.
- The hidden states an engine samples from are seen by wrapping the model's `compute_logits`: `actors.vllm_worker`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineError, PartialSample, Progress, Sample, SampleRequest, TokenCounter, WeightMismatch
from actors.orphans import remove_orphans
from actors.weight_transfer import DeviceReceiver, DeviceWeights, Weights
from buffers.records import FinishReason
from learners.precision import resolve_dtype
from learners.weight_check import WeightsRefused
from learners.weights import HEAD, WeightSnapshot, first_mismatch

QUIET_LOGGERS = ("vllm.model_executor.model_loader.reload.layerwise", "vllm.v1.engine.input_processor")

SHARED_MEMORY = Path("/dev/shm")
WEIGHTS_PREFIX = "repexp-weights-"
"""Of directories in shared memory, followed by the id of the process whose engine is being loaded."""

POOLING_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Which rows of the logits are sampled is read from the state of model runner V1, the only one on CPU."""


def engine_environment(config: RolloutConfig) -> dict[str, str]:
    """Environment a worker process needs before it imports torch or vllm."""
    return {
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if config.engine == "vllm" else "1",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # handles of GPU memory are no plain data; they pass between this process and its own children
        **({"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if config.weight_transfer == "ipc" else {}),
    }


def _engine_arguments(model: str, config: RolloutConfig, sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    on_gpu = config.num_gpus > 0
    device_arguments = (
        {"gpu_memory_utilization": config.gpu_memory_fraction} if on_gpu else {"enforce_eager": True, "block_size": config.block_size}
    )
    return {
        "model": model,
        "dtype": resolve_dtype(config.dtype, on_gpu=on_gpu),
        "seed": seed,
        "max_model_len": sampling.max_prompt_tokens + sampling.max_response_tokens,
        "max_num_seqs": config.max_sequences,
        "max_num_batched_tokens": max(config.max_batched_tokens, config.max_sequences),
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "async_scheduling": False,
        "disable_log_stats": True,
        "worker_extension_cls": "actors.vllm_worker.EngineWorker",
        **device_arguments,
        **({} if config.weight_transfer == "object_store" else {"weight_transfer_config": {"backend": config.weight_transfer}}),
    }


def _prompt(request: SampleRequest, version: int) -> Any:
    """What was sampled before is to the engine a part of the prompt."""
    from vllm.inputs import TokensPrompt

    resumed = () if request.sampled is None else request.sampled.token_ids
    return TokensPrompt(prompt_token_ids=[*request.prompt_ids, *resumed], cache_salt=str(version))


def _sampling_params(sampling: SamplingConfig, request: SampleRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    limit = sampling.max_response_tokens if request.max_tokens is None else request.max_tokens
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=limit - (0 if request.sampled is None else len(request.sampled.token_ids)),
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _extend(partial: PartialSample, completion: Any, version: int) -> None:
    for token_id, candidates in zip(completion.token_ids, completion.logprobs, strict=True):
        partial.append(token_id, candidates[token_id].logprob, version)


class VllmEngine:
    """vLLM's LLMEngine in this process (a StepEngine)."""

    def __init__(self, model: str, config: RolloutConfig, sampling: SamplingConfig, *, seed: int, pool_states: bool = False) -> None:
        os.environ.update(engine_environment(config) | (POOLING_ENVIRONMENT if pool_states else {}))
        from vllm import EngineArgs, LLMEngine

        _quieten()
        torch.set_num_threads(config.threads)
        arguments: dict[str, Any] = _engine_arguments(model, config, sampling, seed)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._sampling = sampling
        self._partial: dict[str, PartialSample] = {}
        self._pools_states = pool_states
        if pool_states:
            self._engine.collective_rpc("pool_states")
        self.version = 0
        self.sampled_tokens = 0

    def add(self, key: str, prompt_ids: Sequence[int], max_tokens: int | None = None, sampled: Sample | None = None) -> None:
        request = SampleRequest(key=key, prompt_ids=prompt_ids, max_tokens=max_tokens, sampled=sampled)
        self._engine.add_request(key, _prompt(request, self.version), _sampling_params(self._sampling, request))
        self._partial[key] = PartialSample.after(sampled)

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        if not keep_cache:
            self._engine.reset_prefix_cache()
        self._engine.collective_rpc("seed_sampler", args=(seed,))

    def step(self) -> list[tuple[str, Sample]]:
        ended: dict[str, FinishReason] = {}
        for output in self._engine.step():
            completion = output.outputs[0]
            _extend(self._partial[output.request_id], completion, self.version)
            self.sampled_tokens += len(completion.token_ids)
            if output.finished:
                ended[output.request_id] = FinishReason(completion.finish_reason)
        return self._finish(ended)

    def abort(self, keys: Sequence[str]) -> list[tuple[str, Sample]]:
        self._engine.abort_request(list(keys))
        return self._finish(dict.fromkeys(keys, FinishReason.ABORTED))

    def partials(self, keys: Sequence[str]) -> dict[str, Sample]:
        return _partials(self._partial, keys)

    def _finish(self, ended: Mapping[str, FinishReason]) -> list[tuple[str, Sample]]:
        taken: dict[str, bytes] = {}
        if ended and self._pools_states:
            taken = self._engine.collective_rpc("take_states", args=(list(ended),))[0]
        return [(key, self._partial.pop(key).finish(reason, _state_mean(taken, key))) for key, reason in ended.items()]

    def load(self, snapshot: WeightSnapshot) -> None:
        self._engine.collective_rpc("load_weights_from", args=(snapshot,))
        found = self._engine.collective_rpc("held_weights", args=_to_be_held(snapshot))
        _require_match(snapshot, found)
        self.version = snapshot.version

    @property
    def has_unfinished(self) -> bool:
        return bool(self._partial)


class AsyncVllmEngine:
    """vLLM's AsyncLLM, whose engine core and workers are processes of their own (an AsyncEngine; meant for GPUs)."""

    def __init__(self, model: str, config: RolloutConfig, sampling: SamplingConfig, *, seed: int, pool_states: bool = False) -> None:
        """Must be constructed inside the event loop that will await it."""
        os.environ.update(engine_environment(config) | (POOLING_ENVIRONMENT if pool_states else {}))
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        _quieten()
        arguments: dict[str, Any] = _engine_arguments(model, config, sampling, seed)
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._sampling = sampling
        self._partial: dict[str, PartialSample] = {}
        self._pools_states: bool | None = False if not pool_states else None  # None: to be switched on with the first request
        self._sampled = TokenCounter()
        self._receiver = DeviceReceiver(lambda method, arguments: self._engine.collective_rpc(method, kwargs=arguments))
        self._version = 0
        self._is_replacing = False
        self._load_error: BaseException | None = None  # after which it samples nothing any more
        self._held: dict[str, asyncio.Future[bool]] = {}  # requests that wait until weights are replaced
        self._hold_timeout_s = config.group_timeout_s
        self._idle_s = 0.0
        self._idle_since: float | None = time.monotonic()
        remove_orphans(SHARED_MEMORY, WEIGHTS_PREFIX)  # what a process that was killed in a load left

    async def sample(self, key: str, prompt_ids: Sequence[int], sampled: Sample | None = None) -> Sample:
        return await self._sample(SampleRequest(key=key, prompt_ids=prompt_ids, sampled=sampled))

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        """As far as the engine core's schedule and kernels repeat: requests reach another process one by one."""
        if self._partial:
            raise RuntimeError(f"{len(requests)} responses were to be sampled alone, but the engine has others under way")
        if not keep_cache:
            await self._engine.reset_prefix_cache()
        await self._engine.collective_rpc("seed_sampler", args=(seed,))
        return list(await asyncio.gather(*(self._sample(request) for request in requests)))

    async def _sample(self, request: SampleRequest) -> Sample:
        key = request.key
        if key in self._partial:
            raise RuntimeError(f"request {key} runs already")
        partial = self._partial[key] = PartialSample.after(request.sampled)
        self._note_busy()
        reason, taken = FinishReason.ABORTED, {}
        try:
            if not await self._may_begin(key):
                return partial.finish(reason)
            prompt, params = _prompt(request, self._version), _sampling_params(self._sampling, request)
            with self._noting_failures():
                if self._pools_states is None:
                    self._pools_states = True
                    await self._engine.collective_rpc("pool_states")
                async for output in self._engine.generate(prompt, params, request_id=key):
                    completion = output.outputs[0]
                    _extend(partial, completion, self._version)
                    self._sampled.advance(self._sampled.total + len(completion.token_ids))
                    if output.finished and completion.finish_reason in ("stop", "length"):
                        reason = FinishReason(completion.finish_reason)
                if self._pools_states:
                    taken = (await self._engine.collective_rpc("take_states", args=([key],)))[0]
        finally:
            del self._partial[key]
            self._note_idle()
        return partial.finish(reason, _state_mean(taken, key))

    async def _may_begin(self, key: str) -> bool:
        """Wait until weights are replaced, if they are; False where the request was aborted meanwhile. Raises
        EngineError where that failed or takes too long."""
        while self._is_replacing:
            held = self._held[key] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._hold_timeout_s):
                    if not await held:
                        return False
            except TimeoutError:
                raise EngineError(f"request {key} has waited {self._hold_timeout_s:g} s for the engine to take new weights") from None
            finally:
                del self._held[key]
        if self._load_error is not None:
            raise EngineError(f"the engine samples no more: {self._load_error}") from self._load_error
        return True

    def _release(self, keys: Sequence[str], *, is_wanted: bool) -> None:
        for key in keys:
            if not self._held[key].done():
                self._held[key].set_result(is_wanted)

    async def abort(self, keys: Sequence[str]) -> None:
        held = [key for key in keys if key in self._held]
        self._release(held, is_wanted=False)
        await self._engine.abort([key for key in keys if key in self._partial and key not in held])

    async def partials(self, keys: Sequence[str]) -> Progress:
        """Of the outputs that have come from the engine core."""
        self._require_alive()
        return Progress(samples=_partials(self._partial, keys), sampled_tokens=self._sampled.total)

    @property
    def sampled_tokens(self) -> int:
        return self._sampled.total

    async def wait_for_tokens(self, total: float) -> None:
        self._require_alive()
        await self._sampled.wait_for(total)

    def _require_alive(self) -> None:
        with self._noting_failures():
            if self._engine.errored:
                raise self._engine.dead_error

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        """vLLM's own errors become an EngineError, and whoever waits for tokens gets one too."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            failure = EngineError(f"the engine failed: {error!r}")
            self._sampled.fail(failure)
            raise failure from error

    async def load(self, weights: Weights) -> float:
        """From a file in shared memory, or from the learner's GPU: whether that can be had is known before the engine
        pauses."""
        if isinstance(weights, DeviceWeights):
            await self._receiver.ask(weights)
            return await self._replace(weights, self._receiver.take)
        place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix=f"{WEIGHTS_PREFIX}{os.getpid()}-", dir=place) as directory:
            path = Path(directory) / "weights"
            try:
                await asyncio.to_thread(weights.save, path)
            except OSError as error:
                raise WeightsRefused(f"version {weights.version} could not be written to {directory}: {error.strerror}") from error
            return await self._replace(weights, lambda: self._engine.collective_rpc("load_weights_from", args=(str(path),)))

    async def _replace(self, weights: Weights, take: Callable[[], Awaitable[Any]]) -> float:
        """Pause keeping the requests, take the weights, prove them, go on. After a failure it stays paused."""
        started = time.monotonic()
        self._is_replacing = True
        try:
            with self._noting_failures():
                await self._engine.pause_generation(mode="keep", clear_cache=False)
                try:
                    await take()
                    found = await self._engine.collective_rpc("held_weights", args=_to_be_held(weights))
                except Exception as error:  # half loaded: what it would sample is of no version, so it must not go on
                    self._require_alive()
                    raise EngineError(f"loading version {weights.version} failed: {error!r}") from error
                _require_match(weights, found)
                self._version = weights.version
                await self._engine.resume_generation()
        except BaseException as error:
            self._load_error = error
            raise
        finally:
            self._is_replacing = False
            self._release(list(self._held), is_wanted=True)
        return time.monotonic() - started

    def take_idle_s(self) -> float:
        now = time.monotonic()
        idle_s, self._idle_s = self._idle_s, 0.0
        if self._idle_since is not None:
            idle_s += now - self._idle_since
            self._idle_since = now
        return idle_s

    def close(self) -> None:
        self._receiver.close()
        self._engine.shutdown()

    def _note_busy(self) -> None:
        if self._idle_since is not None:
            self._idle_s += time.monotonic() - self._idle_since
            self._idle_since = None

    def _note_idle(self) -> None:
        if not self._partial:
            self._idle_since = time.monotonic()


def _partials(partial: Mapping[str, PartialSample], keys: Sequence[str]) -> dict[str, Sample]:
    return {key: partial[key].finish(FinishReason.ABORTED) for key in keys if key in partial}


def _state_mean(taken: Mapping[str, bytes], key: str) -> np.ndarray | None:
    return np.frombuffer(taken[key], dtype=np.float32) if key in taken else None


def _to_be_held(weights: Weights) -> tuple[dict[str, tuple[int, ...]], bool, int]:
    """Arguments of `EngineWorker.held_weights`."""
    return {spec.name: spec.shape for spec in weights.index}, HEAD in weights.fingerprint, weights.version


def _require_match(weights: Weights, found: Sequence[Mapping[str, str]]) -> None:
    for rank, digests in enumerate(found):
        tensor = first_mismatch(weights.fingerprint, digests)
        if tensor is not None:
            raise WeightMismatch(f"after loading version {weights.version} the engine (rank {rank}) does not hold tensor {tensor}")


def _quieten() -> None:
    """vLLM's reload warns about tied heads and rotary tables on every load; both are expected here."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("vllm").setLevel(logging.ERROR)
