"""Which model a name means, and the same one again when a job goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.configuration.user_error import REFUSALS, UserError
from jobs.directory.job_dir import CONFIG, LOCK
from jobs.sampling.evaluated_models import PINS, POLICIES, PinnedModels, find_model, find_models
from tests.jobs.evaluate_fixture import make_run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, and no other place where runs could be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def refusal(name: str) -> str:
    with pytest.raises(REFUSALS) as caught:
        find_model(name)
    line = str(caught.value)
    assert "\n" not in line and name.partition("@")[0] in line
    return line


def test_a_directory_is_named_by_its_last_part_and_a_hub_id_by_itself(here: Path, tiny_model: str) -> None:
    shutil.copytree(tiny_model, here / "my model")
    assert find_model("my model").label == "my model"
    assert find_model(str(here / "my model")).label == "my model"
    assert find_model("someone/some-model").label == "someone/some-model"
    assert find_model("smollm2-135m").model == "smollm2-135m"


def test_a_run_means_its_newest_policy_and_says_of_which_step(here: Path, tiny_model: str) -> None:
    make_run(here / "runs" / "going", tiny_model, checkpoints=[10, 20])
    make_run(here / "runs" / "done", tiny_model, checkpoints=[30, 40], policy=40)
    make_run(here / "runs" / "on", tiny_model, checkpoints=[40, 50], policy=40)
    going, done, on = (find_model(name) for name in ("runs/going", "done", str(here / "runs" / "on")))
    assert [model.label for model in (going, done, on)] == ["going step 20", "done step 40", "on step 50"]
    assert "the checkpoint in" in going.describe() and "the exported policy in" in done.describe()
    assert (done.model, done.settings["task"]["name"]) == (tiny_model, "arithmetic")


def test_a_step_of_a_run_can_be_named(here: Path, tiny_model: str) -> None:
    make_run(here / "runs" / "a", tiny_model, checkpoints=[10, 20], policy=20)
    assert [find_model(f"a@{step}").step for step in (10, 20)] == [10, 20]
    assert refusal("a@15").endswith("has no policy of step 15: there are those of 10, 20")


def test_models_of_one_name_are_told_apart(here: Path, tiny_model: str) -> None:
    for parent in ("x", "y"):
        shutil.copytree(tiny_model, here / parent / "policy")
    assert [model.label for model in find_models(["x/policy", "y/policy"])] == ["x/policy", "y/policy"]


def test_what_is_no_model_is_refused_with_what_there_is(here: Path, tiny_model: str) -> None:
    make_run(here / "runs" / "quickstart", tiny_model, checkpoints=[10])
    (here / "runs" / "quickstart" / "status.json").write_text("{}")
    assert "a run (quickstart), a model directory, nor a hub id" in refusal("quikstart")
    assert "nor a hub id" in refusal("runs/quikstart")
    assert "nor a hub id" in refusal("/no/such/place")
    make_run(here / "runs" / "young", tiny_model)
    assert "has neither a policy nor a checkpoint yet" in refusal("young")
    (here / "empty").mkdir()
    assert "has no config.json" in refusal("empty")


def test_the_directory_of_another_job_and_a_run_of_another_version_are_named(here: Path, tiny_model: str) -> None:
    other = here / "explored"
    other.mkdir()
    (other / LOCK).touch()
    (other / CONFIG).write_text('{"pool": 64}')
    assert "is the directory of a job that is not a training run" in refusal("explored")
    run = make_run(here / "runs" / "old", tiny_model, checkpoints=[10])
    config = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps(config | {"prompts": 8}))
    assert "cannot be read by this version: prompts" in refusal("runs/old")


# ---- the same again ----


def weights(path: str) -> bytes:
    return (Path(path) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("exported", [False, True])
def test_a_policy_stays_when_its_run_goes_on_and_removes_it(here: Path, tiny_model: str, exported: bool) -> None:
    run = make_run(here / "runs" / "a", tiny_model, checkpoints=[10], policy=10 if exported else None)
    out = here / "out"
    out.mkdir()
    pinned = PinnedModels(out).pin(find_model("a"))
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "policy", ignore_errors=True)
    make_run(here / "runs" / "a", tiny_model, checkpoints=[20])
    again = PinnedModels(out)
    assert again.pin(find_model("a")) == again.known("a") == pinned
    assert (pinned.label, pinned.step) == ("a step 10", 10)
    assert weights(pinned.path) == weights(tiny_model)
    again.release()
    assert [path.name for path in out.iterdir()] == [PINS]


def test_a_policy_on_other_storage_is_fetched(here: Path, tiny_model: str) -> None:
    storage = f"file://{here}/elsewhere"
    make_run(here / "runs" / "a", tiny_model, checkpoints=[10], settings={"checkpoint": {"storage": storage}})
    out = here / "out"
    out.mkdir()
    assert weights(PinnedModels(out).pin(find_model("a")).path) == weights(tiny_model)


def test_a_damaged_policy_is_refused_and_leaves_nothing(here: Path, tiny_model: str) -> None:
    run = make_run(here / "runs" / "a", tiny_model, checkpoints=[10])
    file = run / "checkpoints" / "step_000010" / "learner" / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    out = here / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"policy of step 10 of .* cannot be had: .*model.safetensors is damaged"):
        PinnedModels(out).pin(find_model("a"))
    assert not (out / POLICIES).exists() and not (out / PINS).exists()


def test_a_directory_that_changed_meanwhile_is_another_model(here: Path, tiny_model: str) -> None:
    shutil.copytree(tiny_model, here / "model")
    out = here / "out"
    out.mkdir()
    pinned = PinnedModels(out).pin(find_model("model"))
    assert Path(pinned.path) == here / "model"
    file = here / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match="is gone or was changed since this job began"):
        PinnedModels(out).pin(find_model("model"))
