"""Metrics of one training step. docs/metrics.md defines every name. Axes: G groups, K responses, N tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from torch import Tensor

from buffers.groups import list_column_arrays
from learners.losses import LossInputs, LossOutput
from learners.mismatch import MismatchTokens, mismatch_metrics


def reward_metrics(
    batch: pa.RecordBatch, advantages_GK: Tensor, without_bonus_GK: Tensor | None = None, diverse_GK: Tensor | None = None
) -> dict[str, float]:
    """Return rewards, pass rates, shares of groups without contrast, and lengths of one batch. A metric whose value is
    unknown is left out. `without_bonus_GK` is what the advantages would be without the bonus, if there is one, and
    `diverse_GK` the rewards times their diversity, if they are multiplied."""
    num_groups, group_size = advantages_GK.shape
    reward_GK = batch.column("reward").to_numpy(zero_copy_only=False).astype(np.float64).reshape(num_groups, group_size)
    correct_GK = np.array([s == "correct" for s in batch.column("verdict_status").to_pylist()]).reshape(num_groups, group_size)
    lengths = np.diff(list_column_arrays(batch, "response_ids")[1])
    return {
        **_scores(batch, reward_GK, correct_GK),
        **({} if diverse_GK is None or diverse_GK.isnan().all() else {"reward/diversity_product": float(diverse_GK.nanmean())}),
        **({} if without_bonus_GK is None else {"advantage/bonus_alone": bonus_alone_share(without_bonus_GK, advantages_GK)}),
        "groups/without_signal": float((advantages_GK == 0).all(-1).double().mean()),
        "verifier/unscored": float(np.isnan(reward_GK).mean()),
        "advantage/abs_mean": float(advantages_GK.abs().mean()),
        "response/tokens_mean": float(lengths.mean()),
        "response/truncated": float((np.array(batch.column("finish_reason").to_pylist()) == "length").mean()),
    }


def _scores(batch: pa.RecordBatch, reward_GK: np.ndarray, correct_GK: np.ndarray) -> dict[str, float]:
    """Return figures of rewards and verdicts. A group without scored responses is neither all correct nor all wrong."""
    scored_G = ~np.isnan(reward_GK).all(-1)
    if not scored_G.any():
        return {}
    return {
        "reward/mean": float(np.nanmean(reward_GK)),
        **_reward_terms(batch, reward_GK),
        "reward/pass@1": float(correct_GK.mean()),
        "reward/pass@K": float(correct_GK.any(-1).mean()),
        "groups/all_correct": float(correct_GK[scored_G].all(-1).mean()),
        "groups/all_wrong": float((~correct_GK[scored_G].any(-1)).mean()),
    }


def _reward_terms(batch: pa.RecordBatch, reward_GK: np.ndarray) -> dict[str, float]:
    """Return the terms of shaped rewards; nothing if the rewards are the task's own."""
    columns = [batch.column(name) for name in ("reward_format", "reward_length")]
    if any(column.null_count == len(column) for column in columns):
        return {}
    form, length = (float(np.nanmean(column.to_numpy(zero_copy_only=False).astype(np.float64))) for column in columns)
    return {"reward/task": float(np.nanmean(reward_GK)) - form - length, "reward/format": form, "reward/length": length}


def bonus_alone_share(without_bonus_GK: Tensor, advantages_GK: Tensor) -> float:
    """Return the share of groups whose advantages, and so their signs, come from the bonus only."""
    return float((without_bonus_GK.eq(0).all(dim=-1) & advantages_GK.ne(0).any(dim=-1)).double().mean())


def lag_metrics(version: int, token_versions_N: np.ndarray) -> dict[str, float]:
    """Return figures of the lag, the versions between sampling and training, over the response tokens trained on."""
    if not len(token_versions_N):
        return {}
    lag_N = version - token_versions_N
    return {"policy/lag_mean": float(lag_N.mean()), "policy/lag_max": float(lag_N.max())}


def late_metrics(num_trained_R: np.ndarray, batch: pa.RecordBatch) -> dict[str, float]:
    """Return figures of the responses with tokens too old to be trained on. `num_trained_R`: the other tokens of
    each."""
    lengths_R = np.diff(list_column_arrays(batch, "response_ids")[1])
    is_late_R = num_trained_R < lengths_R
    late = {"late/tokens_mean": float(lengths_R[is_late_R].mean())} if is_late_R.any() else {}
    return {"late/masked": float((lengths_R - num_trained_R).sum() / max(1, lengths_R.sum())), **late}


@dataclass
class StepStatistics:
    """Per-token quantities, collected over the micro-batches of a step that policy `version` starts."""

    version: int
    num_computed_tokens: int = 0
    loss: float = 0.0
    """The sum over micro-batches, hence over optimiser steps."""
    covariances: list[float] = field(default_factory=list)
    """The covariance of log-prob and advantage of each optimiser step, where it is computed, over all ranks."""
    _columns: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(
        self, inputs: LossInputs, output: LossOutput, entropy_N: Tensor, version_N: Tensor, oldest_N: Tensor, *, num_computed: int
    ) -> None:
        """Add a micro-batch. `version_N` is the version that sampled each token, `oldest_N` the oldest of its response,
        of tokens too old to be trained on too."""
        self.num_computed_tokens += num_computed
        self.loss += float(output.loss.detach())
        lag_N = self.version - version_N.cpu()
        columns = {
            "entropy": entropy_N,
            "logprob": inputs.proximal_logprob_N.detach(),
            "difference": inputs.proximal_logprob_N.detach() - inputs.behavior_logprob_N,
            "clipped": output.clipped_N,
            "is_weight": output.is_weight_N,
            "lag": lag_N,
            "oldest_lag": self.version - oldest_N,
        }
        if output.kl_N is not None:
            columns["kl"] = output.kl_N
        if inputs.chosen_N is not None:
            columns["chosen"] = inputs.chosen_N
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.double().cpu().numpy())

    @classmethod
    def merged(cls, parts: Sequence[StepStatistics]) -> StepStatistics:
        """Return the statistics of several ranks that computed a step together, as one."""
        whole = cls(version=parts[0].version, covariances=parts[0].covariances)
        for part in parts:
            whole.num_computed_tokens += part.num_computed_tokens
            whole.loss += part.loss
            for name, columns in part._columns.items():
                whole._columns.setdefault(name, []).extend(columns)
        return whole

    def tokens(self) -> MismatchTokens:
        """Return what `learners.mismatch` examines."""
        names = ("logprob", "difference", "entropy", "lag", "oldest_lag")
        return MismatchTokens(**{f"{name}_N": self._column(name) for name in names})

    def metrics(self) -> dict[str, float]:
        """Return means over all computed tokens. There are none if no group of the batch had signal."""
        if not self._columns:
            return {}
        is_weight = self._column("is_weight")
        return {
            "learner/clipped": float(self._column("clipped").mean()),
            "learner/is_weight_mean": float(is_weight.mean()),
            "learner/masked": float((is_weight == 0).mean()),
            "policy/entropy": float(self._column("entropy").mean()),
            **({"policy/kl_reference": float(self._column("kl").mean())} if "kl" in self._columns else {}),
            **({"learner/covariance": float(np.mean(self.covariances))} if self.covariances else {}),
            **({"learner/restrained": float(self._column("chosen").mean())} if "chosen" in self._columns else {}),
            **mismatch_metrics(self.tokens()),
        }

    def _column(self, name: str) -> np.ndarray:
        parts = self._columns.get(name)
        return np.concatenate(parts) if parts else np.zeros(0)
