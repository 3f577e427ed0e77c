"""What the flags of `jobs.explore` and `jobs.evaluate` set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from jobs import evaluate, explore
from jobs.config import RunConfig
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import ExploreConfig

DATED = "2026-11-29"


@pytest.fixture(params=[explore, evaluate], ids=["explore", "evaluate"])
def resolved(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Any:
    """The configuration that a dry run prints, or the one line of its refusal."""

    def run(*arguments: str) -> Any:
        code = request.param.main([*arguments, "--dry-run"])
        said = capsys.readouterr()
        if code:
            (line,) = said.err.splitlines()
            assert (code, line.partition(":")[0]) == (2, "error")
            return line
        return json.JSONDecoder().raw_decode(said.out)[0]

    return run


TASKS = ["gsm8k", "math", "aime", "dapo-math", "mbpp-plus", "countdown", "game24", "parquet"]


@pytest.mark.parametrize("task", TASKS)
def test_data_are_those_of_the_task_that_a_flag_names(resolved: Any, task: str) -> None:
    assert resolved("--task", task, "--data", "here/")["task"][task.replace("-", "_")]["path"] == "here"


@pytest.mark.parametrize("task", TASKS)
def test_data_are_those_of_the_task_that_a_file_or_an_override_names(resolved: Any, task: str, tmp_path: Path) -> None:
    section = task.replace("-", "_")
    file = tmp_path / "config.toml"
    file.write_text(f'[task]\nname = "{task}"\n[task.{section}]\npath = "old"\n')
    assert resolved(str(file), "--data", "new")["task"][section]["path"] == "new"
    assert resolved("--set", f"task.name={task}", "--data", "new")["task"][section]["path"] == "new"
    other = "gsm8k" if task == "parquet" else "parquet"
    config = resolved(str(file), "--task", other, "--data", "new")["task"]
    assert (config[other]["path"], config[section]["path"]) == ("new", "old")


def test_data_of_a_class_of_ones_own_are_its_option(resolved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "filed.py").write_text(
        "from tasks.base import Task\n\n\nclass Filed(Task):\n    name = 'filed'\n\n    def __init__(self, path: str) -> None:\n"
        "        self.path = path\n\n    def problems(self, split):\n        return iter(())\n\n"
        "    def verify(self, problem, response):\n        raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolved("--task", "filed:Filed", "--data", "rows")["task"]["options"] == {"path": "rows"}


@pytest.mark.parametrize("task", TASKS)
def test_an_override_comes_before_data_as_before_every_flag(resolved: Any, task: str) -> None:
    section = task.replace("-", "_")
    for override in (f"task.{section}.path=mine", f" task.{section}.path = mine"):
        assert resolved("--task", task, "--data", "other", "--set", override)["task"][section]["path"] == "mine"


@pytest.mark.parametrize("task", ["arithmetic", "reasoning-gym"])
def test_a_task_without_files_takes_no_data(resolved: Any, task: str) -> None:
    assert f"unknown key 'task.{task.replace('-', '_')}.path'" in resolved("--task", task, "--data", "here")


@pytest.mark.parametrize("value", [DATED, "2024", "true", "1e3", "nan"])
def test_a_flag_for_text_takes_any_text(resolved: Any, value: str) -> None:
    config = resolved("--out", value, "--split", value, "--task", "gsm8k", "--data", value)
    assert (config["out"], config["split"], config["task"]["gsm8k"]["path"]) == (value, value, value)


def test_flags_for_lists_and_numbers_take_these(resolved: Any) -> None:
    assert resolved("--seed", "7", "--problems", "0")["seed"] == 7
    assert "seed" in resolved("--seed", DATED)


def test_a_list_is_written_without_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main(["--select", "1,2", "--pool", "4", "--dry-run"]) == 0
    assert json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]["select"] == [1, 2]


@pytest.mark.parametrize("key", ["max_prompt_tokens=90", "temperature=0.7", "top_k=5"])
def test_one_key_of_a_section_leaves_the_others(resolved: Any, tmp_path: Path, key: str) -> None:
    (tmp_path / "mine.toml").write_text(f"[sampling]\n{key}\n")
    name, value = key.split("=")
    plain = resolved()
    for changed in (resolved("--set", f"sampling.{key}"), resolved(str(tmp_path / "mine.toml"))):
        assert changed == plain | {"sampling": plain["sampling"] | {name: json.loads(value)}}
    assert plain["sampling"]["max_response_tokens"] == 256


@pytest.mark.parametrize("kind", [RunConfig, ExploreConfig, EvaluateConfig])
def test_no_default_of_a_section_is_lost_where_one_of_its_keys_is_given(kind: type[BaseModel]) -> None:
    def check(section: BaseModel) -> None:
        assert section == type(section)(), f"{kind.__name__} has other defaults for its {type(section).__name__}: give them a class"
        for part in dict(section).values():
            if isinstance(part, BaseModel):
                check(part)

    check(kind())
