"""Experimental: sample candidates that avoid, while they are written, what the other candidates have said already.

arXiv:2510.11686 shows token-level exploration as a proof of concept: candidates of the next token are re-ranked by the
novelty of their hidden states. The form chosen here works on chunks of c tokens. All responses to a prompt grow
together, round by round:

1. every unfinished response gets M continuations of c tokens, which are plain samples of the model;
2. response by response, the continuation with the largest  x'(lam·I + S)⁻¹x · exp(2a(l − l_max))  is kept, where x is
   its projected mean hidden state, l its mean log-prob, and S the sum of xx' over all chunks kept so far;
3. the kept x is added to S before the next response chooses, so that responses of one round move apart too.

The state at a continuation's last token is seen only when a further token is sampled from it, so c + 1 tokens are
sampled and c are kept. This costs M·(c + 1)/c times the tokens of plain samples, and in each round one prefill of
every prefix except its whole cache blocks. The kept tokens' log-probs are the model's, but the responses are no longer
samples of it: use them to search, not to train. Axes: M candidates, D projected."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from actors.config import NovelSamplingConfig
from actors.engine import AsyncEngine, PartialSample, Sample, SampleRequest
from bonus.projection import sparse_projection
from buffers.records import FinishReason


@dataclass(slots=True)
class _Growing:
    key: str
    partial: PartialSample = field(default_factory=PartialSample)
    state_sum: np.ndarray | None = None
    num_states: int = 0
    ended: FinishReason | None = None

    def extend(self, sample: Sample, num_kept: int) -> None:
        version = sample.version_values[0]
        for token_id, logprob in zip(sample.token_ids[:num_kept], sample.logprobs[:num_kept], strict=True):
            self.partial.append(token_id, logprob, version)
        num_seen = min(num_kept, len(sample.token_ids) - 1)
        if sample.state_mean is not None and (num_seen or not self.num_states):  # a single token shows its predecessor's state again
            num_states = max(1, num_seen)
            added = sample.state_mean * np.float32(num_states)
            self.state_sum = added if self.state_sum is None else self.state_sum + added
            self.num_states += num_states

    def finish(self) -> Sample:
        mean = None if self.state_sum is None else self.state_sum / np.float32(self.num_states)
        return self.partial.finish(self.ended or FinishReason.LENGTH, mean)


class NovelSampler:
    """samples = await NovelSampler(engine, config, max_tokens=256).sample(keys, prompt_ids, seed=0)"""

    def __init__(self, engine: AsyncEngine, config: NovelSamplingConfig, *, max_tokens: int) -> None:
        """The engine must pool hidden states."""
        self._engine, self._config, self._max_tokens = engine, config, max_tokens

    async def sample(self, keys: Sequence[str], prompt_ids: Sequence[int], *, seed: int) -> list[Sample]:
        """Return one response for each key. They depend on the seed, the weights and the arguments only."""
        lanes = [_Growing(key=key) for key in keys]
        kept = KeptStates(self._config, seed=seed)
        number = 0
        while unfinished := [lane for lane in lanes if lane.ended is None]:
            requests = [self._request(lane, prompt_ids, number, m) for lane in unfinished for m in range(self._config.candidates)]
            round_seed = zlib.crc32(f"{seed}/{number}".encode())
            samples = iter(await self._engine.sample_batch(requests, seed=round_seed, keep_cache=number > 0))
            for lane in unfinished:
                self._choose(lane, [next(samples) for _ in range(self._config.candidates)], kept)
            number += 1
        return [lane.finish() for lane in lanes]

    def _request(self, lane: _Growing, prompt_ids: Sequence[int], number: int, candidate: int) -> SampleRequest:
        prefix = [*prompt_ids, *lane.partial.token_ids]
        return SampleRequest(key=f"{lane.key}/{number}/{candidate}", prompt_ids=prefix, max_tokens=self._num_wanted(lane) + 1)

    def _num_wanted(self, lane: _Growing) -> int:
        return min(self._config.chunk_tokens, self._max_tokens - len(lane.partial.token_ids))

    def _choose(self, lane: _Growing, samples: Sequence[Sample], kept: KeptStates) -> None:
        num_wanted = self._num_wanted(lane)
        logprob_M = np.array([np.mean(sample.logprobs[:num_wanted]) for sample in samples])
        sample = samples[kept.choose(samples, logprob_M)]
        num_kept = min(num_wanted, len(sample.token_ids))
        lane.extend(sample, num_kept)
        if sample.finish_reason is FinishReason.STOP and len(sample.token_ids) == num_kept:
            lane.ended = FinishReason.STOP
        elif len(lane.partial.token_ids) >= self._max_tokens:
            lane.ended = FinishReason.LENGTH


class KeptStates:
    """S = Σ xx' over the chunks kept so far, and the choice against it, in float64."""

    def __init__(self, config: NovelSamplingConfig, *, seed: int) -> None:
        self._config, self._seed = config, seed
        self._projection_HD: Tensor | None = None
        self._ridge: float | None = None
        self._moment_DD = torch.zeros(0, 0, dtype=torch.float64)

    def choose(self, samples: Sequence[Sample], logprob_M: np.ndarray) -> int:
        """Return the candidate with the largest weighted novelty, the first of equals, and add its state to S."""
        states = [sample.state_mean for sample in samples if sample.state_mean is not None]
        if len(states) < len(samples):
            raise ValueError("novel sampling needs an engine that pools hidden states")
        features_MD = self._project(torch.from_numpy(np.stack(states)).double())
        if self._ridge is None:
            self._ridge = max(self._config.ridge * float(features_MD.square().sum(dim=1).mean()), 1e-12)
        factor_DD = torch.linalg.cholesky(self._moment_DD + self._ridge * torch.eye(features_MD.shape[1], dtype=torch.float64))
        novelty_M = torch.linalg.solve_triangular(factor_DD, features_MD.mT, upper=False).square().sum(dim=0).numpy()
        weight_M = np.exp(2.0 * self._config.quality_exponent * (logprob_M - logprob_M.max()))
        chosen = int(np.argmax(novelty_M * weight_M))
        self._moment_DD += torch.outer(features_MD[chosen], features_MD[chosen])
        return chosen

    def _project(self, states_MH: Tensor) -> Tensor:
        hidden_size = states_MH.shape[1]
        if self._projection_HD is None:
            dim = min(self._config.dim, hidden_size)
            identity = torch.eye(hidden_size, dtype=torch.float64)
            self._projection_HD = identity if dim == hidden_size else sparse_projection(hidden_size, dim, seed=self._seed)
            self._moment_DD = torch.zeros(dim, dim, dtype=torch.float64)
        return states_MH @ self._projection_HD
