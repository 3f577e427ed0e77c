"""The paper's runs: each file of configs/paper is what docs/reproducing.md says, and its job accepts it offline."""

from __future__ import annotations

import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobs import compare, explore, train
from jobs.compare_config import CompareConfig
from jobs.comparison.experiment import resolve
from jobs.config import RunConfig, load_config
from jobs.configuration.files import load
from jobs.explore_config import ExploreConfig
from jobs.plan import UNKNOWN
from tasks.registry import make_task

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs/paper"
PAGE = (ROOT / "docs/reproducing.md").read_text()
MAINS = {"train": train.main, "compare": compare.main, "explore": explore.main}
FILES = sorted(PAPER.glob("*/*.toml"))
TRAINED = {"math": 1, "gsm8k": 1, "dapo": 2}
"""By training file: its column of the page's table."""
NUM_TEST = {"math": ("test", 4500), "gsm8k": ("test", 807), "aime": ("dev", 30)}
INFERENCE = {"math": (6400, 512, 1.0), "gsm8k": (6400, 512, 1.0), "mbpp-plus": (6400, 768, 0.95), "game24": (6400, 512, 1.0)} | {
    "aime": (8192, 8192, 1.0)
}
"""By file: pool, longest response and top-p (arXiv:2510.11686, appendix B.1)."""
MODELS = re.findall(r"^\| [^|]+ \| `([\w.-]+/[\w.-]+)`", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def in_the_clone_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a dry run asks no network")

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


def trained(name: str) -> RunConfig:
    return load_config(f"configs/paper/train/{name}.toml")


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return list(config) if isinstance(config, tuple) else config


def page_table() -> dict[str, list[Any]]:
    """The values of the page's table of training, by key: those of MATH and GSM8K, and those of DAPO."""
    section = PAGE.partition("\n## Training\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \| \S", section, re.MULTILINE)
    return {key: [tomllib.loads(f"value = {text.strip()}")["value"] for text in texts] for key, *texts in rows}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_file_is_planned_by_its_job(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert MAINS[file.parent.name]([str(file.relative_to(ROOT)), "--dry-run"]) == 0
    assert UNKNOWN in capsys.readouterr().out


def test_the_files_are_those_of_the_page() -> None:
    assert [file.stem for file in FILES if file.parent.name == "train"] == sorted(TRAINED)
    assert [file.stem for file in FILES if file.parent.name == "compare"] == sorted(NUM_TEST)
    assert [file.stem for file in FILES if file.parent.name == "explore"] == sorted(INFERENCE)


@pytest.mark.parametrize("name", TRAINED)
def test_training_has_the_hyper_parameters_of_the_page(name: str) -> None:
    table = page_table()
    assert len(table) > 30
    said = {key: values[TRAINED[name] - 1] for key, values in table.items()}
    assert {key: value_of(trained(name), key) for key in said} == said


def test_training_files_differ_in_their_task_and_its_lengths_only() -> None:
    math, gsm8k = (trained(name).model_dump() for name in ("math", "gsm8k"))
    assert {key for key in math if math[key] != gsm8k[key]} == {"run_dir", "task"}


@pytest.mark.parametrize("name", NUM_TEST)
def test_a_comparison_is_grpo_repexp_and_unlikeliness_over_three_seeds(name: str) -> None:
    file = f"configs/paper/compare/{name}.toml"
    config = load(CompareConfig, file)
    experiment = resolve(config, source=file)
    asked = config.evaluation
    assert (asked.split, asked.problems, asked.samples) == (*NUM_TEST[name], 256)
    assert asked.k == tuple(2**power for power in range(9))
    assert (experiment.evaluation.sampling.temperature, experiment.evaluation.sampling.top_p) == (1.0, 1.0)
    assert {(run.method, run.seed) for run in experiment.runs} == {
        (method, seed) for method in ("grpo", "repexp", "unlikeliness") for seed in (41, 42, 43)
    }
    base = experiment.shared.model_dump(exclude={"run_dir", "checkpoint"})
    changed = {"grpo": (False, 0.0), "repexp": (True, 0.0), "unlikeliness": (False, 0.25)}
    for run in experiment.runs:
        enabled, unlikeliness = changed[run.method]
        expected = base | {"seed": run.seed, "bonus": base["bonus"] | {"enabled": enabled}}
        expected["learner"] = base["learner"] | {"advantage": base["learner"]["advantage"] | {"unlikeliness": unlikeliness}}
        assert run.config.model_dump(exclude={"run_dir", "checkpoint"}) == expected
        assert run.config.checkpoint.every == trained("dapo" if name == "aime" else name).checkpoint.every


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.parametrize("model", MODELS)
def test_inference_time_has_the_settings_of_the_paper_for_each_of_its_models(name: str, model: str) -> None:
    config = load(ExploreConfig, f"configs/paper/explore/{name}.toml", [f"model={model}"])
    assert (config.pool, config.sampling.max_response_tokens, config.sampling.top_p) == INFERENCE[name]
    assert (config.selection.dim, config.selection.ridge, config.selection.center) == (512, 1.0, "pool")
    assert (config.sampling.temperature, config.sampling.top_k, config.selection.quality) == (1.0, 0, "none")


def test_the_page_lists_the_models_of_the_paper() -> None:
    assert len(MODELS) == 10
    assert "Qwen/Qwen2.5-14B-Instruct" in MODELS


def test_the_page_writes_the_puzzles_that_its_run_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(ExploreConfig, "configs/paper/explore/game24.toml")
    code = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code[0], {})
    problems = list(make_task(config.task).problems(config.split))
    assert len(problems) == len({problem.question for problem in problems}) == 1362
