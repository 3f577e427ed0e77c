"""The owner of what exploration remembers: gives a step's groups their bonus and absorbs them, as one call a step.

    scored, metrics = scorer.score(step_batch, version)     # in the order of steps

Bonuses are given when a step's batch is formed, so that all groups of a step see the same memory, stale groups are
never absorbed, and the state after n steps is a function of the n batches. The order of absorption is that of the
rollout log: a state saved after step s and the log of the steps after it give the state of today again, bit for bit
(`absorb_log`). Features come from elsewhere: `actors.encoder`, or the rollout workers. Axes: G groups, K responses, R
rows, D projected."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.checkpointed import Checkpointed
from bonus.config import BonusConfig
from bonus.prompt_memory import nbytes
from bonus.scoring import BonusDiagnostics, StepBonus, carries_no_signal, score_step
from bonus.state import from_state_dict, init_state, state_dict
from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from buffers.schema import list_column_arrays, with_bonus_diagnostics, with_scores

TENSORS, REST = "bonus.safetensors", "bonus.json"


class BonusScorer(Checkpointed):
    """Thin shell around `bonus.scoring.score_step` and its state."""

    def __init__(self, *, bonus: BonusConfig, group_size: int, seed: int) -> None:
        """`seed` is that of the projection: a state made with another one is refused."""
        torch.set_num_threads(1)
        self._bonus = bonus
        self._group_size = group_size
        self._seed = seed
        self._state = init_state(bonus.dim)
        self._warned = False

    def score(self, batch: pa.RecordBatch, version: int) -> tuple[pa.RecordBatch, dict[str, float]]:
        """`batch` (one step's groups, encoded and verified, about to be trained on by policy `version`) with its
        bonuses, and the step's metrics. Absorbs the batch."""
        scored = self._absorb(batch, version)
        metrics = bonus_metrics(scored.diagnostics, scored.ridge)
        if self._bonus.memory == "prompt":
            prompts = self._state.prompts
            metrics |= {
                "bonus/remembered_prompts": float(len(prompts.stats)),
                "bonus/remembered_mib": nbytes(prompts) / 2**20,
                "bonus/evicted_prompts": float(prompts.num_evicted),
            }
        if carries_no_signal(scored.diagnostics) and not self._warned:
            self._warned = True
            metrics["bonus/no_signal_warning"] = 1.0
        groups = scored.groups
        with_bonus = with_scores(batch, scored.bonus_GK.flatten().numpy())
        return with_bonus_diagnostics(
            with_bonus,
            leverage=scored.leverage_GK.flatten().numpy(),
            spread=self._by_row(groups.spread_G),
            saturation_distance=self._by_row(groups.distance_to_saturation_G),
            effective_rank=self._by_row(groups.effective_rank_G),
            length_correlation=self._by_row(groups.length_correlation_G),
        ), metrics

    def ready(self) -> int:
        """Returns the steps absorbed."""
        return self._state.covariance.steps

    def absorb_log(self, directory: str, up_to_step: int) -> int:
        """Absorb the steps of a rollout log after the last one absorbed, in order; returns the last step absorbed.

        Raises FileNotFoundError where a step in between was not logged: the state would then not be that of the run.
        """
        log = RolloutLog(fs.LocalFileSystem(), directory)
        for step in range(self.ready() + 1, up_to_step + 1):
            self._absorb(log.batch(step, GroupOutcome.TRAINED), step - 1)
        return self.ready()

    def save(self, directory: Path) -> None:
        """The state as safetensors and JSON; the projection follows from the seed and is checked, not stored."""
        tensors, rest = state_dict(self._state)
        save_file(tensors, directory / TENSORS)
        (directory / REST).write_text(json.dumps({"state": rest, "projection_seed": self._seed, "warned": self._warned}))

    def load(self, directory: Path) -> None:
        """Raises ValueError when the state was made with another projection."""
        saved = json.loads((directory / REST).read_text())
        if saved["projection_seed"] != self._seed:
            raise ValueError(f"the saved state was made with projection seed {saved['projection_seed']}, this run has {self._seed}")
        self._state = from_state_dict(load_file(directory / TENSORS), saved["state"])
        self._warned = saved["warned"]

    def _absorb(self, batch: pa.RecordBatch, version: int) -> StepBonus:
        features, offsets = list_column_arrays(batch, "feature")
        valid_R = np.diff(offsets) > 0
        rows_RD = np.zeros((batch.num_rows, self._bonus.dim))
        rows_RD[valid_R] = features.reshape(-1, self._bonus.dim)
        correct_R = np.array([status == "correct" for status in batch.column("verdict_status").to_pylist()])
        lengths_R = np.diff(list_column_arrays(batch, "response_ids")[1]).astype(np.int64)
        tasks, problems = batch.column("task").to_pylist(), batch.column("problem_id").to_pylist()
        scored, self._state = score_step(
            self._by_group(rows_RD),
            self._by_group(correct_R),
            self._by_group(valid_R),
            self._state,
            self._bonus,
            lengths_GK=self._by_group(lengths_R),
            keys_G=[f"{tasks[row]}/{problems[row]}" for row in range(0, batch.num_rows, self._group_size)],
            lags_GK=self._by_group(lags_of(batch, version)),
        )
        return scored

    def _by_group(self, values_R: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values_R)).view(-1, self._group_size, *values_R.shape[1:])

    def _by_row(self, values_G: Tensor) -> np.ndarray:
        values_R: np.ndarray = np.repeat(values_G.numpy(), self._group_size)
        return values_R


def lags_of(batch: pa.RecordBatch, version: int) -> np.ndarray:
    """Versions between each response's oldest token and policy `version`, (R,) int64; 0 for an empty response."""
    values, offsets = list_column_arrays(batch, "version_values")
    lags: Any = [version - int(values[start:stop].min()) if stop > start else 0 for start, stop in itertools.pairwise(offsets)]
    return np.array(lags, dtype=np.int64)


def bonus_metrics(diagnostics: BonusDiagnostics, ridge: float) -> dict[str, float]:
    """The step's bonus metrics by name; quantities without a value (no group with two responses) are left out."""
    named = {f"bonus/{name.removeprefix('bonus_')}": getattr(diagnostics, name) for name in diagnostics.__dataclass_fields__}
    return {"bonus/ridge": ridge, **{name: float(value) for name, value in named.items() if value is not None}}
