"""The mean hidden state of each response, pooled while an engine samples it: features without a second forward pass.

    pooled.add(keys, states_NH)     # after each engine step: the state that each running request's new token was sampled from
    mean_H = pooled.take(key)       # once, when the response has ended

The state that token t is sampled from is the own state of token t − 1 (and of the prompt's last token for t = 0). So
what an engine sees of a response of T tokens are the own states of its tokens 0 … T − 2, and the prompt's last one,
which says nothing about the response: their mean leaves out the last token, usually the end-of-turn token. The encoder
(`actors.encoder`) has all T. A response of one token is represented by the state it was sampled from. Axes: N running
requests, S slots, H hidden size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class PooledStates:
    """Running sums in float32, one slot a response, on the device of the states. Not thread-safe."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._first_SH: Tensor | None = None
        self._sum_SH: Tensor | None = None
        self._counts: dict[str, int] = {}

    def add(self, keys: Sequence[str], states_NH: Tensor) -> None:
        """One state a key. Raises ValueError where their numbers differ."""
        if len(keys) != len(states_NH):
            raise ValueError(f"{len(states_NH)} hidden states for {len(keys)} sampled tokens")
        if not keys:
            return
        states_NH = states_NH.detach().float()
        new = [row for row, key in enumerate(keys) if key not in self._slots]
        self._open([keys[row] for row in new], states_NH)
        assert self._first_SH is not None and self._sum_SH is not None
        slots_N = torch.tensor([self._slots[key] for key in keys], device=states_NH.device)
        if new:
            self._first_SH[slots_N[new]] = states_NH[new]
            self._sum_SH[slots_N[new]] = 0.0
        fresh = set(new)
        later = [row for row in range(len(keys)) if row not in fresh]
        if later:
            self._sum_SH.index_add_(0, slots_N[later], states_NH[later])
        for row in later:
            self._counts[keys[row]] += 1

    def take(self, key: str) -> np.ndarray | None:
        """The mean state (H,), float32, and forget the response; None where no token of it was sampled."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return None
        assert self._first_SH is not None and self._sum_SH is not None
        count = self._counts.pop(key)
        mean_H = self._sum_SH[slot] / count if count else self._first_SH[slot]
        self._free.append(slot)
        taken: np.ndarray = mean_H.cpu().numpy().copy()
        return taken

    def __len__(self) -> int:
        """Responses not taken yet."""
        return len(self._slots)

    def _open(self, keys: Iterable[str], like_NH: Tensor) -> None:
        for key in keys:
            if not self._free:
                self._grow(like_NH)
            self._slots[key] = self._free.pop()
            self._counts[key] = 0

    def _grow(self, like_NH: Tensor) -> None:
        """Double the slots."""
        num_old = 0 if self._sum_SH is None else len(self._sum_SH)
        num_new = max(64, num_old)
        more_SH = torch.zeros(num_new, like_NH.shape[1], device=like_NH.device)
        self._first_SH = more_SH if self._first_SH is None else torch.cat([self._first_SH, more_SH])
        self._sum_SH = more_SH.clone() if self._sum_SH is None else torch.cat([self._sum_SH, more_SH])
        self._free.extend(range(num_old + num_new - 1, num_old - 1, -1))
