"""`python -m jobs.evaluate` up to the point where something is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate
from jobs.configuration.user_error import UserError
from jobs.directory.job_dir import CONFIG, LOCK
from jobs.evaluate import main, parse_arguments, pass_at_k, resolve, values_of
from jobs.evaluation_config import EvaluateConfig
from tests.jobs.evaluate_fixture import make_run


def resolved(*arguments: str) -> EvaluateConfig:
    options = parse_arguments(arguments)
    config, _, _ = resolve(values_of(options), source="command line", data=options.data)
    return config


@pytest.fixture
def runs(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs a, b (both of sums to 20) and c (of sums to 50) in ./runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, largest in (("a", 20), ("b", 20), ("c", 50)):
        settings: dict[str, Any] = {
            "task": {"name": "arithmetic", "arithmetic": {"sum_max": largest}},
            "sampling": {"max_response_tokens": 12},
            "rollout": {"engine": "transformers", "workers": 3 if name == "b" else 1},
        }
        make_run(tmp_path / "runs" / name, tiny_model, checkpoints=[10], settings=settings)
    return tmp_path / "runs"


def test_pass_at_k_keeps_its_public_name() -> None:
    assert evaluate.pass_at_k is pass_at_k
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)


def test_the_module_is_light_to_import() -> None:
    code = "import jobs.evaluate, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert not {"ray", "torch", "transformers", "vllm", "matplotlib"} & set(done.stdout.split())


def test_flags_set_keys_and_the_file_is_beneath_them(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('samples = 64\nproblems = 7\nmodels = ["smollm2-135m"]\n[task]\nname = "gsm8k"\n')
    config = resolved(str(file), "--samples", "8", "--k", "1,4", "--data", "somewhere", "--set", "seed=3")
    assert (config.samples, config.problems, config.k, config.seed) == (8, 7, (1, 4), 3)
    assert (config.task.name, config.task.gsm8k.path) == ("gsm8k", "somewhere")
    assert config.models == ("smollm2-135m",)


def test_a_run_brings_its_task_sampling_and_engine(runs: Path) -> None:
    config = resolved("--model", "a", "--samples", "8")
    assert config.task.arithmetic.sum_max == 20
    assert config.sampling.max_response_tokens == 12
    assert config.rollout.engine == "transformers"


def test_data_is_the_path_of_the_task_that_a_run_brings(runs: Path, tiny_model: str) -> None:
    make_run(runs / "own", tiny_model, checkpoints=[10], settings={"task": {"name": "parquet", "parquet": {"path": "old"}}})
    assert resolved("--model", "own", "--data", "new").task.parquet.path == "new"
    with pytest.raises(UserError, match=r"unknown key 'task\.arithmetic\.path'"):
        resolved("--model", "a", "--data", "new")


def test_what_is_said_beats_what_a_run_brings(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[sampling]\nmax_response_tokens = 30\n")
    config = resolved(str(file), "--model", "a", "--set", "task.arithmetic.sum_max=99")
    assert (config.sampling.max_response_tokens, config.sampling.max_prompt_tokens) == (30, None)
    assert config.task.arithmetic.sum_max == 99


def test_runs_that_agree_but_for_their_means_go_together_and_others_do_not(runs: Path) -> None:
    assert resolved("--model", "a", "--model", "b", "--model", "smollm2-135m").task.arithmetic.sum_max == 20
    with pytest.raises(UserError, match=r"a step 10 and c step 10 differ in task.arithmetic.sum_max \(20 -> 50\): choose one by --set"):
        resolved("--model", "a", "--model", "c")
    assert resolved("--model", "a", "--model", "c", "--set", "task.arithmetic.sum_max=30").task.arithmetic.sum_max == 30


def test_a_dry_run_names_the_policies_and_starts_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "a", "--model", "smollm2-135m", "--base-model", "smollm2-135m", "--out", "out", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "model: a step 10: the checkpoint in" in text
    assert "likelihood under: smollm2-135m" in text
    assert "x 256 samples of at most 12 tokens" in text
    assert not Path("out").exists()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_mistakes_are_refused_in_one_line(runs: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", tiny_model, "--out", "out")
    assert "asks for pass@512, but there are 256 samples" in refusal(capsys, *model, "--k", "1,512")
    assert "k = [4, 2] must be increasing" in refusal(capsys, *model, "--k", "4,2")
    assert "nor a hub id" in refusal(capsys, "--model", "quickstart", "--out", "out")
    assert "nor a hub id" in refusal(capsys, *model, "--base-model", "runs/nothing")
    assert "has no policy of step 11" in refusal(capsys, "--model", "a@11", "--out", "out")
    assert "is there twice" in refusal(capsys, *model, "--model", tiny_model)
    assert "no split 'nowhere'" in refusal(capsys, *model, "--split", "nowhere")
    assert "has no end" in refusal(capsys, *model, "--problems", "0")
    assert "samples" in refusal(capsys, *model, "--samples", "0")
    assert "task = 'gsm8k'" in refusal(capsys, *model, "--set", "task=gsm8k")
    assert "did you mean 'sampling.temperature'" in refusal(capsys, *model, "--set", "sampling.temprature=1")
    assert "does not exist" in refusal(capsys, "nothing.toml")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "?", "answer": "1"}\n')
    ungraded = ("--task", "parquet", "--data", str(rows), "--set", "task.parquet.verifier=none")
    assert "task parquet has no verifier, and evaluation needs verdicts" in refusal(capsys, *model, *ungraded)
    assert not Path("out").exists()


def test_the_directory_of_another_job_is_refused(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / LOCK).touch()
    (other / CONFIG).write_text(resolved("--model", tiny_model, "--samples", "8").model_dump_json())
    line = refusal(capsys, "--model", tiny_model, "--samples", "16", "--out", str(other))
    assert "belongs to a run with another configuration: samples (8 -> 16)" in line
    assert "choose another with --out DIR" in line


@pytest.mark.parametrize("engine", ["prefix-tree", "transformers"])
def test_an_engine_that_samples_from_the_whole_distribution_is_asked_for_nothing_else(
    engine: str, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_model, "--out", str(tmp_path / "out"), "--set", f"rollout.engine={engine}", "--set", "sampling.top_k=3"]
    assert evaluate.main([*words, "--dry-run"]) == 2
    assert f'rollout.engine = "{engine}" samples from the whole distribution' in capsys.readouterr().err


def test_a_seed_is_not_negative(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--seed", "-1", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "seed" in capsys.readouterr().err
