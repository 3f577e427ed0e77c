"""The hidden-state encoder: a frozen model that turns responses into features, and the owner of the running covariance.

    encoded = encoder.encode(batch)             # any order, any grouping: stateless, per group
    scored, metrics = encoder.score(step_batch)  # in the order of steps: scores and absorbs, as one step

Features are made as groups arrive (the expensive part, off the learner's path). Bonuses are given when a step's batch is
formed, by the one owner of the covariance, so that all groups of a step see the same prior, stale groups are never absorbed,
and the state after n steps depends on the n batches alone. Axes: G groups, K responses, H hidden, D projected, N tokens.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.checkpointed import Checkpointed
from actors.config import EncoderConfig
from bonus.config import BonusConfig
from bonus.covariance import from_state_dict, init_state, state_dict
from bonus.projection import sparse_projection
from bonus.scoring import BonusDiagnostics, carries_no_signal, score_step
from buffers.schema import list_column_arrays, with_features, with_scores
from learners.forward import last_hidden_states, load_causal_lm
from learners.packing import GroupTokens, build_rows, micro_batches, pack
from learners.policy_learner import read_groups


class HiddenStateEncoder(Checkpointed):
    """Frozen copy of the initial policy with a seeded projection and the covariance of the run."""

    def __init__(self, *, model: str, config: EncoderConfig, bonus: BonusConfig, group_size: int, seed: int, device: str = "cpu") -> None:
        torch.set_num_threads(config.threads)
        self._config = config
        self._bonus = bonus
        self._group_size = group_size
        self._seed = seed
        self._device = torch.device(device)
        self._model: Any = load_causal_lm(model, dtype=config.dtype, device=device).requires_grad_(False)
        self._fixed_projection_HD = self._projection(0)
        self._state = init_state(bonus.dim)
        self._warned = False

    def encode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, float]:
        """`batch` (whole groups) with its features, and the seconds it took. An empty response gets a null feature."""
        started = time.monotonic()
        groups = read_groups(batch, self._group_size)
        mean_RH, valid_R = self.mean_hidden_states(groups)
        means = mean_RH.split(self._group_size)
        features_RD = torch.cat([mean_KH @ projection for mean_KH, projection in zip(means, self._projections(batch), strict=True)])
        return with_features(batch, features_RD.numpy().astype(np.float32), valid_R.numpy()), time.monotonic() - started

    @torch.inference_mode()
    def mean_hidden_states(self, groups: Sequence[GroupTokens]) -> tuple[Tensor, Tensor]:
        """Mean last hidden state over each response's own tokens, (R, H) float64, and which responses have any, (R,) bool."""
        num_responses = sum(len(group.responses) for group in groups)
        sum_RH = torch.zeros(num_responses, self._model.config.hidden_size, dtype=torch.float64)
        count_R = torch.zeros(num_responses, dtype=torch.float64)
        for rows in micro_batches(build_rows(groups), max_tokens=self._config.tokens_per_batch):
            packed = pack(rows)
            hidden_NH = last_hidden_states(self._model, packed.to(self._device))[packed.row_N, packed.own_N]
            sum_RH.index_add_(0, packed.response_N, hidden_NH.cpu().to(torch.float64))
            count_R += torch.bincount(packed.response_N, minlength=num_responses)
        return sum_RH / count_R.clamp(min=1)[:, None], count_R > 0

    def score(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, float]]:
        """`batch` (one step's groups, encoded and verified) with its bonuses, and the step's metrics. Absorbs the batch."""
        num_groups = batch.num_rows // self._group_size
        features, offsets = list_column_arrays(batch, "feature")
        lengths = np.diff(list_column_arrays(batch, "response_ids")[1])
        valid = np.diff(offsets) > 0
        rows_RD = np.zeros((batch.num_rows, self._bonus.dim))
        rows_RD[valid] = features.reshape(-1, self._bonus.dim)
        correct = np.array([status == "correct" for status in batch.column("verdict_status").to_pylist()])

        def by_group(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).view(num_groups, self._group_size, *values.shape[1:])

        scored, self._state = score_step(
            by_group(rows_RD), by_group(correct), by_group(valid), self._state, self._bonus, lengths_GK=by_group(lengths.astype(np.int64))
        )
        metrics = bonus_metrics(scored.diagnostics, scored.ridge)
        if carries_no_signal(scored.diagnostics) and not self._warned:
            self._warned = True
            metrics["bonus/no_signal_warning"] = 1.0
        return with_scores(batch, scored.bonus_GK.flatten().numpy()), metrics

    def ready(self) -> int:
        """Returns the steps absorbed once the model is loaded."""
        return self._state.steps

    def save(self, directory: Path) -> None:
        """The covariance as safetensors; the projection follows from the seed and is checked, not stored."""
        state = state_dict(self._state)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        save_file(tensors, directory / "covariance.safetensors")
        extra = {"projection_seed": self._seed, "warned": self._warned}
        (directory / "covariance.json").write_text(json.dumps({"state": numbers, **extra}))

    def load(self, directory: Path) -> None:
        """Raises ValueError when the state was made with another projection."""
        saved = json.loads((directory / "covariance.json").read_text())
        if saved["projection_seed"] != self._seed:
            raise ValueError(f"the saved covariance was made with projection seed {saved['projection_seed']}, this run has {self._seed}")
        self._state = from_state_dict({**load_file(directory / "covariance.safetensors"), **saved["state"]})
        self._warned = saved["warned"]

    def _projections(self, batch: pa.RecordBatch) -> list[Tensor]:
        """One projection a group. Without memory only responses of one group are compared, so a redrawn one may differ by group."""
        firsts = range(0, batch.num_rows, self._group_size)
        if not self._bonus.redraw_projection:
            return [self._fixed_projection_HD for _ in firsts]
        problems, versions = batch.column("problem_id"), batch.column("admitted_version")
        return [self._projection(zlib.crc32(f"{problems[row]}/{versions[row]}".encode())) for row in firsts]

    def _projection(self, draw: int) -> Tensor:
        return sparse_projection(self._model.config.hidden_size, self._bonus.dim, seed=self._seed + 1_000_003 * draw)


def bonus_metrics(diagnostics: BonusDiagnostics, ridge: float) -> dict[str, float]:
    """The step's bonus metrics by name; quantities without a value (no group with two responses) are left out."""
    named = {f"bonus/{name.removeprefix('bonus_')}": getattr(diagnostics, name) for name in diagnostics.__dataclass_fields__}
    return {"bonus/ridge": ridge, **{name: float(value) for name, value in named.items() if value is not None}}
