"""The owner of the exploration bonus: scores a step's groups and absorbs them, in one call a step.

    scored, metrics = scorer.score(step_batch, version)     # in the order of steps

A bonus is given when a step's batch is formed, so all groups of a step see the same memory, stale groups are never
absorbed, and the state after n steps is a function of the n batches. Steps are absorbed in the order of the rollout
log. So a state saved after step s and the log of the later steps give today's state again, bit for bit (`absorb_log`).
What a bonus needs is in the batch already: features come from `actors.encoder` or the rollout workers, final answers
from the verifier pool. Axes: G groups, K responses, R rows, T tokens of the longest response, D projected."""

import itertools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.checkpointed import Checkpointed
from bonus.base import Need, Scores, StepRows
from bonus.config import BonusConfig
from bonus.contract import score_checked, state_from_files, state_to_files
from bonus.methods import bonus_of
from buffers.groups import feature_rows
from buffers.records import FinishReason, GroupOutcome
from buffers.rollout_log import RolloutLog
from buffers.schema import list_column_arrays, with_bonus_detail, with_scores

TENSORS, REST = "bonus.safetensors", "bonus.json"


class BonusScorer(Checkpointed):
    """A thin shell around any `bonus.base.Bonus` and its state."""

    def __init__(self, *, bonus: BonusConfig, group_size: int, seed: int) -> None:
        """`seed` is the run's, and so that of the projection: a state made with another one is refused. Raises
        ExtensionError where the bonus of the configuration cannot be used."""
        torch.set_num_threads(1)
        self._config, self._group_size, self._seed = bonus, group_size, seed
        self._bonus = bonus_of(bonus)
        self._state = self._bonus.init_state()
        self._steps = 0

    def score(self, batch: pa.RecordBatch, version: int) -> tuple[pa.RecordBatch, dict[str, float]]:
        """Absorb `batch`, one step's groups about to be trained on by policy `version`. Returns the batch with its
        bonuses, and the step's metrics. Raises ExtensionError for scores that do not fit."""
        rows, scores = self._absorb(batch, version)
        detail = {name: values_GK.flatten().numpy() for name, values_GK in scores.detail.items()}
        mean = {"mean": float(scores.bonus_GK[rows.valid_GK].mean())} if rows.valid_GK.any() else {}
        metrics = {f"bonus/{name}": value for name, value in {**mean, **scores.metrics}.items()}
        return with_bonus_detail(with_scores(batch, scores.bonus_GK.flatten().numpy()), detail), metrics

    def ready(self) -> int:
        return self._steps

    def absorb_log(self, directory: str, up_to_step: int) -> int:
        """Absorb the steps of a rollout log that follow the last one absorbed, in order. Return the last one absorbed.
        Raises FileNotFoundError for a step in between that was not logged: the state would not be that of the run."""
        log = RolloutLog(fs.LocalFileSystem(), directory)
        for step in range(self._steps + 1, up_to_step + 1):
            self._absorb(log.batch(step, GroupOutcome.TRAINED), step - 1)
        return self._steps

    def save(self, directory: Path) -> None:
        """Write the state as safetensors and JSON. The projection follows from the seed and is not stored."""
        tensors, rest = state_to_files(self._bonus, self._state, kind=self._config.label)
        save_file(tensors, directory / TENSORS)
        saved = {"kind": self._config.label, "steps": self._steps, "state": rest, "projection_seed": self._seed}
        (directory / REST).write_text(json.dumps(saved))

    def load(self, directory: Path) -> None:
        """Read what `save` wrote. Raises ValueError for a state of another bonus or another projection."""
        saved = _current_form(json.loads((directory / REST).read_text()))
        if saved["projection_seed"] != self._seed:
            raise ValueError(f"the saved state was made with projection seed {saved['projection_seed']}, this run has {self._seed}")
        if saved["kind"] != self._config.label:
            raise ValueError(f'the saved state is of bonus.kind = "{saved["kind"]}", this run has "{self._config.label}"')
        self._state = state_from_files(self._bonus, load_file(directory / TENSORS), saved["state"])
        self._steps = saved["steps"]

    def _absorb(self, batch: pa.RecordBatch, version: int) -> tuple[StepRows, Scores]:
        rows = step_rows(
            batch, self._config, self._bonus.needs, group_size=self._group_size, version=version, step=self._steps + 1, seed=self._seed
        )
        scores, state = score_checked(self._bonus, rows, self._state, kind=self._config.label)
        if self._steps == 0:
            state_to_files(self._bonus, state, kind=self._config.label)  # a state that cannot be saved is found in the first step
        self._state = state
        self._steps += 1
        return rows, scores


