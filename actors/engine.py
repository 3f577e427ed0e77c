"""What an inference engine is: the two interfaces it may have, and the records that pass through them.

    RolloutWorker ── AsyncEngine ─┬─ AsyncVllmEngine           awaited: an engine with processes of its own
                                  └─ StepLoop ── StepEngine    stepped by one thread: VllmEngine, ReferenceEngine, yours

To plug in an engine of your own, write a class with the six methods of `StepEngine` and name it in `rollout.engine`
(`actors.engines`). Its constructor takes `rollout.engine_options` and must be cheap, because the driver calls it to
check them; the model is loaded in `start`. `StepLoop` does the rest: it collects tokens into responses, notes which
policy version sampled each token, reports progress, and loads weights between two steps. Three attributes are optional:

    facts: EngineFacts                       what the engine promises (`actors.engines`); without it, nothing
    environment(config) -> dict[str, str]    variables that its process needs before it imports torch
    take_states(keys)                        mean hidden states (`StatePooling`)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from actors.config import RolloutConfig, SamplingConfig
from actors.weight_transfer import Weights
from buffers.records import FinishReason
from learners.weights import WeightSnapshot, fingerprint, first_mismatch


class EngineError(RuntimeError):
    """The engine failed, and every request in it failed with it."""


class WeightMismatch(EngineError):
    """After a load the engine does not hold the published weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSetup:
    """What an engine is started with."""

    model: str  # Directory of a model in Hugging Face's layout. Its weights are policy version 0.
    config: RolloutConfig
    sampling: SamplingConfig
    seed: int
    pool_states: bool = False  # whether every sample must carry the mean of its hidden states


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sampled response: T token ids, T log-probs under the sampling distribution, policy versions as runs."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version_starts: tuple[int, ...]
    version_values: tuple[int, ...]
    finish_reason: FinishReason
    state_mean: np.ndarray | None = field(default=None, compare=False)
    """(H,) float32, if the engine pools hidden states (`actors.pooled_states`) and has sampled all of the tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One response to sample after `prompt_ids`. Where another engine has sampled its first tokens already (`sampled`),
    the response continues after them and keeps their log-probs and versions."""

    key: str
    prompt_ids: Sequence[int]
    max_tokens: int | None = None  # Limit on the response's tokens, those in `sampled` included. None: `sampling.max_response_tokens`.
    sampled: Sample | None = None

    @property
    def context_ids(self) -> list[int]:
        """The tokens that the next one follows: the prompt, and what is sampled already."""
        return [*self.prompt_ids, *(self.sampled.token_ids if self.sampled else ())]

    def num_left(self, sampling: SamplingConfig) -> int:
        limit = sampling.max_response_tokens if self.max_tokens is None else self.max_tokens
        return limit - (len(self.sampled.token_ids) if self.sampled else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokens:
    """What one step added to one response: usually one token."""

    key: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]  # under the distribution that was sampled from, temperature included
    finish_reason: FinishReason | None = None
    """STOP after an end-of-turn token, LENGTH at the limit; None while the response is unfinished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """An engine between two steps: the running requests' tokens so far, and all tokens sampled since its start."""

    samples: Mapping[str, Sample]
    sampled_tokens: int


