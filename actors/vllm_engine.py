"""vLLM behind the two engine interfaces: `VllmEngine` (in this process, CPU) and `AsyncVllmEngine` (own process, GPU).

vllm is imported inside functions only. These facts about vLLM shape the code:

- On CPU a tied head is packed apart from the embedding, and a reload leaves the old copy serving: `actors.vllm_worker`.
- Log-probs must be those after temperature: `logprobs_mode="processed_logprobs"`.
- A request admitted under new weights must not use a prefix that was cached under old ones, so the version salts the
  cache. `AsyncVllmEngine` therefore holds new requests back while weights are replaced: they would carry the old
  version's salt and be computed with the new weights.
- Per-request seeds together with chunked prefill kill the CPU engine, so none are passed. `reset` seeds the worker's
  own generator instead.
- The hidden states that an engine samples from are seen by wrapping `compute_logits`: `actors.vllm_worker`."""

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
from actors.device_transfer import DeviceReceiver
from actors.engine import EngineError, EngineSetup, NewTokens, PartialSample, Progress, Sample, SampleRequest, mismatch_of
from actors.orphans import remove_orphans
from actors.step_loop import TokenCounter
from actors.vllm_arguments import require_known
from actors.vllm_worker import OWNER
from actors.weight_transfer import DeviceWeights, Weights
from buffers.records import FinishReason
from learners.precision import resolve_dtype
from learners.threads import resolve_threads
from learners.weight_check import WeightsRefused
from learners.weights import HEAD, Part, WeightSnapshot, first_mismatch_of_ranks

