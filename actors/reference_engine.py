"""A plain transformers engine: exact, deterministic, slow. For tests, and for machines without vLLM.

The seed part of a response's key and a token's position in it are all its randomness, and every sequence is computed by
itself. So what it samples under given weights does not depend on what else is running, nor on which engine has sampled
the tokens before: a whole asynchronous run is reproducible bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import PartialSample, Sample, WeightMismatch
from actors.pooled_states import PooledStates
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from learners.weights import HEAD, WeightSnapshot, fingerprint, first_mismatch


@dataclass(slots=True)
class _Running:
    prompt_ids: list[int]
    max_tokens: int
    partial: PartialSample


class ReferenceEngine:
    """A StepEngine: one step samples one token for every running request, by a full forward pass each."""

    def __init__(self, model: str, config: RolloutConfig, sampling: SamplingConfig, *, seed: int, pool_states: bool = False) -> None:
        torch.set_num_threads(config.threads)
        self._model = load_causal_lm(model, dtype=config.dtype)
        eos = self._model.generation_config.eos_token_id
        self._end_ids = set(eos) if isinstance(eos, list) else {eos}
        self._sampling = sampling
        self._seed = seed
        self._running: dict[str, _Running] = {}
        self._pooled = PooledStates() if pool_states else None
        self.version = 0
        self.sampled_tokens = 0

    def add(self, key: str, prompt_ids: Sequence[int], max_tokens: int | None = None, sampled: Sample | None = None) -> None:
        limit = self._sampling.max_response_tokens if max_tokens is None else max_tokens
        self._running[key] = _Running(prompt_ids=list(prompt_ids), max_tokens=limit, partial=PartialSample.after(sampled))

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        """What is sampled depends on the engine's seed and the keys; `seed` takes the place of the former."""
        self._seed = seed

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Sample]]:
        finished = []
        for key, running in list(self._running.items()):
            token_id = self._sample_token(key, running)
            if token_id in self._end_ids:
                finished.append((key, self._finish(key, FinishReason.STOP)))
            elif len(running.partial.token_ids) >= running.max_tokens:
                finished.append((key, self._finish(key, FinishReason.LENGTH)))
        return finished

    def _finish(self, key: str, reason: FinishReason) -> Sample:
        state_mean = None if self._pooled is None else self._pooled.take(key)
        return self._running.pop(key).partial.finish(reason, state_mean)

    def _sample_token(self, key: str, running: _Running) -> int:
        input_ids = torch.tensor([running.prompt_ids + running.partial.token_ids])
        state_H = self._model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state[0, -1]
        if self._pooled is not None:
            self._pooled.add([key], state_H[None])
        logits_V = self._model.get_output_embeddings()(state_H).float() / self._sampling.temperature
        logprobs_V = logits_V.log_softmax(-1)
        token_id = int(torch.multinomial(logprobs_V.exp(), 1, generator=self._generator(key, len(running.partial.token_ids))))
        running.partial.append(token_id, float(logprobs_V[token_id]), self.version)
        self.sampled_tokens += 1
        return token_id

    def _generator(self, key: str, position: int) -> torch.Generator:
        """All the randomness of one token."""
        seed = zlib.crc32(f"{self._seed}/{key.partition(':')[2] or key}/{position}".encode())
        return torch.Generator().manual_seed(seed)

    def abort(self, keys: Sequence[str]) -> list[tuple[str, Sample]]:
        return [(key, self._finish(key, FinishReason.ABORTED)) for key in keys]

    def partials(self, keys: Sequence[str]) -> dict[str, Sample]:
        return {key: self._running[key].partial.finish(FinishReason.ABORTED) for key in keys if key in self._running}

    @torch.no_grad()
    def load(self, snapshot: WeightSnapshot) -> None:
        own = dict(self._model.named_parameters())
        for name, tensor in snapshot.tensors():
            own[name].copy_(tensor)
        held = {name: own[name] for name, _ in snapshot.tensors()}
        if HEAD in snapshot.fingerprint:
            held[HEAD] = self._model.get_output_embeddings().weight
        tensor_name = first_mismatch(snapshot.fingerprint, fingerprint(held, version=snapshot.version))
        if tensor_name is not None:
            raise WeightMismatch(f"after loading version {snapshot.version} the engine does not hold tensor {tensor_name}")
        self.version = snapshot.version

    @property
    def has_unfinished(self) -> bool:
        return bool(self._running)