def _current_form(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what `save` writes. A file from before `bonus.kind` existed holds the elliptical bonus's state."""
    if "kind" in saved:
        return saved
    state = saved["state"] | {"warned": saved["warned"]}
    return {**saved, "kind": "elliptical", "steps": state["covariance.steps"], "state": state}


def step_rows(
    batch: pa.RecordBatch, config: BonusConfig, needs: Collection[Need], *, group_size: int, version: int, step: int, seed: int
) -> StepRows:
    """Return a step's batch, about to be trained on by policy `version`, as a bonus with these `needs` sees it."""

    def by_group(values_R: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values_R)).view(-1, group_size, *values_R.shape[1:])

    lengths_R = np.diff(list_column_arrays(batch, "response_ids")[1]).astype(np.int64)
    has_features = Need.FEATURES in needs
    valid_R = np.diff(list_column_arrays(batch, "feature")[1]) > 0 if has_features else lengths_R > 0
    tasks, problems = batch.column("task").to_pylist(), batch.column("problem_id").to_pylist()
    answers = batch.column("final_answer").to_pylist() if Need.ANSWERS in needs else None
    responses = batch.column("response_ids").to_pylist() if Need.RESPONSES in needs else None
    firsts = range(0, batch.num_rows, group_size)
    return StepRows(
        step=step,
        seed=seed,
        keys_G=[f"{tasks[row]}/{problems[row]}" for row in firsts],
        rewards_GK=by_group(np.array(batch.column("reward").to_pylist(), dtype=np.float64)),
        correct_GK=by_group(np.array([status == "correct" for status in batch.column("verdict_status").to_pylist()])),
        valid_GK=by_group(valid_R),
        lengths_GK=by_group(lengths_R),
        ended_GK=by_group(np.array([reason != FinishReason.LENGTH for reason in batch.column("finish_reason").to_pylist()])),
        lags_GK=by_group(lags_of(batch, version)),
        features_GKD=by_group(feature_rows(batch, config.dim)) if has_features else None,
        answers_GK=[answers[row : row + group_size] for row in firsts] if answers is not None else None,
        responses_GK=[responses[row : row + group_size] for row in firsts] if responses is not None else None,
        logprobs_GKT=by_group(_logprobs_of(batch, lengths_R)) if Need.LOGPROBS in needs else None,
    )


def _logprobs_of(batch: pa.RecordBatch, lengths_R: np.ndarray) -> np.ndarray:
    rows_RT = np.zeros((batch.num_rows, int(lengths_R.max(initial=0))))  # float64; 0 after a response's last token
    is_token_RT = np.arange(rows_RT.shape[1]) < lengths_R[:, None]
    rows_RT[is_token_RT] = list_column_arrays(batch, "behavior_logprobs")[0]
    return rows_RT


def lags_of(batch: pa.RecordBatch, version: int) -> np.ndarray:
    """Return the versions between each response's oldest token and `version`, (R,) int64; 0 for an empty response."""
    values, offsets = list_column_arrays(batch, "version_values")
    spans = itertools.pairwise(offsets)
    return np.array([version - int(values[start:stop].min()) if stop > start else 0 for start, stop in spans], dtype=np.int64)
