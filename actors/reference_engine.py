"""A plain transformers engine: exact, deterministic and slow. It serves tests, and machines without vLLM.

A token is drawn with a generator whose seed comes from the engine's seed, the seed part of the response's key and the
token's position, and every sequence is computed by itself. So what the engine samples under given weights depends
neither on what else is running nor on which engine has sampled the tokens before: a whole asynchronous run can be
reproduced bit for bit."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.engine import EngineSetup, NewTokens, SampleRequest, require_held
from actors.pooled_states import PooledStates
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from learners.supported import require_plain_logits
from learners.threads import resolve_threads
from learners.weights import HEAD, WeightSnapshot


@dataclass(slots=True)
class _Running:
    token_ids: list[int]  # the prompt, and the response so far
    num_prompt: int
    num_left: int


class ReferenceEngine:
    """A StepEngine. One step samples one token for every request, with a full forward pass for each."""

    def start(self, setup: EngineSetup) -> None:
        torch.set_num_threads(resolve_threads(setup.config.threads))
        self._model = load_causal_lm(setup.model, dtype=setup.config.dtype)
        require_plain_logits(self._model)
        self._end_ids = end_ids_of(self._model)
        self._sampling = setup.sampling
        self._seed = setup.seed
        self._running: dict[str, _Running] = {}
        self._pooled = PooledStates() if setup.pool_states else None

    def add(self, request: SampleRequest) -> None:
        self._running[request.key] = _Running(request.context_ids, len(request.prompt_ids), request.num_left(self._sampling))

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        """Replace the engine's seed. There is no cache."""
        self._seed = seed

    @torch.inference_mode()
    def step(self) -> list[NewTokens]:
        return [self._sample_token(key, running) for key, running in list(self._running.items())]

    def _sample_token(self, key: str, running: _Running) -> NewTokens:
        state_H = self._model.get_decoder()(input_ids=torch.tensor([running.token_ids]), use_cache=False).last_hidden_state[0, -1]
        if self._pooled is not None:
            self._pooled.add([key], state_H[None])
        logits_V = self._model.get_output_embeddings()(state_H).float() / self._sampling.temperature
        logprobs_V = logits_V.log_softmax(-1)
        position = len(running.token_ids) - running.num_prompt
        token_id = int(torch.multinomial(logprobs_V.exp(), 1, generator=self._generator(key, position)))
        running.token_ids.append(token_id)
        running.num_left -= 1
        reason = FinishReason.STOP if token_id in self._end_ids else FinishReason.LENGTH if running.num_left <= 0 else None
        if reason is not None:
            del self._running[key]
        return NewTokens(key=key, token_ids=[token_id], logprobs=[float(logprobs_V[token_id])], finish_reason=reason)

    def _generator(self, key: str, position: int) -> torch.Generator:
        seed = zlib.crc32(f"{self._seed}/{key.partition(':')[2] or key}/{position}".encode())
        return torch.Generator().manual_seed(seed)

    def abort(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._running[key]

    def take_states(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {} if self._pooled is None else self._pooled.take_all(keys)

    def load(self, snapshot: WeightSnapshot) -> None:
        load_into(self._model, snapshot)


@torch.no_grad()
def load_into(model: Any, snapshot: WeightSnapshot) -> None:
    """Copy the weights into a transformers model. Raises WeightMismatch unless it then holds what was published."""
    own = dict(model.named_parameters())
    for name, tensor in snapshot.tensors():
        own[name].copy_(tensor)
    held = {name: own[name] for name, _ in snapshot.tensors()}
    if HEAD in snapshot.fingerprint:
        held[HEAD] = model.get_output_embeddings().weight
    require_held(snapshot, held)


def end_ids_of(model: Any) -> set[int]:
    """Return the ids of the tokens that end a response."""
    eos = model.generation_config.eos_token_id
    return set(eos) if isinstance(eos, list) else {eos}
