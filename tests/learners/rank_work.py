"""What tests ask ranks to do: functions of (ranks, …), the same for one process and for many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learners.config import LearnerConfig
from learners.policy_learner import PolicyLearner
from learners.ranks import Ranks
from learners.sharding import full_tensor
from tests.learners.exact_norms import make_norms_exact
from tests.learners.samples import GradientRecorder, ragged_batch

GROUP_SIZE = 4
TEMPERATURE = 0.8


def make_config(*, dtype: str = "float32", **settings: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({"lr": 1e-3, "warmup_steps": 0, **settings}).model_copy(update={"dtype": dtype})


def make_learner(ranks: Ranks, model: str, **settings: Any) -> PolicyLearner:
    return PolicyLearner(model, make_config(**settings), temperature=TEMPERATURE, group_size=GROUP_SIZE, ranks=ranks)


def gradients(
    ranks: Ranks,
    model: str,
    reference: str,
    batch: pa.RecordBatch,
    all_settings: Sequence[dict[str, Any]],
    made: dict[str, Any] | None = None,
) -> list[list[dict[str, Tensor]]]:
    """Return, for each of the settings, the float64 gradient of every optimiser step on `batch`.

    Divergences are measured from the model `reference`. The learner is made with the settings `made`.
    """
    if ranks.size > 1:
        make_norms_exact()
    learner = make_learner(ranks, model, dtype="float64", **(made or {}))
    frozen = ranks.load(reference, dtype="float64", device="cpu").requires_grad_(False)
    found = []
    for settings in all_settings:
        recorder = GradientRecorder(learner._model)
        learner._optimiser = recorder  # type: ignore[assignment]
        learner._config = make_config(dtype="float64", **settings)
        learner._reference = frozen if learner._config.loss.kl.where != "off" else None
        learner.step(batch)
        found.append(recorder.gradients)
    return found


def train(
    ranks: Ranks,
    model: str,
    settings: dict[str, Any],
    seeds: Sequence[int],
    *,
    load: Path | None = None,
    save: Path | None = None,
    num_groups: int = 3,
) -> dict[str, Any]:
    """Train on ragged batches, from what was saved in `load` and into `save`.

    Returns the reports of the steps and, on the first rank, the weights.
    """
    learner = make_learner(ranks, model, **settings)
    if load is not None:
        learner.load(load)
    reports = [learner.step(ragged_batch(num_groups, seed=seed)) for seed in seeds]
    snapshot = None
    if learner.is_first:
        snapshot = learner.snapshot()
    else:
        learner.give_weights()
    if save is not None:
        learner.save(save)
    weights = {} if snapshot is None else {name: tensor.clone() for name, tensor in snapshot.tensors()}
    return {
        "reports": reports,
        "weights": weights,
        "fingerprint": None if snapshot is None else dict(snapshot.fingerprint),
        "buffer": None if snapshot is None else np.array(snapshot.buffer),
        "masters": {
            name: full_tensor(value).clone() for name, value in learner._optimiser.state_dict().items() if name.startswith("master/")
        },
        "is_in_parts": any(hasattr(parameter, "full_tensor") for parameter in learner._model.parameters()),
        "held": sum(_local(parameter).numel() for parameter in learner._model.parameters()),
        "rng": torch.get_rng_state(),
    }


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
