"""From mean hidden states to features: the seeded sparse projection, one for the run or one a group.

Both sources of features use it: the encoder, and the rollout workers if `bonus.source = "policy"`. Axes: K responses, H
hidden, D projected."""

import zlib

from torch import Tensor

from bonus.config import BonusConfig
from bonus.projection import sparse_projection


class Projector:
    """Projects the responses of one group: features_KD = projector(mean_KH, problem_id, admitted_version)."""

    def __init__(self, bonus: BonusConfig, *, hidden_size: int, seed: int) -> None:
        self._redraw = bonus.redraw_projection
        self._hidden_size, self._dim, self._seed = hidden_size, bonus.dim, seed
        self._fixed_HD = self._draw(0)

    def __call__(self, mean_KH: Tensor, problem_id: str, admitted_version: int) -> Tensor:
        """Return features_KD, float64. A redrawn projection differs by group. That is sound without a memory, where
        only responses of one group are compared."""
        return mean_KH @ (self._draw(zlib.crc32(f"{problem_id}/{admitted_version}".encode())) if self._redraw else self._fixed_HD)

    def _draw(self, number: int) -> Tensor:
        return sparse_projection(self._hidden_size, self._dim, seed=self._seed + 1_000_003 * number)
