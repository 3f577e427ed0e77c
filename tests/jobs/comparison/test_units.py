"""What is to be done next, as it follows from what lies on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import Experiment, resolve
from jobs.comparison.units import Command, RunUnit, units_of
from jobs.configuration.files import load
from jobs.configuration.user_error import UserError
from tests.jobs.comparison_fixture import write_comparison
from tests.jobs.evaluate_fixture import make_run


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: str) -> Experiment:
    file = write_comparison(tmp_path, tiny_model)
    return resolve(load(CompareConfig, str(file), ["steps=[10, 20]"]), source=file.name)


def finish(directory: Path) -> None:
    """Leave an evaluation as it is when it is done."""
    directory.mkdir(parents=True)
    (directory / "report.json").write_text("{}")


def command_of(unit: RunUnit) -> Command:
    command = unit.next_command()
    assert command is not None
    return command


def test_units_begin_with_the_base_model_and_all_methods_of_the_first_seed(experiment: Experiment) -> None:
    units = list(units_of(experiment))
    assert [unit.name for unit in units] == ["base", "small-grpo-0", "small-repexp-0", "small-grpo-1", "small-repexp-1"]
    base = units[0].next_command()
    assert base is not None and base.module == "jobs.evaluate"
    assert base.arguments == (
        *(str(experiment.out / "configs/evaluate.toml"), "--model", experiment.shared.model),
        *("--out", str(experiment.out / "evaluations/base")),
    )
    finish(experiment.out / "evaluations/base")
    assert units[0].next_command() is None
    units[0].tidy()


def test_a_run_is_trained_until_its_policies_are_there_then_they_are_evaluated(experiment: Experiment, tiny_model: str) -> None:
    run, out = experiment.runs[0], experiment.out
    unit = RunUnit(experiment, run)
    assert (command_of(unit).module, command_of(unit).title) == ("jobs.train", "grpo, seed 0: training, 20 steps")
    make_run(out / "runs" / run.name, tiny_model, checkpoints=[10])
    assert command_of(unit).module == "jobs.train"
    make_run(out / "runs" / run.name, tiny_model, checkpoints=[20], policy=20)
    assert command_of(unit).name == "small-grpo-0@10"
    finish(out / "evaluations/small-grpo-0@10")
    assert command_of(unit).arguments[-3:] == (f"{out}/runs/small-grpo-0@20", "--out", f"{out}/evaluations/small-grpo-0@20")
    unit.tidy()
    assert run.directory.checkpoints.steps() == [10, 20]
    finish(out / "evaluations/small-grpo-0@20")
    assert unit.next_command() is None
    unit.tidy()
    assert run.directory.checkpoints.steps() == [] and run.directory.policy_step == 20


def test_a_killed_removal_of_checkpoints_is_taken_up_again(experiment: Experiment, tiny_model: str) -> None:
    run = experiment.runs[0]
    make_run(run.directory.path, tiny_model, checkpoints=[10, 20], policy=20)
    for one in run.evaluations:
        finish(one.directory)
    run.directory.checkpoints.truncate(after_step=10)
    unit = RunUnit(experiment, run)
    assert unit.next_command() is None
    unit.tidy()
    assert run.directory.checkpoints.steps() == []


def test_policies_that_cannot_be_had_any_more_are_named(experiment: Experiment, tiny_model: str) -> None:
    unit = RunUnit(experiment, experiment.runs[0])
    directory = experiment.runs[0].directory.path
    make_run(directory, tiny_model, checkpoints=[20], policy=20)
    with pytest.raises(UserError, match=r"is past step 10 and did not keep its policy: to train it again, delete \S+/small-grpo-0$"):
        unit.next_command()
    experiment.runs[0].directory.checkpoints.truncate(after_step=-1)
    (directory / "policy" / "repexp.json").write_text(json.dumps({"step": 20}))
    with pytest.raises(UserError, match=r"its checkpoints were removed, so it has no policy of step 10: choose another with --set out=DIR"):
        unit.next_command()


def test_a_run_that_is_gone_is_not_trained_again_beside_what_was_found_of_it(experiment: Experiment, tiny_model: str) -> None:
    """Policies of two trainings would stand in one result. What is to be deleted is named at once."""
    run, out = experiment.runs[0], experiment.out
    make_run(run.directory.path, tiny_model, checkpoints=[10], policy=20)
    finish(out / "evaluations/small-grpo-0@10")
    finish(out / "evaluations/small-grpo-0@15")  # of a step that is not asked for any more
    run.directory.checkpoints.truncate(after_step=-1)
    unit = RunUnit(experiment, run)
    (run.directory.path / "policy" / "repexp.json").write_text(json.dumps({"step": 10}))
    found = f"{out}/evaluations/small-grpo-0@10 {out}/evaluations/small-grpo-0@15"
    with pytest.raises(UserError, match=rf"to train it again, delete {run.directory.path} {found}$"):
        unit.next_command()
    shutil.rmtree(run.directory.path)
    with pytest.raises(UserError, match=rf"is not here, and what was found of it has no policy of step 20: .* delete {found}$"):
        unit.next_command()
    for one in found.split():
        shutil.rmtree(one)
    assert command_of(unit).module == "jobs.train"


def test_an_evaluation_says_whose_policy_it_takes(experiment: Experiment, tiny_model: str) -> None:
    run = experiment.runs[0]
    make_run(run.directory.path, tiny_model, checkpoints=[10, 20], policy=20)
    assert command_of(RunUnit(experiment, run)).takes_from == run.directory.path
