from __future__ import annotations

from pathlib import Path

import pytest

from buffers.records import Problem, VerdictStatus
from tasks.aime import Aime, AimeConfig
from tasks.base import TaskError
from tests.tasks.samples import write_rows

PROBLEM = Problem(task="aime", problem_id="aime/2024/000000", question="?", answer="25")


def rows(year: int) -> list[dict[str, object]]:
    return [{"problem": f"Question {i} of {year}?", "answer": f"{i:03d}"} for i in range(30)]


@pytest.mark.parametrize("names", [("2024.parquet", "2025.jsonl"), ("data/train-00000-of-00001.parquet", "test.jsonl")])
def test_years_are_the_splits_in_our_layout_and_in_the_hubs(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, year in zip(names, (2024, 2025), strict=True):
        write_rows(tmp_path / name, rows(year))
    task = Aime(AimeConfig(path=str(tmp_path)))
    for split, year in (("dev", 2024), ("test", 2025)):
        problems = list(task.problems(split))
        assert [problem.problem_id for problem in problems] == [f"aime/{year}/{i:06d}" for i in range(30)]
        assert problems[7] == Problem(task="aime", problem_id=f"aime/{year}/000007", question=f"Question 7 of {year}?", answer="7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:-1], "29 rows, and AIME 2024's has 30"),
        (
            lambda found: [*found[:3], found[3] | {"answer": "1000"}, *found[4:]],
            "row 3: column 'answer' is no integer from 0 to 999: '1000'",
        ),
        (lambda found: [*found[:3], found[3] | {"answer": "x"}, *found[4:]], "row 3: column 'answer' is no integer from 0 to 999: 'x'"),
    ],
)
def test_other_data_are_refused(tmp_path: Path, change, message: str) -> None:
    write_rows(tmp_path / "2024.jsonl", change(rows(2024)))
    with pytest.raises(TaskError, match=message.replace("(", r"\(")):
        Aime(AimeConfig(path=str(tmp_path))).problems("dev")


def test_there_is_nothing_to_train_on() -> None:
    with pytest.raises(TaskError, match="no split 'train', only dev, test: AIME is for evaluation; train on math or dapo-math"):
        Aime(AimeConfig()).problems("train")


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"\boxed{025}", VerdictStatus.CORRECT),
        (r"\boxed{5^2}", VerdictStatus.CORRECT),
        (r"\boxed{25^\circ}", VerdictStatus.CORRECT),
        (r"\boxed{26}", VerdictStatus.INCORRECT),
        (r"\boxed{-25}", VerdictStatus.MALFORMED),
        (r"\boxed{2500}", VerdictStatus.MALFORMED),
        (r"\boxed{\frac{25}{2}}", VerdictStatus.MALFORMED),
        (r"\boxed{25, 26}", VerdictStatus.MALFORMED),
        ("I could not find it at all", VerdictStatus.NO_ANSWER),
    ],
)
def test_answer_that_is_no_integer_up_to_999_is_malformed(response: str, status: VerdictStatus) -> None:
    assert Aime(AimeConfig()).verify(PROBLEM, response).status is status
