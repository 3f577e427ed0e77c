from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file

from actors.learner import Learner
from actors.replay import trained_rows
from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from buffers.schema import concat_groups, list_column_arrays, split_groups, with_features, with_outcome
from learners.checkpoint import CheckpointManager
from learners.config import LearnerConfig
from learners.layers import CompilerMissing
from tests.learners.samples import make_group, ragged_batch, ragged_groups

STEPS = 4


def make_learner(model: str, **settings: object) -> Learner:
    return Learner(model, LearnerConfig.model_validate({"dtype": "float32", **settings}), temperature=1.0, group_size=4)


def awkward_batch(step: int, *, without_bonus: bool = False) -> pa.RecordBatch:
    """Return groups out of order, with tokens of several versions, a response without a verdict, and bonuses and
    features that use all bits."""
    versions = [[step - 1, step], [step], [0, 0, step], []]
    unscored = make_group(
        90, [20], [[21, 22], [24], [25, 26, 27], []], [1.0, None, 0.0, 0.0], bonuses=[1 / 3, 1e-300, 0.1, -0.0], versions=versions
    )
    batch = concat_groups([*reversed(ragged_groups(3, seed=step)), unscored])
    features = torch.randn(batch.num_rows, 6, generator=torch.Generator().manual_seed(step)).numpy()
    batch = with_features(batch, features, [len(ids) > 0 for ids in batch.column("response_ids").to_pylist()])
    at = batch.schema.get_field_index("bonus")
    return batch.set_column(at, batch.schema.field(at), pa.nulls(batch.num_rows, pa.float64())) if without_bonus else batch


def train_and_log(learner: Learner, directory: Path, steps: range, **settings: bool) -> None:
    """Train and log as a run does, including stale groups in the log."""
    log = RolloutLog(fs.LocalFileSystem(), str(directory))
    for step in steps:
        batch = awkward_batch(step, **settings)
        report = learner.step(batch, step - 1)
        stale = with_outcome(split_groups(ragged_batch(2, seed=99))[1], step, GroupOutcome.STALE)
        log.append(step, [trained_rows(batch, step, report.advantages), stale])


def everything(learner: Learner, directory: Path) -> dict[str, torch.Tensor]:
    """Return parameters, masters, moments, counts, generator state and version, as they are saved."""
    learner.save(directory)
    policy = load_file(directory / "policy" / "model.safetensors")
    return {**load_file(directory / "optimiser.safetensors"), **{f"policy/{name}": value for name, value in policy.items()}}


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_bits_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert {name.split("/")[0] for name in expected} >= {"policy", "master", "exp_avg", "exp_avg_sq", "step", "num_steps", "rng", "version"}
    assert not [name for name in expected if bits(found[name]) != bits(expected[name])]


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


@pytest.mark.parametrize("settings", [{}, {"mini_batches": 2}, {"dtype": "bfloat16", "lr": 1e-3}], ids=str)
@pytest.mark.parametrize("without_bonus", [False, True])
def test_a_learner_restored_and_brought_to_today_by_the_log_is_the_one_that_was_lost(
    tiny_model: str, tmp_path: Path, settings: dict, without_bonus: bool
) -> None:
    lost, log = make_learner(tiny_model, **settings), tmp_path / "log"
    manager = CheckpointManager(str(tmp_path / "checkpoints"), keep=1)
    train_and_log(lost, log, range(1, 3), without_bonus=without_bonus)
    manager.commit(2, lost.save_part(manager, 2, "learner"), {})
    at_checkpoint = everything(lost, tmp_path / "checkpoint")
    train_and_log(lost, log, range(3, STEPS + 1), without_bonus=without_bonus)
    expected = everything(lost, tmp_path / "lost")
    assert not torch.equal(at_checkpoint["master/model.norm.weight"], expected["master/model.norm.weight"])
    restored = make_learner(tiny_model, **settings)
    restored.load_part(manager, 2, "learner")
    assert restored.train_log(str(log), STEPS) == restored.ready() == STEPS
    assert_bits_equal(everything(restored, tmp_path / "restored"), expected)
    assert restored.train_log(str(log), STEPS) == STEPS
    assert_bits_equal(everything(restored, tmp_path / "again"), expected)  # steps that it has done already are skipped


def test_a_new_learner_is_brought_to_today_from_the_first_step(tiny_model: str, tmp_path: Path) -> None:
    lost, new = make_learner(tiny_model), make_learner(tiny_model)
    train_and_log(lost, tmp_path, range(1, 3))
    assert new.train_log(str(tmp_path), 2) == 2
    assert dict(new.publish()[0].fingerprint) == dict(lost.publish()[0].fingerprint)


def test_a_step_that_was_not_logged_is_refused(tiny_model: str, tmp_path: Path) -> None:
    train_and_log(make_learner(tiny_model), tmp_path, range(1, STEPS + 1))
    (tmp_path / "step_000003.parquet").unlink()
    new = make_learner(tiny_model)
    with pytest.raises(FileNotFoundError, match="step_000003"):
        new.train_log(str(tmp_path), STEPS)
    assert new.ready() == 2


def test_a_batch_read_back_has_the_bits_of_the_batch_as_it_came(tmp_path: Path) -> None:
    log = RolloutLog(fs.LocalFileSystem(), str(tmp_path))
    came = awkward_batch(2)
    log.append(1, [trained_rows(came, 1, [0.1] * came.num_rows)])
    read = log.batch(1, GroupOutcome.TRAINED)
    assert read.schema.equals(came.schema, check_metadata=True)
    assert read.column("group_id").to_pylist() == [2] * 4 + [1] * 4 + [0] * 4 + [90] * 4
    for name in ("prompt_ids", "response_ids", "behavior_logprobs", "version_starts", "version_values", "feature"):
        for found, expected in zip(list_column_arrays(read, name), list_column_arrays(came, name), strict=True):
            assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes(), name
    assert read.column("feature").is_null().equals(came.column("feature").is_null())
    for name in ("reward", "bonus"):
        found, expected = (batch.column(name).to_numpy(zero_copy_only=False) for batch in (read, came))
        assert found.tobytes() == expected.tobytes(), name
    decided = ("advantage", "step", "outcome")
    assert read.drop_columns(decided).equals(came.drop_columns(decided))


def test_a_batch_for_another_version_is_refused_and_nothing_is_trained(tiny_model: str, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    learner.step(ragged_batch(2), 0)
    before = dict(learner.publish()[0].fingerprint)
    for version in (0, 5):
        with pytest.raises(ValueError, match=f"the learner is at version 1, the batch is for version {version}"):
            learner.step(ragged_batch(2), version)
    assert (learner.ready(), dict(learner.publish()[0].fingerprint)) == (1, before)
    assert learner.step(ragged_batch(2), 1).version == 2


def test_a_learner_that_cannot_compile_says_so_when_it_is_asked_whether_it_is_ready(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "g++").touch(mode=0o755)
    learner = make_learner(tiny_model, compile=True)
    assert learner.ready() == 0
    (tmp_path / "g++").unlink()
    assert make_learner(tiny_model).ready() == 0
    with pytest.raises(CompilerMissing, match=r"^learner\.compile = true needs a C\+\+ compiler"):
        learner.ready()
