from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from buffers.records import Problem, VerdictStatus
from tasks.base import NeedsWarmUp, TaskError
from tasks.config import TaskConfig
from tasks.data.splits import MATH_500, question_digest
from tasks.hendrycks_math import NUM_ROWS, WITHOUT_ANSWER, HendrycksMath, MathConfig
from tasks.registry import make_task
from tests.tasks.samples import Rows, write_rows

NOWHERE = HendrycksMath(MathConfig(path="/nowhere"))
PROBLEM = Problem(task="math", problem_id="math/test/000000", question="How much?", answer=r"\frac{1}{2}")


def at(path: Path) -> HendrycksMath:
    return HendrycksMath(MathConfig(path=str(path)))


def hub_rows(stem: str) -> Rows:
    """As many as MATH has: the answer to question i is i, in a worked solution."""
    empty = WITHOUT_ANSWER[stem]
    return [
        {
            "problem": f"Question {i} of {stem}?",
            "solution": f"It is \\boxed{{9}}, no, $\\boxed{{{'' if i in empty else i}}}$.",
            "level": "1",
        }
        for i in range(NUM_ROWS[stem])
    ]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("math")
    for stem in NUM_ROWS:
        write_rows(directory / "data" / f"{stem}-00000-of-00001.parquet", hub_rows(stem))
    return directory


def refusal(task: HendrycksMath, split: str) -> str:
    with pytest.raises(TaskError) as caught:
        task.problems(split)
    message = str(caught.value)
    assert message.startswith("task math: ") and "\n" not in message
    return message


def test_splits_of_the_hubs_files_have_the_papers_sizes(hub: Path) -> None:
    sizes = {split: len(list(at(hub).problems(split))) for split in ("train", "dev", "test", "test_full")}
    assert sizes == {"train": 7498, "dev": 500, "test": 4500, "test_full": 5000}


def test_dev_and_test_divide_the_test_set_under_the_same_ids(hub: Path) -> None:
    dev, test, full = ([problem.problem_id for problem in at(hub).problems(split)] for split in ("dev", "test", "test_full"))
    assert sorted(dev + test) == full and len(set(full)) == 5000
    assert dev[0] == f"math/test/{min(MATH_500.values()):06d}"


def test_answer_is_the_last_box_of_the_solution_and_rows_without_are_left_out(hub: Path) -> None:
    problems = list(at(hub).problems("train"))
    assert all(problem.answer == str(int(problem.problem_id[-6:])) for problem in problems)
    assert not {f"math/train/{index:06d}" for index in WITHOUT_ANSWER["train"]} & {problem.problem_id for problem in problems}


def test_local_file_may_lack_the_rows_without_answer_and_say_which_rows_it_has(hub: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": problem.question, "answer": problem.answer, "index": int(problem.problem_id[-6:])}
        for problem in at(hub).problems("train")
    ]
    write_rows(tmp_path / "train.parquet", rows[::-1])
    assert list(at(tmp_path).problems("train")) == list(at(hub).problems("train"))
    write_rows(tmp_path / "train.parquet", rows[:-1])
    assert "7497 rows, and MATH's has 7500" in refusal(at(tmp_path), "train")


def test_question_of_no_test_set_is_refused_in_a_file_of_math_500(tmp_path: Path) -> None:
    write_rows(tmp_path / "paper_dev.parquet", [{"prompt": f"Question {i}?", "answer": "1"} for i in range(500)])
    assert "row 0: its question is none of MATH-500's, or there twice" in refusal(at(tmp_path), "dev")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", "no split 'validation', only train, dev, test, test_full"),
        ("train", "no file train.parquet in /nowhere: put it there, or set task.math.path"),
        ("dev", "no file paper_dev.parquet in /nowhere"),
        ("test", "no file test.parquet in /nowhere"),
    ],
)
def test_what_is_missing_is_named(split: str, message: str) -> None:
    assert message in refusal(NOWHERE, split)


def test_prompt_ends_in_the_published_instruction() -> None:
    assert NOWHERE.prompt(PROBLEM)[0]["content"] == "How much?\nLet's think step by step and put the final answer within \\boxed{}."
    assert HendrycksMath(MathConfig(instruction="")).prompt(PROBLEM)[0]["content"] == "How much?"


def test_verifier_process_needs_no_data_and_is_warmed_up() -> None:
    task = pickle.loads(pickle.dumps(make_task(TaskConfig(name="math", math=MathConfig(path="/nowhere")))))
    assert isinstance(task, NeedsWarmUp) and task.deadline_s == 5.0
    assert task.verify(PROBLEM, r"\boxed{0.5}").status is VerdictStatus.CORRECT
    assert task.final_answer(PROBLEM, r"\boxed{\dfrac12\text{ cm}}") == "1/2"


def test_local_data_are_math_and_math_500(math_data: Path) -> None:
    task = at(math_data)
    train, dev = list(task.problems("train")), list(task.problems("dev"))
    assert (len(train), len(dev)) == (7498, 500)
    assert {question_digest(problem.question) for problem in dev} == set(MATH_500)
    other = math_data.parent / "math500" / "test.parquet"
    if other.is_file():
        assert list(at(other).problems("dev")) == dev
