"""Metrics of one training step. Every name is defined in docs/metrics.md. Axes: G groups, K responses, N tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from torch import Tensor

from learners.losses import LossInputs, LossOutput

BAND = (0.9, 1.1)
"""A token whose probability ratio learner / engine lies outside counts as mismatched."""


def reward_metrics(batch: pa.RecordBatch, advantages_GK: Tensor) -> dict[str, float]:
    """Reward, pass rates, shares of groups without contrast and lengths of one batch."""
    num_groups, group_size = advantages_GK.shape
    reward_GK = batch.column("reward").to_numpy(zero_copy_only=False).astype(np.float64).reshape(num_groups, group_size)
    correct_GK = np.array([s == "correct" for s in batch.column("verdict_status").to_pylist()]).reshape(num_groups, group_size)
    finish = np.array(batch.column("finish_reason").to_pylist())
    lengths = np.diff(batch.column("response_ids").offsets.to_numpy())
    return {
        "reward/mean": float(np.nanmean(reward_GK)) if not np.isnan(reward_GK).all() else 0.0,
        **_reward_terms(batch, reward_GK),
        "reward/pass@1": float(correct_GK.mean()),
        "reward/pass@K": float(correct_GK.any(-1).mean()),
        "groups/all_correct": float(correct_GK.all(-1).mean()),
        "groups/all_wrong": float((~correct_GK.any(-1)).mean()),
        "advantage/bonus_alone": bonus_alone_share(reward_GK, advantages_GK),
        "groups/without_signal": float((advantages_GK == 0).all(-1).double().mean()),
        "verifier/unscored": float(np.isnan(reward_GK).mean()),
        "advantage/abs_mean": float(advantages_GK.abs().mean()),
        "response/tokens_mean": float(lengths.mean()),
        "response/truncated": float((finish == "length").mean()),
    }


def _reward_terms(batch: pa.RecordBatch, reward_GK: np.ndarray) -> dict[str, float]:
    """What shaped rewards are the sum of; nothing where they are the task's own."""
    columns = [batch.column(name) for name in ("reward_format", "reward_length")]
    if any(column.null_count == len(column) for column in columns):
        return {}
    form, length = (float(np.nanmean(column.to_numpy(zero_copy_only=False).astype(np.float64))) for column in columns)
    return {"reward/task": float(np.nanmean(reward_GK)) - form - length, "reward/format": form, "reward/length": length}


def bonus_alone_share(reward_GK: np.ndarray, advantages_GK: Tensor) -> float:
    """Share of groups with an advantage although all their scored rewards are equal: the bonus alone then gives every sign."""
    unscored_GK = np.isnan(reward_GK)
    equal_G = np.where(unscored_GK, -np.inf, reward_GK).max(axis=1) <= np.where(unscored_GK, np.inf, reward_GK).min(axis=1)
    has_advantage_G = advantages_GK.ne(0).any(dim=-1).numpy()
    return float((equal_G & has_advantage_G).mean())


def lag_metrics(version: int, token_versions_N: np.ndarray) -> dict[str, float]:
    """Versions between sampling and training, over all response tokens of the batch."""
    if not len(token_versions_N):
        return {}
    lag_N = version - token_versions_N
    return {"policy/lag_mean": float(lag_N.mean()), "policy/lag_max": float(lag_N.max())}


@dataclass
class TokenStatistics:
    """Collects per-token quantities over the micro-batches of a step made from policy `version`."""

    version: int
    num_computed_tokens: int = 0
    _columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _loss: float = 0.0

    def add(self, inputs: LossInputs, output: LossOutput, entropy_N: Tensor, version_N: Tensor, *, num_computed: int) -> None:
        self.num_computed_tokens += num_computed
        self._loss += float(output.loss.detach())
        columns = {
            "entropy": entropy_N,
            "difference": inputs.proximal_logprob_N.detach() - inputs.behavior_logprob_N,
            "clipped": output.clipped_N,
            "is_weight": output.is_weight_N,
            "lag": self.version - version_N,
        }
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.double().cpu().numpy())

    def metrics(self) -> dict[str, float]:
        """Empty of mismatch figures when no group of the batch had signal: nothing was then computed."""
        if not self._columns:
            return {"learner/loss": 0.0}
        column = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        at_lag_zero = column["lag"] == 0
        return {
            "learner/loss": self._loss,
            "learner/clipped": float(column["clipped"].mean()),
            "learner/is_weight_mean": float(column["is_weight"].mean()),
            "policy/entropy": float(column["entropy"].mean()),
            **_mismatch("mismatch", column["difference"]),
            **(_mismatch("mismatch_lag0", column["difference"][at_lag_zero]) if at_lag_zero.any() else {}),
        }


def _mismatch(prefix: str, difference_N: np.ndarray) -> dict[str, float]:
    absolute = np.abs(difference_N)
    ratio = np.exp(difference_N)
    return {
        f"{prefix}/mean": float(absolute.mean()),
        f"{prefix}/p95": float(np.quantile(absolute, 0.95)),
        f"{prefix}/max": float(absolute.max()),
        f"{prefix}/outside_band": float(((ratio < BAND[0]) | (ratio > BAND[1])).mean()),
    }
