"""The mean hidden state of each response, pooled while an engine samples it: features without a second forward pass.

    pooled.add(keys, states_NH)     # in each engine step: the states that the new tokens are sampled from
    mean_H = pooled.take(key)       # once, when the response has ended

Token t is sampled from the state that the model has at token t − 1, or at the prompt's last token for t = 0. So of a
response of T tokens an engine sees the states at its tokens 0 … T − 2, and that at the prompt's last token, which says
nothing about the response and is left out. The mean therefore lacks the last token, usually the end-of-turn token; the
encoder (`actors.encoder`) has all T. A response of one token is represented by the state that it was sampled from.
Axes: N running requests, S slots, H hidden size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class PooledStates:
    """Running sums in float32 on the device of the states, with one slot for each response. Not thread-safe."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._first_SH: Tensor | None = None
        self._sum_SH: Tensor | None = None
        self._counts: dict[str, int] = {}

    def add(self, keys: Sequence[str], states_NH: Tensor) -> None:
        """Add one state for each key. Raises ValueError if their numbers differ."""
        if len(keys) != len(states_NH):
            raise ValueError(f"{len(states_NH)} hidden states for {len(keys)} sampled tokens")
        if not keys:
            return
        states_NH = states_NH.detach().float()
        new = [row for row, key in enumerate(keys) if key not in self._slots]
        for row in new:
            if not self._free:
                self._grow(states_NH)
            self._slots[keys[row]] = self._free.pop()
            self._counts[keys[row]] = 0
        assert self._first_SH is not None and self._sum_SH is not None
        slots_N = torch.tensor([self._slots[key] for key in keys], device=states_NH.device)
        if new:
            self._first_SH[slots_N[new]] = states_NH[new]
            self._sum_SH[slots_N[new]] = 0.0
        later = sorted(set(range(len(keys))) - set(new))
        if later:
            self._sum_SH.index_add_(0, slots_N[later], states_NH[later])
        for row in later:
            self._counts[keys[row]] += 1

    def take(self, key: str) -> np.ndarray | None:
        """Return the mean state (H,), float32, and forget the response. None if no token of it was sampled."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return None
        assert self._first_SH is not None and self._sum_SH is not None
        count = self._counts.pop(key)
        mean_H = self._sum_SH[slot] / count if count else self._first_SH[slot]
        self._free.append(slot)
        return mean_H.cpu().numpy().copy()

    def take_all(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the mean state by key, where a token was sampled, and forget these responses."""
        taken = {key: self.take(key) for key in keys}
        return {key: mean_H for key, mean_H in taken.items() if mean_H is not None}

    def __len__(self) -> int:
        return len(self._slots)

    def _grow(self, like_NH: Tensor) -> None:
        num_old = 0 if self._sum_SH is None else len(self._sum_SH)
        num_new = max(64, num_old)
        more_SH = torch.zeros(num_new, like_NH.shape[1], device=like_NH.device)
        self._first_SH = more_SH if self._first_SH is None else torch.cat([self._first_SH, more_SH])
        self._sum_SH = more_SH.clone() if self._sum_SH is None else torch.cat([self._sum_SH, more_SH])
        self._free.extend(range(num_old + num_new - 1, num_old - 1, -1))
