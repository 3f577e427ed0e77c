from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from jobs.config import RunConfig
from jobs.configuration.files import all_keys
from tasks.arithmetic import ArithmeticConfig, ArithmeticWeights, QuestionKind
from tasks.base import Problem
from tasks.config import MIXTURE, PATH_KEYS, PartConfig, TaskConfig, TaskSections
from tasks.puzzles.number_puzzle import Puzzle
from tasks.registry import TASKS, make_task
from tasks.rewards import RewardConfig

NAMES = (*TASKS, MIXTURE)
EXPECTED = json.loads((Path(__file__).parent / "expected" / "task_config.json").read_text())


def config_of(name: str) -> TaskConfig:
    """A task whose files, if it has any, are not there."""
    sections = {section: {"path": "/nowhere"} for section in ("countdown", "game24", "gsm8k", "parquet")}
    return TaskConfig.model_validate({"name": name, **sections, "mixture": {"parts": {"arithmetic": {}}}})


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model`, and all sections below it."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def test_every_known_name_is_a_task_of_that_name_with_a_section() -> None:
    assert all(make_task(config_of(name)).name == name for name in NAMES)
    assert {name.replace("-", "_") for name in TASKS} == TaskSections.model_fields.keys() - {"options"}
    assert all(name.replace("-", "_") in known.keys for name, known in TASKS.items())


def test_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match=r"name\n.*did you mean 'arithmetic'"):
        TaskConfig(name="aritmetic")


def test_keys_and_their_defaults_are_what_they_were() -> None:
    """The file was written before each task got its configuration: runs and scripts rely on these keys."""
    new = {"task.options", "task.mixture.parts.LABEL.options"}
    assert set(all_keys(RunConfig)) >= {*EXPECTED["keys"], *new}
    assert {key for key in all_keys(RunConfig) if key.startswith("task.")} == {*EXPECTED["keys"], *new}


@pytest.mark.parametrize("case", sorted(EXPECTED["given"]))
def test_configuration_is_resolved_as_before(case: str) -> None:
    resolved = TaskConfig.model_validate(EXPECTED["given"][case]).model_dump(mode="json")
    assert resolved.pop("options") == {}
    assert resolved == EXPECTED["resolved"][case]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"mbpp-plus"}))  # which runs programs
def test_task_that_has_a_verifier_judges_without_data_in_another_process(name: str) -> None:
    task = pickle.loads(pickle.dumps(make_task(config_of(name))))
    puzzle = Puzzle(numbers=(3, 4), target=7, must_use_all=True)
    asks, right, right_too, wrong = "3 + 4?", "7", "7.0", "8"
    if name in ("countdown", "game24"):
        asks, right, right_too, wrong = puzzle.question, "3 + 4", "(3+4) = 7", "4 - 3"
    problem = Problem(task="arithmetic" if name == "mixture" else name, problem_id="1", question=asks, answer=right)
    assert task.has_verifier and 0 < task.deadline_s <= 60
    assert [task.verify(problem, response).reward for response in (right, wrong, "")] == [1.0, 0.0, 0.0]
    assert [task.final_answer(problem, response) for response in (right_too, wrong, "")] == [right, wrong, None]
    assert task.prompt(problem)[-1]["content"].startswith(asks)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_making_a_task_takes_no_time(name: str) -> None:
    """Every verifier process makes one. The drawn puzzles and sums are looked at, one of each split."""
    config = TaskConfig.model_validate({"name": name, "mixture": {"parts": {"arithmetic": {}, "countdown": {}, "game24": {}}}})
    started = time.process_time()
    make_task(config)
    assert time.process_time() - started < 1.0


def test_weights_are_named_as_the_kinds_are() -> None:
    assert set(ArithmeticWeights.model_fields) == set(QuestionKind)


def test_seed_reaches_the_task() -> None:
    assert next(make_task(TaskConfig(seed=1)).problems("train")) != next(make_task(TaskConfig(seed=2)).problems("train"))


@pytest.mark.parametrize("model", [*sections(TaskConfig), PartConfig, RewardConfig])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "arithmetic"}, "nam"),
        ({"arithmetic": {"weights": dict.fromkeys(map(str, QuestionKind), 0)}}, "all weights are 0"),
        ({"arithmetic": {"weights": {"sum": -1}}}, "sum"),
        ({"arithmetic": {"weights": {"sum": float("inf")}}}, "sum"),
        ({"gsm8k": {"pathh": "x"}}, "pathh"),
        ({"parquet": {"verifier": "sympy"}}, "verifier"),
        ({"parquet": {"answer_column": None}}, 'verifier = "number" needs an answer_column, which is None'),
        ({"arithmetic": {"reverse_min_length": 5, "reverse_max_length": 4}}, "reverse_min_length 5 exceeds reverse_max_length 4"),
    ],
)
def test_config_is_refused_with_the_field_at_fault(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskConfig.model_validate(values)


def test_places_of_files_are_known_by_their_keys() -> None:
    """They may differ when a run is resumed: the data are the same wherever they lie."""
    assert {"task.gsm8k.path", "task.math.path", "task.dapo_math.amc.path", "task.parquet.path"} <= set(PATH_KEYS)


def test_config_travels_to_other_processes_and_through_json() -> None:
    config = TaskConfig(seed=3, arithmetic=ArithmeticConfig(sum_max=99))
    assert pickle.loads(pickle.dumps(config)) == config
    assert TaskConfig.model_validate_json(config.model_dump_json()) == config


def test_tasks_are_made_without_torch_arrow_and_sympy() -> None:
    heavy = ("torch", "pyarrow", "ray", "vllm", "sympy", "math_verify", "huggingface_hub", "reasoning_gym")
    code = "import sys, tasks.stream; from tasks.config import TaskConfig; from tasks.registry import TASKS, make_task; "
    code += "parts = {'mixture': {'parts': {'arithmetic': {}, 'math': {}}}}; "
    code += "tasks = [make_task(TaskConfig.model_validate({'name': name, **parts})) for name in (*TASKS, 'mixture')]; "
    code += f"print([module for module in {heavy} if module in sys.modules])"
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    output = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.strip() == "[]"


def test_importing_the_configuration_loads_no_verifier_and_no_sandbox() -> None:
    """Every job imports the configuration, and `jobs.train --dry-run` does little else."""
    code = "import sys, tasks.config; print([name for name in sys.modules if name in {'sympy', 'pyarrow', 'torch'} "
    code += "or name.startswith(('tasks.mathematics.', 'tasks.programs.'))])"
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.strip() == "['tasks.mathematics.math_task']"
