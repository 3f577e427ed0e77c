"""Whole runs that train adapters: the engines sample from merged weights, checkpoints hold adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.offline.replay_from import replay_from
from jobs.sampling.evaluated_models import PinnedModels, find_model
from tests.jobs.components_fixture import LocalRun, assert_same_state, small_config

pytestmark = pytest.mark.whole

LORA = {"lora": {"enabled": True, "rank": 4}}
STEPS = 4
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> MakeConfig:
    """config("a", steps=2): a small run of adapters in a directory of this test."""

    def make(name: str, *, learner: dict[str, Any] | None = None, **values: Any) -> RunConfig:
        settings = {"run_dir": str(tmp_path / name), "steps": STEPS, "learner": {**LORA, **(learner or {})}, **values}
        return small_config(tiny_model, tmp_path, **settings)

    return make


def part_of(run: LocalRun, step: int) -> Path:
    return Path(run.config.run_dir) / "checkpoints" / f"step_{step:06d}" / "learner"


def test_the_engine_samples_from_the_very_policy_that_is_trained(config: MakeConfig) -> None:
    """Without a lag every token is of the policy that is trained; with one, by the same measure, it is far from it."""
    without, lagging = (
        LocalRun(config(f"lag {lag}", max_policy_lag=lag, deterministic=lag > 0))  # groups are not under way while weights change
        for lag in (0, 1)
    )
    for run in (without, lagging):
        assert run.train() == STEPS
        run.check_valid()
        assert all(metrics["learner/grad_norm"] > 0 for _, metrics in run.reports)
    assert max(metrics["mismatch_lag0/max"] for _, metrics in without.reports) < 1e-4, "float32 against float32"
    assert min(metrics["mismatch_lag1/mean"] for _, metrics in lagging.reports[1:]) > 1e-3
    assert not [name for _, metrics in without.reports for name in metrics if "alarm" in name]


def test_checkpoints_hold_adapters_and_are_whole(config: MakeConfig, tmp_path: Path) -> None:
    run = LocalRun(config("a"))
    run.train()
    assert {path.name for path in part_of(run, STEPS).iterdir()} == {"adapter", "optimiser.safetensors"}
    model = sum(path.stat().st_size for path in Path(run.config.model).glob("*.safetensors"))
    assert (part_of(run, STEPS) / "adapter" / "adapter_model.safetensors").stat().st_size < model / 3
    assert "adapters of rank 4" in ModelCard.load(part_of(run, STEPS) / "adapter" / "README.md").text
    run.check_restorable(tmp_path / "state")


def test_stopped_and_resumed_or_its_learner_lost_it_ends_as_in_one_go(config: MakeConfig, tmp_path: Path) -> None:
    settings = {"deterministic": True, "max_policy_lag": 1, "checkpoint": {"every": 2}, "supervision": {"backoff_s": 0.0}}
    straight = LocalRun(config("straight", **settings))
    straight.train()
    LocalRun(config("stopped", **settings, steps=2)).train()
    resumed = LocalRun(config("stopped", **settings))
    resumed.train()
    lost = LocalRun(config("lost", **settings))
    lost.on_report = lambda step: lost.handles["learner"].kill() if step in (1, 3) else None  # before and after a checkpoint
    lost.train()
    assert len(lost.parts["learner"]) == 3
    for index, other in enumerate((resumed, lost)):
        assert_same_state(other.state(tmp_path / f"other{index}"), straight.state(tmp_path / f"straight{index}"))


def test_its_rollouts_give_the_same_adapters_without_an_engine(config: MakeConfig, tmp_path: Path) -> None:
    run = LocalRun(config("a", steps=2))
    run.train()
    assert replay_from(config("again", steps=2), tmp_path / "a").steps == 2
    part = tmp_path / "again" / "state" / "step_000002" / "learner"
    ours, theirs = (load_file(directory / "adapter" / "adapter_model.safetensors") for directory in (part, part_of(run, 2)))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    exported = tmp_path / "again" / "policy"
    assert (exported / "model.safetensors").exists() and (exported / "adapter" / "adapter_config.json").exists()
    assert "adapters of rank 4" in ModelCard.load(exported / "README.md").text and not (exported / "adapter" / "README.md").exists()
    with pytest.raises(UserError, match="there are: down_proj"):
        replay_from(config("wrong", learner={"lora": {"enabled": True, "targets": ["wq"]}}), tmp_path / "a")


def test_a_checkpoint_is_evaluated_as_the_policy_that_was_published(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = LocalRun(config("a", steps=2))
    with run.directory:
        run.train()
    out = tmp_path / "out"
    out.mkdir()
    pinned = PinnedModels(out).pin(find_model(str(tmp_path / "a")))
    published = dict(run.the_learner.snapshot().tensors())
    found = load_file(Path(pinned.path) / "model.safetensors")
    assert found.keys() == published.keys() and all((found[name] == published[name]).all() for name in found)
    assert f"`{run.directory.run_id}`, step 2" in ModelCard.load(Path(pinned.path) / "README.md").text
    assert {path.name for path in (Path(pinned.path) / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    }
