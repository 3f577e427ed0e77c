"""DAPO-Math on data made here, with a thousandth of the questions leaked from made-up test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buffers.records import VerdictStatus
from tasks.aime import AimeConfig
from tasks.base import TaskError
from tasks.dapo_math import AmcConfig, DapoMath, DapoMathConfig, selected_rows
from tasks.hendrycks_math import NUM_ROWS, MathConfig
from tests.tasks.samples import write_rows

NUM_TRAIN = 300


def made_question(stem: str, index: int) -> str:
    return f"This is question ${index}$ of the test set of {stem}, and long enough to be recognised at the start of another."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dapo")
    math = [{"problem": made_question("MATH", i), "solution": f"\\boxed{{{i}}}"} for i in range(NUM_ROWS["test"])]
    write_rows(directory / "math" / "test.parquet", math)
    write_rows(directory / "amc" / "amc.jsonl", [{"question": made_question("AMC", i), "answer": "1"} for i in range(40)])
    for year in (2024, 2025):
        write_rows(directory / "aime" / f"{year}.jsonl", [{"problem": made_question(f"AIME {year}", i), "answer": i} for i in range(30)])
    leaked = {5: made_question("MATH", 17), 6: made_question("AMC", 3), 7: made_question("AIME 2025", 29).replace("$29$", "\\(29 \\)")}
    leaked[8] = made_question("MATH", 4000) + " Please give m + n."
    rows = [{"prompt": leaked.get(i, f"Question {i} of DAPO?"), "solution": str(i), "source_prompt": "x"} for i in range(NUM_TRAIN)]
    write_rows(directory / "dapo_math" / "en" / "train-00000-of-00001.parquet", rows)
    return directory


def task_at(data: Path, **fields: Any) -> DapoMath:
    return DapoMath(
        DapoMathConfig(path=str(data / "dapo_math"), amc=AmcConfig(path=str(data / "amc")), **fields),
        MathConfig(path=str(data / "math")),
        AimeConfig(path=str(data / "aime")),
    )


def test_questions_of_test_sets_are_taken_out_whatever_their_spelling(data: Path) -> None:
    problems = list(task_at(data, num_train=NUM_TRAIN - 4).problems("train"))
    assert [problem.answer for problem in problems] == [str(i) for i in range(NUM_TRAIN) if i not in (5, 6, 7, 8)]
    assert problems[0].problem_id == "dapo-math/train/000000"


def test_selection_is_a_function_of_the_seed_and_grows_with_its_size(data: Path) -> None:
    chosen = {
        (seed, size): {problem.problem_id for problem in task_at(data, num_train=size, selection_seed=seed).problems("train")}
        for seed in (0, 1)
        for size in (50, 100)
    }
    assert {size: len(chosen[0, size]) for size in (50, 100)} == {50: 50, 100: 100}
    assert chosen[0, 50] < chosen[0, 100] and chosen[0, 100] != chosen[1, 100]


def test_rows_that_a_seed_selects_never_change() -> None:
    """The literal pins the selection: another one trains on other problems under the same configuration."""
    assert selected_rows(1000, {3}, seed=0, num_wanted=8) == [46, 51, 61, 390, 482, 671, 913, 977]
    assert selected_rows(10, {3}, seed=0, num_wanted=100) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_dev_and_test_are_aimes(data: Path) -> None:
    task = task_at(data)
    dev, test = list(task.problems("dev")), list(task.problems("test"))
    assert (dev[0].problem_id, test[0].problem_id) == ("aime/2024/000000", "aime/2025/000000")
    assert task.verify(dev[5], r"\boxed{1/2}").status is VerdictStatus.MALFORMED
    assert task.verify(next(iter(task_at(data, num_train=10).problems("train"))), r"\boxed{1/2}").status is VerdictStatus.INCORRECT


def test_too_few_rows_and_missing_test_sets_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"296 rows without those of test sets, fewer than task\.dapo_math\.num_train = 4096"):
        task_at(data).problems("train")
    for name, message in (
        ("math", "task math: no file test.parquet"),
        ("aime", "task aime: no file 2024.parquet"),
        ("amc", "no file amc.parquet"),
    ):
        elsewhere = tmp_path / name
        elsewhere.mkdir()
        for folder in data.iterdir():
            if folder.name != name:
                (elsewhere / folder.name).symlink_to(folder)
        (elsewhere / name).mkdir()
        with pytest.raises(TaskError, match=message):
            task_at(elsewhere, num_train=10).problems("train")
    with pytest.raises(TaskError, match="no split 'dev_full', only train, dev, test"):
        task_at(data).problems("dev_full")
