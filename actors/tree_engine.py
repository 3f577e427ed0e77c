"""An engine for many short responses to one prompt: a prefix that responses share is computed once.

Responses to one prompt begin alike, and those of a trained policy hardly differ at all. After each token this engine
computes a row for each *distinct* prefix, and every response draws its next token from the row of its own prefix. The
responses are independent samples of the model, as with any engine; only equal work is done once. The cost grows with
the number of distinct prefixes in place of the number of responses.

    prompt ── 4 ─┬─ 5 ── end      128 responses, and 5 rows after the first token
                 └─ 6 ─┬─ end
                       └─ 1 ── …

A row has its part of a key-value cache (transformers), so the engine is for answers of tens of tokens. Rows of one tree
have one length and need no padding. Axes: R rows of a tree, L tokens of a row, V vocabulary, H hidden size."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.engine import EngineSetup, NewTokens, SampleRequest
from actors.pooled_states import PooledStates
from actors.reference_engine import end_ids_of, load_into
from buffers.records import FinishReason
from learners.forward import load_causal_lm
from learners.supported import require_plain_logits
from learners.threads import resolve_threads
from learners.weights import WeightSnapshot

ATTENTION = "sdpa"  # one of transformers' own, which read and write its cache


@dataclass(slots=True)
class _Running:
    key: str
    num_left: int
    num_reserved: int  # tokens that its row may have in the cache
    draws: random.Random


@dataclass(slots=True)
class _Tree:
    """Responses whose prefixes have one length. `cache` holds all but the last token of each row; None: nothing yet."""

    rows: list[list[int]]
    responses: list[list[_Running]]
    cache: Any = None

    def num_reserved(self) -> int:
        return sum(running.num_reserved for responses in self.responses for running in responses)


@dataclass(slots=True)
class _Grown:
    """The rows of a tree after a token: from which row each comes, its tokens, and the responses that go on in it."""

    parents: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    responses: list[list[_Running]] = field(default_factory=list)


class TreeEngine:
    """A StepEngine. One step samples one token for every request."""

    def start(self, setup: EngineSetup) -> None:
        torch.set_num_threads(resolve_threads(setup.config.threads))
        self._model = load_causal_lm(setup.model, dtype=setup.config.dtype)
        self._model.set_attn_implementation(ATTENTION)
        require_plain_logits(self._model)
        self._end_ids = end_ids_of(self._model)
        self._sampling = setup.sampling
        self._seed = setup.seed
        self._trees: list[_Tree] = []
        self._waiting: deque[SampleRequest] = deque()
        self._max_cached = (setup.config.kv_cache_gib << 30) // self._bytes_per_token()  # tokens
        self._pooled = PooledStates() if setup.pool_states else None

    def _bytes_per_token(self) -> int:
        config = self._model.config.get_text_config()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return int(2 * config.num_hidden_layers * num_heads * head_size * self._model.dtype.itemsize)

    def add(self, request: SampleRequest) -> None:
        self._waiting.append(request)

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        """Replace the engine's seed. Nothing is cached beyond the responses that run."""
        self._seed = seed

    @torch.inference_mode()
    def step(self) -> list[NewTokens]:
        self._admit()
        new = [token for tree in self._trees for token in self._grow(tree)]
        self._trees = [tree for tree in self._trees if tree.rows]
        return new

    def _admit(self) -> None:
        """Start as many waiting requests as the cache has room for even if they share nothing, and at least one. Those
        with equal contexts are one tree."""
        reserved = sum(tree.num_reserved() for tree in self._trees)
        started: dict[tuple[int, ...], _Tree] = {}
        while self._waiting:
            request = self._waiting[0]
            context, num_left = request.context_ids, request.num_left(self._sampling)
            reserved += len(context) + num_left
            if reserved > self._max_cached and (self._trees or started):
                break
            self._waiting.popleft()
            tree = started.setdefault(tuple(context), _Tree(rows=[context], responses=[[]]))
            draws = random.Random(f"{self._seed}/{request.key.partition(':')[2] or request.key}/{len(context)}")
            tree.responses[0].append(_Running(request.key, num_left, len(context) + num_left, draws))
        self._trees.extend(started.values())

    def _grow(self, tree: _Tree) -> list[NewTokens]:
        """Sample one token for each response of the tree, and make the rows of the prefixes that there are now."""
        states_RH = self._states(tree)
        logits_RV = self._model.get_output_embeddings()(states_RH).float() / self._sampling.temperature
        logprobs_RV = logits_RV.log_softmax(-1)
        sums_RV = logprobs_RV.double().exp().cumsum(-1)
        grown, new = _Grown(), list[NewTokens]()
        for row, responses in enumerate(tree.responses):
            self._pool(responses, states_RH[row])
            drawn_N = torch.tensor([running.draws.random() for running in responses], dtype=torch.float64)
            tokens_N = torch.searchsorted(sums_RV[row], drawn_N * sums_RV[row, -1], right=True).clamp(max=sums_RV.shape[1] - 1)
            logprobs_N = logprobs_RV[row, tokens_N].tolist()
            children: dict[int, list[_Running]] = {}
            for running, token_id, logprob in zip(responses, tokens_N.tolist(), logprobs_N, strict=True):
                running.num_left -= 1
                reason = FinishReason.STOP if token_id in self._end_ids else FinishReason.LENGTH if running.num_left <= 0 else None
                new.append(NewTokens(key=running.key, token_ids=[token_id], logprobs=[logprob], finish_reason=reason))
                if reason is None:
                    children.setdefault(token_id, []).append(running)
            for token_id, going_on in children.items():
                grown.parents.append(row)
                grown.rows.append([*tree.rows[row], token_id])
                grown.responses.append(going_on)
        _select(tree, grown)
        return new

    def _states(self, tree: _Tree) -> Tensor:
        """Return the last state of every row (R, H), and add what was computed to the cache."""
        num_cached = 0 if tree.cache is None else int(tree.cache.get_seq_length())
        ids_RL = torch.tensor(tree.rows)[:, num_cached:]
        output = self._model.get_decoder()(input_ids=ids_RL, past_key_values=tree.cache, use_cache=True)
        tree.cache = output.past_key_values
        states_RH: Tensor = output.last_hidden_state[:, -1]
        return states_RH

    def _pool(self, responses: Sequence[_Running], state_H: Tensor) -> None:
        if self._pooled is not None:
            self._pooled.add([running.key for running in responses], state_H.expand(len(responses), -1))

    def abort(self, keys: Sequence[str]) -> None:
        gone = set(keys)
        self._waiting = deque(request for request in self._waiting if request.key not in gone)
        for tree in self._trees:
            grown = _Grown()
            for row, responses in enumerate(tree.responses):
                if going_on := [running for running in responses if running.key not in gone]:
                    grown.parents.append(row)
                    grown.rows.append(tree.rows[row])
                    grown.responses.append(going_on)
            _select(tree, grown)
        self._trees = [tree for tree in self._trees if tree.rows]

    def take_states(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {} if self._pooled is None else self._pooled.take_all(keys)

    def load(self, snapshot: WeightSnapshot) -> None:
        load_into(self._model, snapshot)
        for tree in self._trees:
            tree.cache = None  # what it holds is of the old weights


def _select(tree: _Tree, grown: _Grown) -> None:
    """Replace the rows of the tree by those that have grown out of them."""
    if tree.cache is not None and grown.rows and grown.parents != list(range(len(tree.rows))):
        tree.cache.batch_select_indices(torch.tensor(grown.parents))
    tree.rows, tree.responses = grown.rows, grown.responses
