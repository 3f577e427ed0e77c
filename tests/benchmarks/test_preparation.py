"""The benchmark of preparing a batch still calls what a learner has."""

from __future__ import annotations

from benchmarks.preparation import prepare
from learners.config import LearnerConfig
from learners.policy_learner import PolicyLearner
from tests.learners.samples import ragged_batch


def test_every_part_of_preparing_a_batch_is_timed(tiny_model: str) -> None:
    learner = PolicyLearner(tiny_model, LearnerConfig(dtype="float32"), temperature=1.0, group_size=4)
    found = prepare(learner, ragged_batch(2), 4, repetitions=1)
    assert found["tokens"] > 0 and found["passes"] >= 1 and found["MiB moved"] > 0
    assert all(found[part] > 0 for part in ("out of Arrow", "token ids", "micro-batches", "packing", "columns"))