QUIET_LOGGERS = ("vllm", "vllm.model_executor.model_loader.reload.layerwise", "vllm.v1.engine.input_processor")
SHARED_MEMORY = Path("/dev/shm")
WEIGHTS_PREFIX = "repexp-weights-"  # of directories in shared memory; the id of the process whose engine is being loaded follows
POOLING_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""`actors.vllm_worker` reads which rows of the logits are sampled from model runner V1, the only one on CPU."""


def engine_environment(config: RolloutConfig, *, in_process: bool) -> dict[str, str]:
    """Return the environment that a worker's process needs before it imports torch or vllm."""
    return {
        "OMP_NUM_THREADS": str(resolve_threads(config.threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process else "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_RPC_BASE_PATH": "/tmp",  # of sockets, whose whole names may have 107 characters: TMPDIR may be longer
        "TOKENIZERS_PARALLELISM": "false",
        # handles of GPU memory are not plain data; they pass between this process and its own children
        **({"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if config.weight_transfer == "ipc" else {}),
    }


def engine_arguments(setup: EngineSetup) -> dict[str, Any]:
    """Return vLLM's arguments: what the configuration says, and `rollout.engine_args` over it."""
    config, sampling = setup.config, setup.sampling
    require_known(config.engine_args)  # where the driver has no vLLM, this is the first that can tell
    on_gpu = config.num_gpus > 0
    on_cpu = {
        "enforce_eager": True,
        "block_size": config.block_size,
        "kv_cache_memory_bytes": (config.kv_cache_gib << 30) // config.tensor_parallel,
    }
    return {
        "model": setup.model,
        "dtype": resolve_dtype(config.dtype, on_gpu=on_gpu),
        "seed": setup.seed,
        "max_model_len": config.max_model_len or sampling.max_tokens,
        "max_num_seqs": config.max_sequences,
        "max_num_batched_tokens": max(config.max_batched_tokens, config.max_sequences),
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "async_scheduling": False,
        "disable_log_stats": True,
        "worker_extension_cls": "actors.vllm_worker.EngineWorker",
        **({"gpu_memory_utilization": config.gpu_memory_fraction} if on_gpu else on_cpu),
        **({} if config.weight_transfer == "object_store" else {"weight_transfer_config": {"backend": config.weight_transfer}}),
        # processes of this one, not actors of Ray's: they end with it
        **({"tensor_parallel_size": config.tensor_parallel, "distributed_executor_backend": "mp"} if config.tensor_parallel > 1 else {}),
        **config.engine_args,
    }


def _prompt(request: SampleRequest, version: int) -> Any:
    """Return vLLM's prompt. To vLLM, tokens that were sampled before are a part of it."""
    from vllm.inputs import TokensPrompt

    return TokensPrompt(prompt_token_ids=request.context_ids, cache_salt=str(version))


def _sampling_params(sampling: SamplingConfig, request: SampleRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=request.num_left(sampling),
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _new_tokens(output: Any, reason: FinishReason | None = None) -> NewTokens:
    completion = output.outputs[0]
    logprobs = [candidates[token_id].logprob for token_id, candidates in zip(completion.token_ids, completion.logprobs, strict=True)]
    return NewTokens(key=output.request_id, token_ids=completion.token_ids, logprobs=logprobs, finish_reason=reason)


class VllmEngine:
    """vLLM's LLMEngine in this process (a StepEngine)."""

    def environment(self, config: RolloutConfig) -> dict[str, str]:
        return engine_environment(config, in_process=True)

    def start(self, setup: EngineSetup) -> None:
        os.environ.update(self.environment(setup.config) | (POOLING_ENVIRONMENT if setup.pool_states else {}))
        from vllm import EngineArgs, LLMEngine

        _quieten()
        torch.set_num_threads(resolve_threads(setup.config.threads))
        self._engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(setup)))
        self._sampling = setup.sampling
        self._pools_states = setup.pool_states
        if setup.pool_states:
            self._engine.collective_rpc("pool_states")
        self._version = 0
        self._is_divided = setup.config.tensor_parallel > 1
        remove_orphans(SHARED_MEMORY, WEIGHTS_PREFIX)  # left by a process that was killed during a load

    def add(self, request: SampleRequest) -> None:
        self._engine.add_request(request.key, _prompt(request, self._version), _sampling_params(self._sampling, request))

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        if not keep_cache:
            self._engine.reset_prefix_cache()
        self._engine.collective_rpc("seed_sampler", args=(seed,))

    def step(self) -> list[NewTokens]:
        outputs = self._engine.step()
        return [_new_tokens(output, FinishReason(output.outputs[0].finish_reason) if output.finished else None) for output in outputs]

    def abort(self, keys: Sequence[str]) -> None:
        self._engine.abort_request(list(keys))

    def take_states(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return _states(self._engine.collective_rpc("take_states", args=(list(keys),))) if self._pools_states else {}

    def load(self, snapshot: WeightSnapshot) -> None:
        if self._is_divided:
            with _shared_file() as path:
                _save(snapshot, path)
                self._engine.collective_rpc("load_weights_from", args=(str(path),))
        else:
            self._engine.collective_rpc("load_weights_from", args=(snapshot,))
        _require_match(snapshot, self._engine.collective_rpc("held_weights", args=_to_be_held(snapshot)))
        self._version = snapshot.version


class AsyncVllmEngine:
    """vLLM's AsyncLLM, whose engine core and workers are processes of their own (an AsyncEngine, meant for GPUs)."""

    def environment(self, config: RolloutConfig) -> dict[str, str]:
        return engine_environment(config, in_process=False)

    async def start(self, setup: EngineSetup) -> None:
        os.environ.update(self.environment(setup.config) | (POOLING_ENVIRONMENT if setup.pool_states else {}) | {OWNER: str(os.getpid())})
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        _quieten()
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(setup)))
        self._sampling = setup.sampling
        self._pools_states = setup.pool_states
        if setup.pool_states:
            await self._engine.collective_rpc("pool_states")
        self._partials: dict[str, PartialSample] = {}
        self._sampled = TokenCounter()
        self._receiver = DeviceReceiver(lambda method, arguments: self._engine.collective_rpc(method, kwargs=arguments))
        self._version = 0
        self._is_replacing = False
        self._load_error: BaseException | None = None  # once set, the engine samples no more
        self._held: dict[str, asyncio.Future[bool]] = {}  # requests that wait until weights are replaced
        self._hold_timeout_s = setup.config.group_timeout_s
        self._idle_s = 0.0
        self._idle_since: float | None = time.monotonic()
        remove_orphans(SHARED_MEMORY, WEIGHTS_PREFIX)  # left by a process that was killed during a load

    async def sample(self, key: str, prompt_ids: Sequence[int], sampled: Sample | None = None) -> Sample:
        return await self._sample(SampleRequest(key=key, prompt_ids=prompt_ids, sampled=sampled))

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        """See `AsyncEngine`. The requests reach the engine core one by one, so the samples depend on timing."""
        if self._partials:
            raise RuntimeError(f"{len(requests)} responses were to be sampled alone, but the engine has others under way")
        if not keep_cache:
            await self._engine.reset_prefix_cache()
        await self._engine.collective_rpc("seed_sampler", args=(seed,))
        return list(await asyncio.gather(*(self._sample(request) for request in requests)))

    async def _sample(self, request: SampleRequest) -> Sample:
        key = request.key
        if key in self._partials:
            raise RuntimeError(f"request {key} runs already")
        partial = self._partials[key] = PartialSample.after(request.sampled)
        self._note_busy()
        reason, states = FinishReason.ABORTED, dict[str, np.ndarray]()
        try:
            if not await self._may_begin(key):
                return partial.finish(reason)
            prompt, params = _prompt(request, self._version), _sampling_params(self._sampling, request)
            with self._noting_failures():
                async for output in self._engine.generate(prompt, params, request_id=key):
                    new = _new_tokens(output)
                    partial.extend(new, self._version)
                    self._sampled.advance(self._sampled.total + len(new.token_ids))
                    if output.finished and output.outputs[0].finish_reason in ("stop", "length"):
                        reason = FinishReason(output.outputs[0].finish_reason)
                if self._pools_states:
                    states = _states(await self._engine.collective_rpc("take_states", args=([key],)))
        finally:
            del self._partials[key]
            self._note_idle()
        return partial.finish(reason, states.get(key))

    async def _may_begin(self, key: str) -> bool:
        """Wait while weights are being replaced. Return False if the request was aborted meanwhile. Raises EngineError
        if the load failed, or takes too long."""
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
        await self._engine.abort([key for key in keys if key in self._partials and key not in held])

    async def partials(self, keys: Sequence[str]) -> Progress:
        """See `AsyncEngine`. The tokens are those that have arrived from the engine core."""
        self._require_alive()
        samples = {key: self._partials[key].finish(FinishReason.ABORTED) for key in keys if key in self._partials}
        return Progress(samples=samples, sampled_tokens=self._sampled.total)

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
        """Turn vLLM's own errors into an EngineError, which callers that wait for tokens get too."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            failure = EngineError(f"the engine failed: {error!r}")
            self._sampled.fail(failure)
            raise failure from error

    async def load(self, weights: Weights) -> float:
        """See `AsyncEngine`. The weights come from a file in shared memory or from the learner's GPU; whether they are
        available is known before the engine pauses."""
        if isinstance(weights, DeviceWeights):
            await self._receiver.ask(weights)
            return await self._replace(weights, self._receiver.take)
        with _shared_file() as path:
            await asyncio.to_thread(_save, weights, path)
            return await self._replace(weights, lambda: self._engine.collective_rpc("load_weights_from", args=(str(path),)))

    async def _replace(self, weights: Weights, take: Callable[[], Awaitable[Any]]) -> float:
        """Pause with all requests kept, take the weights, prove them, and resume. After a failure it stays paused."""
        started = time.monotonic()
        self._is_replacing = True
        try:
            with self._noting_failures():
                await self._engine.pause_generation(mode="keep", clear_cache=False)
                try:
                    await take()
                    found = await self._engine.collective_rpc("held_weights", args=_to_be_held(weights))
                except Exception as error:  # the weights are half loaded, so samples would belong to no version
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
        self._note_busy()
        idle_s, self._idle_s = self._idle_s, 0.0
        self._note_idle()
        return idle_s

    def close(self) -> None:
        self._receiver.close()
        self._engine.shutdown()

    def _note_busy(self) -> None:
        if self._idle_since is not None:
            self._idle_s += time.monotonic() - self._idle_since
            self._idle_since = None

    def _note_idle(self) -> None:
        if not self._partials:
            self._idle_since = time.monotonic()


def _states(answers: Sequence[Mapping[str, bytes]]) -> dict[str, np.ndarray]:
    return {key: np.frombuffer(taken, dtype=np.float32) for key, taken in answers[0].items()}  # the first rank's


@contextmanager
def _shared_file() -> Iterator[Path]:
    """Yield the path of a file through which the processes of an engine take weights, and remove it afterwards."""
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=f"{WEIGHTS_PREFIX}{os.getpid()}-", dir=place) as directory:
        yield Path(directory) / "weights"


def _save(weights: WeightSnapshot, path: Path) -> None:
    """Write `weights`. Raises WeightsRefused where there is no room."""
    try:
        weights.save(path)
    except OSError as error:
        raise WeightsRefused(f"version {weights.version} could not be written to {path.parent}: {error.strerror}") from error


def _to_be_held(weights: Weights) -> tuple[dict[str, tuple[int, ...]], bool, int]:
    """Return the arguments of `EngineWorker.held_weights`."""
    return {spec.name: spec.shape for spec in weights.index}, HEAD in weights.fingerprint, weights.version


def _require_match(weights: Weights, answers: Sequence[Mapping[str, Sequence[Sequence[int]]]]) -> None:
    """Raise WeightMismatch unless the ranks, whose answers these are, hold `weights` together."""
    ranks = [{name: [Part(*part) for part in parts] for name, parts in held.items()} for held in answers]
    if (mismatch := first_mismatch_of_ranks(weights.fingerprint, ranks)) is not None:
        tensor, rank = mismatch
        who = f"rank {rank}" if rank is not None else f"its {len(ranks)} ranks together"
        raise mismatch_of(weights, tensor, who=f"the engine ({who})")


def _quieten() -> None:
    """Silence warnings about tied heads and rotary tables, which vLLM prints on every reload; both are expected."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
