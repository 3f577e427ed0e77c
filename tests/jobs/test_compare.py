"""`python -m jobs.compare` up to the point where something is started, and the comparisons that the project has."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs import train
from jobs.compare import main
from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import Experiment, resolve
from jobs.config import RunConfig, load_config
from jobs.configuration.files import load
from jobs.evaluate import parse_arguments, values_of
from jobs.evaluate import resolve as resolve_evaluation
from tests.jobs.comparison_fixture import write_comparison

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "configs" / "compare").glob("*.toml"))


@pytest.fixture
def file(tmp_path: Path, tiny_model: str) -> Path:
    return write_comparison(tmp_path, tiny_model)


def experiment_of(file: Path, *overrides: str) -> Experiment:
    return resolve(load(CompareConfig, str(file), overrides), source=file.name)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_module_is_light_to_import() -> None:
    code = (
        "import jobs.compare, jobs.comparison.session, jobs.comparison.local, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=True)
    assert not {"ray", "torch", "transformers", "vllm"} & set(done.stdout.split())


def test_a_dry_run_says_how_many_runs_hours_and_tokens(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "grpo: bonus.enabled = false (the baseline)" in text
    assert 'repexp: bonus.ridge = "auto", bonus.cut_off = "keep", learner.advantage.beta = 1.0' in text
    assert "runs: 4 (2 methods x 2 seeds) of 2 steps x 8 responses; 0 are trained" in text
    assert "evaluations: 9 of 3 problems x 4 responses; 0 are done" in text
    assert "tokens: at most 0.0 million in training, 0.0 million in evaluations" in text
    assert "time: about 0.2 hours one after the other, 0.2 of them left" in text and "as pace.step_s says" in text
    assert not (file.parent / "small").exists()


def test_each_run_keeps_exactly_the_policies_that_are_evaluated(file: Path) -> None:
    experiment = experiment_of(file, "steps=[20, 40, 60]")
    assert [run.name for run in experiment.runs] == ["small-grpo-0", "small-repexp-0", "small-grpo-1", "small-repexp-1"]
    run = experiment.runs[1]
    assert (run.config.seed, run.config.steps, run.config.learner.advantage.beta) == (0, 60, 1.0)
    assert (run.config.checkpoint.every, run.config.checkpoint.keep, run.config.checkpoint.keep_every) == (20, 1, 20)
    assert [one.model for one in run.evaluations] == [f"{run.config.run_dir}@{step}" for step in (20, 40, 60)]
    often = experiment_of(file, "steps=[20, 30]", "common.checkpoint.learner_every=5").runs[0].config.checkpoint
    assert (often.every, often.keep_every, often.learner_every) == (10, 10, 5)


def test_what_a_command_is_given_is_what_was_checked(file: Path) -> None:
    experiment = experiment_of(file)
    experiment.out.mkdir()
    experiment.write_files()
    for run in experiment.runs:
        assert load_config(str(experiment.run_file(run))) == run.config
        assert train.main([str(experiment.run_file(run)), "--dry-run"]) == 0
    arguments = [str(experiment.evaluation_file), "--model", experiment.shared.model, "--out", "x"]
    config, _, _ = resolve_evaluation(values_of(parse_arguments(arguments)), source="x")
    assert config == experiment.evaluation.model_copy(update={"models": (experiment.shared.model,), "out": "x"})


def test_policies_are_evaluated_alike_whatever_a_method_changes(file: Path) -> None:
    experiment = experiment_of(file, "methods.repexp.sampling.temperature=0.7")
    assert experiment.runs[1].config.sampling.temperature == 0.7
    assert experiment.evaluation.sampling.temperature == 1.0


def test_evaluations_may_have_an_engine_that_no_run_has(file: Path) -> None:
    experiment = experiment_of(file, 'evaluation.rollout={engine="prefix-tree", kv_cache_gib=2}')
    assert (experiment.evaluation.rollout.engine, experiment.evaluation.rollout.kv_cache_gib) == ("prefix-tree", 2)
    assert all(run.config.rollout == experiment.shared.rollout for run in experiment.runs)
    assert experiment.evaluation.rollout.dtype == experiment.shared.rollout.dtype
    assert experiment.shared.rollout.engine != "prefix-tree"


def test_a_method_by_import_path_needs_no_change_of_the_project(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = ("--set", 'methods.mine.bonus.kind="tests.bonus.outside:AnswerCounts"')
    assert main([str(file), *mine, "--dry-run"]) == 0
    assert "mine: bonus.kind" in capsys.readouterr().out
    assert "no module" in refusal(capsys, str(file), "--set", 'methods.mine.bonus.kind="nowhere.at.all:Mine"', "--dry-run").lower()


def test_mistakes_are_refused_in_one_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(*settings: str) -> str:
        return refusal(capsys, str(file), "--dry-run", *(word for setting in settings for word in ("--set", setting)))

    assert "does not exist" in refusal(capsys, "nothing.toml")
    assert f"{file}: unknown key 'seedz'; did you mean 'seeds'?" in of("seedz=[1]")
    assert f"{file}, methods.repexp: unknown key 'bonus.ridgee'; did you mean 'bonus.ridge'?" in of("methods.repexp.bonus.ridgee=1")
    assert f"{file}, evaluation: unknown key 'rollout.engin'" in of('evaluation.rollout={engin="vllm"}')
    assert f"{file}, methods.repexp: bonus.ridge = -1" in of("methods.repexp.bonus.ridge=-1")
    assert f"{file}, common: unknown key 'lr'; did you mean 'learner.lr'?" in of("common.lr=1")
    assert "baseline = 'ppo' is not among the methods grpo, repexp" in of("baseline=ppo")
    assert "the name 'base' is the model before training" in of("methods.base.bonus.enabled=false")
    assert "the name 'a b'" in of("methods.a b.bonus.enabled=false")
    assert "seeds = [0, 0] must differ" in of("seeds=[0, 0]")
    assert "steps = [4, 2] must be increasing" in of("steps=[4, 2]")
    assert "asks for pass@8, but there are 4 samples" in of("evaluation.k=[1, 8]")
    assert "methods.grpo.seed is given by the comparison" in of("methods.grpo.seed=1")
    assert "common.checkpoint.keep is given by the comparison" in of("common.checkpoint.keep=9")
    assert "methods.grpo changes responses_per_prompt, and all methods get the same problems" in of("methods.grpo.responses_per_prompt=8")
    assert "methods.grpo changes task" in of("methods.grpo.task.arithmetic.sum_max=99")
    assert "--at-once 0" in refusal(capsys, str(file), "--dry-run", "--at-once", "0")
    assert "write it as http://HEAD:8265" in refusal(capsys, str(file), "--address", "head:6379")
    empty = tmp_path / "empty.toml"
    empty.write_text("seeds = [1]\n")
    assert f"{empty}: methods is empty" in refusal(capsys, str(empty), "--dry-run")
    assert not (tmp_path / "small").exists()


def test_the_directory_of_another_job_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "small").mkdir()
    (file.parent / "small" / "notes.txt").write_text("mine")
    assert "is not empty and holds no run: choose another with --set out=DIR" in refusal(capsys, str(file))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_method_of_every_comparison_can_be_trained(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load(CompareConfig, str(path), [f"out={tmp_path / 'out'}"])
    experiment = resolve(config, source=path.name)
    assert len(experiment.runs) == len(config.methods) * len(config.seeds) >= 2
    configs = [run.config for run in experiment.runs[: len(config.methods)]]
    assert all(isinstance(one, RunConfig) for one in configs)
    methods = [one.model_dump_json(exclude={"run_dir"}) for one in configs]
    assert len(set(methods)) == len(methods), "two methods are the same"
    experiment.out.mkdir()
    experiment.write_files()
    for run in experiment.runs[: len(config.methods)]:
        assert train.main([str(experiment.run_file(run)), "--dry-run"]) == 0


def test_the_quick_comparison_is_on_the_task_with_room() -> None:
    values = tomllib.loads((REPOSITORY / "configs/compare/quick.toml").read_text())
    asked = tomllib.loads((REPOSITORY / values["config"]).read_text())["task"]["arithmetic"]
    assert asked == {"sum_max": 99, "difference_max": 99} and "task" not in values["common"]
    assert {"grpo", "repexp", "default"} <= values["methods"].keys()


def test_the_quick_comparison_can_be_made_of_equations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    changes = ["config=configs/equations.toml", f"out={tmp_path / 'out'}"]
    experiment = resolve(load(CompareConfig, "configs/compare/quick.toml", changes), source="quick.toml")
    assert {run.config.task.arithmetic.equation_max for run in experiment.runs} == {12}
    assert {run.config.learner.decay_steps for run in experiment.runs} == {20}


@pytest.mark.parametrize("flag", [("--at-once", "2"), ("--python", "/bin/python")])
def test_a_flag_that_would_have_no_effect_is_refused(file: Path, capsys: pytest.CaptureFixture[str], flag: tuple[str, str]) -> None:
    assert "--at-once and --python go with --address" in refusal(capsys, str(file), *flag)


def test_text_of_a_method_is_text(file: Path) -> None:
    experiment = experiment_of(file, "common.task.parquet.id_column=2024", "methods.grpo.task.parquet.id_column=2024")
    assert experiment.shared.task.parquet.id_column == "2024"


def test_a_run_keeps_the_text_of_a_prompt_template(file: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    experiment = experiment_of(file, f"common.prompt.template={template}")
    experiment.out.mkdir()
    experiment.write_files()
    template.unlink()
    assert all(load_config(str(experiment.run_file(run))).prompt.template == "{{ messages }}" for run in experiment.runs)