@dataclass(slots=True)
class PartialSample:
    """A response that grows while an engine samples it. Another engine sampled its first `num_resumed` tokens."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    version_starts: list[int] = field(default_factory=list)
    version_values: list[int] = field(default_factory=list)
    num_resumed: int = 0

    @classmethod
    def after(cls, sampled: Sample | None) -> PartialSample:
        """Return a response that continues after `sampled`, or an empty one."""
        if sampled is None:
            return cls()
        token_ids, logprobs = list(sampled.token_ids), list(sampled.logprobs)
        return cls(token_ids, logprobs, list(sampled.version_starts), list(sampled.version_values), num_resumed=len(token_ids))

    def extend(self, new: NewTokens, version: int) -> None:
        for token_id, logprob in zip(new.token_ids, new.logprobs, strict=True):
            self.append(token_id, logprob, version)

    def append(self, token_id: int, logprob: float, version: int) -> None:
        if not self.version_values or self.version_values[-1] != version:
            self.version_starts.append(len(self.token_ids))
            self.version_values.append(version)
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)

    def finish(self, reason: FinishReason, state_mean: np.ndarray | None = None) -> Sample:
        """Return the tokens so far. `state_mean` covers the tokens sampled here. It is dropped if there are others."""
        return Sample(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            version_starts=tuple(self.version_starts),
            version_values=tuple(self.version_values),
            finish_reason=reason,
            state_mean=None if self.num_resumed else state_mean,
        )


@runtime_checkable
class StepEngine(Protocol):
    """An engine that samples in steps. One thread calls all methods but the constructor. An exception in `step` or
    `load` ends the engine: its requests fail, and the worker is replaced. One in `add` fails that request only."""

    def start(self, setup: EngineSetup) -> None:
        """Load the model. Called once, before all other methods."""

    def add(self, request: SampleRequest) -> None:
        """Take in a request. Its key is not in use."""

    def step(self) -> Sequence[NewTokens]:
        """Sample about one token for each unfinished request. Called only while there is one. A request is forgotten
        once its `finish_reason` is returned."""

    def abort(self, keys: Sequence[str]) -> None:
        """Forget these unfinished requests."""

    def load(self, snapshot: WeightSnapshot) -> None:
        """Take new weights, keep all requests, and prove the weights (`require_held`). Raises WeightMismatch, or
        WeightsRefused if nothing has changed."""

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        """Seed the sampler and forget cached prefixes. Called only without requests. If the engine repeats
        (`actors.engines.Repeats`), what it samples next depends on the seed, the weights and the requests only; with
        `keep_cache` also on what it has sampled since the last reset without it."""


class StatePooling(Protocol):
    """A StepEngine with `facts.pools_states` has this method too."""

    def take_states(self, keys: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the mean hidden states (H,), float32, of requests that have ended, and forget them. A request without
        a token has none. Without `setup.pool_states` the result is empty."""


class AsyncEngine(Protocol):
    """What the rollout worker awaits: a `StepLoop`, or an engine that has processes of its own."""

    async def sample(self, key: str, prompt_ids: Sequence[int], sampled: Sample | None = None) -> Sample:
        """Sample one response (see `SampleRequest`). Raises RuntimeError for a key that is in use."""

    async def sample_batch(self, requests: Sequence[SampleRequest], *, seed: int, keep_cache: bool = False) -> list[Sample]:
        """Sample `requests` alone, begun together after a `StepEngine.reset`. Raises RuntimeError if others run."""

    async def abort(self, keys: Sequence[str]) -> None:
        """End requests early. Their `sample` calls return the tokens so far."""

    async def partials(self, keys: Sequence[str]) -> Progress:
        """Return the tokens so far of those requests that run, with finish_reason ABORTED, and leave them running.
        Every request that has ended by then returns to its caller first."""

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since the start, as of the last step. Never waits."""

    async def wait_for_tokens(self, total: float) -> None:
        """Return once `total` tokens were sampled (math.inf: never). Raises EngineError if the engine has failed."""

    async def load(self, weights: Weights) -> float:
        """Take new weights between two steps, keep all requests, and prove the weights. Returns the seconds during
        which nothing was sampled. Raises WeightsRefused if nothing has changed. A load that fails half-way is an
        EngineError (WeightMismatch if the proof fails), and the engine then samples no more."""

    def take_idle_s(self) -> float:
        """Return the seconds without any request since the last call."""

    def close(self) -> None: ...


class StartableAsyncEngine(AsyncEngine, Protocol):
    """An AsyncEngine that `rollout.engine` may name: write one only for an engine with processes of its own."""

    async def start(self, setup: EngineSetup) -> None:
        """Load the model. Called once, before all other methods, in the event loop that will call them."""


def require_held(snapshot: WeightSnapshot, held: Mapping[str, Tensor]) -> None:
    """Raise WeightMismatch unless `held` are the published tensors, bit for bit. `held` are those that the engine
    computes with, by their names in the snapshot. If its fingerprint names the output head (`learners.weights.HEAD`),
    so must `held`, even if the head is tied to the embedding: an engine may hold it twice."""
    tensor = first_mismatch(snapshot.fingerprint, fingerprint(held, version=snapshot.version))
    if tensor is not None:
        raise mismatch_of(snapshot, tensor)


def mismatch_of(weights: Weights, tensor: str, *, who: str = "the engine") -> WeightMismatch:
    """Return the error for an engine, or a part of it, that does not hold this tensor of `weights`."""
    return WeightMismatch(f"after loading version {weights.version} {who} does not hold tensor {tensor}")
