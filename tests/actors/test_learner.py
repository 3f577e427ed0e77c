from __future__ import annotations

from pathlib import Path

from actors.learner import Learner
from learners.checkpoint import CheckpointManager
from learners.config import LearnerConfig
from tests.learners.samples import ragged_batch


def make_learner(model: str) -> Learner:
    return Learner(model, LearnerConfig(dtype="float32"), temperature=1.0, group_size=4)


def test_it_publishes_the_version_its_steps_have_made(tiny_model: str) -> None:
    learner = make_learner(tiny_model)
    assert learner.ready() == 0
    before, version = learner.publish()
    assert (version, before.version) == (0, 0)
    fingerprint = dict(before.fingerprint)
    assert learner.step(ragged_batch(2)).version == learner.ready() == 1
    after, version = learner.publish()
    assert (version, after.version) == (1, 1)
    assert dict(after.fingerprint) != fingerprint


def test_its_part_of_a_checkpoint_restores_it(tiny_model: str, tmp_path: Path) -> None:
    straight, restored = make_learner(tiny_model), make_learner(tiny_model)
    straight.step(ragged_batch(2))
    manager = CheckpointManager(tmp_path.as_uri(), keep=1)
    manager.commit(1, straight.save_part(manager, 1, "learner"), {})
    restored.load_part(manager, 1, "learner")
    assert restored.ready() == 1
    for learner in (straight, restored):
        learner.step(ragged_batch(2, seed=1))
    assert dict(restored.publish()[0].fingerprint) == dict(straight.publish()[0].fingerprint)
