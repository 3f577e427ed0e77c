"""Countdown and the Game of 24: drawn puzzles, puzzles of files, and the verdicts on answers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.records import Problem, VerdictStatus
from tasks.base import Task, TaskError
from tasks.config import TaskConfig
from tasks.puzzles.exact_expression import parse
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.solver import solve
from tasks.registry import make_task
from tests.tasks.samples import write_rows

CORRECT, INCORRECT = VerdictStatus.CORRECT, VerdictStatus.INCORRECT
NO_ANSWER, MALFORMED = VerdictStatus.NO_ANSWER, VerdictStatus.MALFORMED
ROOT = Path(__file__).parents[3]


def countdown(*, seed: int = 0, **fields: Any) -> Task:
    return make_task(TaskConfig.model_validate({"name": "countdown", "seed": seed, "countdown": fields}))


def game24(*, seed: int = 0, **fields: Any) -> Task:
    return make_task(TaskConfig.model_validate({"name": "game24", "seed": seed, "game24": fields}))


def first(task: Task, split: str, num_problems: int) -> list[Problem]:
    return list(islice(task.problems(split), num_problems))


def puzzle(problem: Problem) -> Puzzle:
    return Puzzle.of(problem.question)


def bare(problem: Problem) -> tuple[tuple[int, ...], int]:
    """The puzzle whatever the order of its numbers."""
    return tuple(sorted(puzzle(problem).numbers)), puzzle(problem).target


# ---- drawn puzzles ----


@pytest.mark.parametrize("make", [countdown, game24])
def test_streams_of_equal_seeds_are_equal_and_of_others_are_not(make: Any) -> None:
    assert first(make(seed=1), "train", 30) == first(make(seed=1), "train", 30) != first(make(seed=2), "train", 30)


@pytest.mark.parametrize("make", [countdown, game24])
def test_any_problem_of_a_stream_is_read_without_those_before_it(make: Any) -> None:
    task = make()
    assert [task.problem("dev", index) for index in (0, 7, 29)] == [first(task, "dev", 30)[index] for index in (0, 7, 29)]
    assert task.problem("train", 10**12).problem_id.startswith(f"{task.name}/train/1000000000000-")


@pytest.mark.parametrize("make", [countdown, game24])
def test_own_solutions_are_correct_and_ids_never_repeat(make: Any) -> None:
    task = make()
    problems = [problem for split in ("train", "dev", "test") for problem in first(task, split, 60)]
    assert len({problem.problem_id for problem in problems}) == len(problems)
    for problem in problems:
        assert task.verify(problem, problem.answer).status is CORRECT
        assert task.verify(problem, f"The answer is ${problem.answer} = {puzzle(problem).target}$.").status is CORRECT


@pytest.mark.parametrize("make", [countdown, game24])
def test_splits_share_no_puzzle_whatever_the_seeds(make: Any) -> None:
    puzzles = {
        split: {bare(problem) for seed in (0, 1) for problem in first(make(seed=seed), split, number)}
        for split, number in (("train", 200), ("dev", 50), ("test", 50))
    }
    assert not puzzles["train"] & puzzles["test"] and not puzzles["train"] & puzzles["dev"] and not puzzles["dev"] & puzzles["test"]


def test_split_of_a_puzzle_is_that_of_its_numbers_in_any_order() -> None:
    one, other = Puzzle(numbers=(1, 2, 3), target=6, must_use_all=True), Puzzle(numbers=(3, 1, 2), target=6, must_use_all=False)
    assert one.split(0.1) == other.split(0.1)
    shares = Counter(Puzzle(numbers=(n, 2, 3), target=6, must_use_all=True).split(0.2) for n in range(1, 2001))
    assert [shares[split] / 2000 for split in ("train", "dev", "test")] == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


@pytest.mark.parametrize(
    ("name", "problem_id"), [("countdown", "countdown/train/000000-77358f40"), ("game24", "game24/train/000000-d154bb02")]
)
def test_first_problem_is_the_same_in_every_process(name: str, problem_id: str) -> None:
    """The literals pin the streams: changing them changes what a resumed run and a test score mean."""
    code = (
        "from tasks.config import TaskConfig; from tasks.registry import make_task;"
        f"print(make_task(TaskConfig(name='{name}')).problem('train', 0).problem_id)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1"}
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.strip() == make_task(TaskConfig(name=name)).problem("train", 0).problem_id  # type: ignore[arg-type,attr-defined]
    assert output.strip() == problem_id


def test_countdown_is_as_hard_as_asked() -> None:
    ranges = {"min_numbers": 2, "max_numbers": 5, "number_min": 3, "number_max": 30, "target_min": 40, "target_max": 50}
    task = countdown(**ranges, operations=["+", "*"], use_all=True)
    sizes = Counter[int]()
    for problem in first(task, "train", 200):
        posed = puzzle(problem)
        sizes[len(posed.numbers)] += 1
        assert problem.meta["kind"] == f"{len(posed.numbers)} numbers"
        assert all(3 <= number <= 30 for number in posed.numbers) and 40 <= posed.target <= 50 and posed.target not in posed.numbers
        assert posed.must_use_all and "exactly once" in problem.question
        assert sorted(parse(problem.answer).numbers) == sorted(posed.numbers)
        assert not set("-/") & set(problem.answer)
    assert set(sizes) == {2, 3, 4, 5} and min(sizes.values()) > 25


def test_game_of_24_is_as_hard_as_asked() -> None:
    problems = first(game24(number_max=20, target=36), "test", 40)
    assert {puzzle(problem).target for problem in problems} == {36}
    assert max(max(puzzle(problem).numbers) for problem in problems) > 13
    assert all(len(puzzle(problem).numbers) == 4 for problem in problems)


def test_range_without_puzzles_is_refused_at_once() -> None:
    with pytest.raises(TaskError, match=r"no puzzle for split 'train'.*widen the ranges"):
        countdown(min_numbers=2, max_numbers=2, number_max=2, target_min=90)


@pytest.mark.parametrize("make", [countdown, game24])
def test_unknown_split_and_negative_index_are_refused(make: Any) -> None:
    with pytest.raises(TaskError, match="no split 'validation', only train, dev, test"):
        make().problems("validation")
    with pytest.raises(ValueError, match="-1"):
        make().problem("train", -1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"countdown": {"min_numbers": 5}}, "min_numbers 5 exceeds max_numbers 4"),
        ({"countdown": {"number_min": 100}}, "number_min 100 exceeds number_max 99"),
        ({"countdown": {"target_max": 9}}, "target_min 10 exceeds target_max 9"),
        ({"countdown": {"max_numbers": 7}}, "max_numbers"),
        ({"countdown": {"operations": []}}, "at least one of"),
        ({"countdown": {"operations": ["+", "+"]}}, "none twice"),
        ({"countdown": {"operations": ["**"]}}, "operations"),
        ({"countdown": {"held_out_share": 0.5}}, "held_out_share"),
        ({"game24": {"wording": "published", "target": 25}}, 'target 25 with wording = "published"'),
        ({"game24": {"number_max": 0}}, "number_max"),
    ],
)
def test_config_is_refused_with_the_field_at_fault(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig.model_validate(section)


# ---- how they are put ----


def test_question_and_instruction_are_one_message() -> None:
    task = countdown(instruction="Just the expression!")
    problem = Problem(task="countdown", problem_id="1", question=Puzzle(numbers=(3, 4), target=7, must_use_all=False).question, answer="")
    assert task.prompt(problem) == [
        {
            "role": "user",
            "content": "Using the numbers [3, 4], write an arithmetic expression that equals 7. "
            "Use only + - * / and parentheses, and use each number at most once.\nJust the expression!",
        }
    ]


def test_published_wordings_pose_the_same_puzzle() -> None:
    problem = first(game24(), "train", 1)[0]
    (message,) = game24(wording="published").prompt(problem)
    assert message["content"].startswith("Use numbers and basic arithmetic operations (+ - * /) to obtain 24.\nInput: 4 4 6 8\nAnswer: ")
    assert message["content"].endswith(f"\nInput: {' '.join(map(str, puzzle(problem).numbers))}\n")
    problem = first(countdown(), "train", 1)[0]
    (message,) = countdown(wording="published").prompt(problem)
    posed = puzzle(problem)
    assert message["content"].startswith(f"Using the numbers {list(posed.numbers)}, create an equation that equals {posed.target}. You can")
    assert "<answer> (1 + 2) / 3 </answer>" in message["content"]


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=16), st.integers(1, 10**9), st.booleans())
def test_question_is_the_puzzle(numbers: list[int], target: int, must_use_all: bool) -> None:
    posed = Puzzle(numbers=tuple(numbers), target=target, must_use_all=must_use_all)
    assert Puzzle.of(posed.question) == posed


def test_other_questions_are_no_puzzles() -> None:
    with pytest.raises(ValueError, match="no number puzzle: 'What is 3"):
        Puzzle.of("What is 3 + 4?")


# ---- verdicts ----

AT_MOST = Puzzle(numbers=(25, 5, 5, 3), target=28, must_use_all=False)
EXACTLY = Puzzle(numbers=(3, 3, 8, 8), target=24, must_use_all=True)


@pytest.mark.parametrize(
    ("posed", "response", "status", "detail"),
    [
        (AT_MOST, "25 + 3", CORRECT, None),
        (AT_MOST, "5 * 5 + 3 = 28", CORRECT, None),
        (AT_MOST, "<answer>25 × (5 ÷ 5) + 3</answer>", CORRECT, None),
        (AT_MOST, "-5 + 25 + 5 + 3", CORRECT, None),
        (AT_MOST, "25.0 + 03", CORRECT, None),
        (AT_MOST, "25 + 5", INCORRECT, "equals 30, not 28"),
        (AT_MOST, "5 + 5 + 5 + 5 + 5 + 3", INCORRECT, "uses 5 5 times, given twice"),
        (AT_MOST, "25 + 3 * 3 / 3", INCORRECT, "uses 3 3 times, given once"),
        (AT_MOST, "28", INCORRECT, "uses 28, which is not given"),
        (AT_MOST, "The answer is 28.", INCORRECT, "uses 28, which is not given"),
        (AT_MOST, "25 + 3.5", INCORRECT, "uses 7/2, which is not given; equals 57/2, not 28"),
        (AT_MOST, "25 / (5 - 5) + 3", INCORRECT, "divides by zero"),
        (AT_MOST, "I cannot.", NO_ANSWER, None),
        (AT_MOST, "", NO_ANSWER, None),
        (AT_MOST, "25 + 3!", MALFORMED, "no expression: '!' is no part of an expression"),
        (AT_MOST, "<answer>twenty-eight</answer>", MALFORMED, "no expression: 't' is no part of an expression"),
        (AT_MOST, "<answer>25 + </answer>", MALFORMED, "no expression: it ends where a number is due"),
        (AT_MOST, "9**9**9", MALFORMED, "no expression: '*' where a number is due"),
        (EXACTLY, "8 / (3 - 8 / 3)", CORRECT, None),
        (EXACTLY, r"\boxed{\frac{8}{3 - \frac{8}{3}}}", CORRECT, None),
        (EXACTLY, "3 * 8", INCORRECT, "leaves out 3, 8"),
        (EXACTLY, "3 * 8 + 1 - 1", INCORRECT, "uses 1, which is not given; leaves out 3, 8"),
        (EXACTLY, "8 * 3 + 8 - 3", INCORRECT, "equals 29, not 24"),
    ],
)
def test_verdict_says_what_is_wrong(posed: Puzzle, response: str, status: VerdictStatus, detail: str | None) -> None:
    verdict = posed.judge(response)
    assert (verdict.status, verdict.detail) == (status, detail)
    assert verdict.reward == float(status is CORRECT)
    assert (verdict.answer is None) is (status is NO_ANSWER)


def test_long_answers_and_values_are_cut_in_what_is_recorded() -> None:
    verdict = AT_MOST.judge("*".join(["9" * 24] * 60))
    assert verdict.answer is not None and len(verdict.answer) == 64
    assert verdict.detail is not None and len(verdict.detail) < 200


def test_equal_answers_are_equal_strings_right_or_wrong() -> None:
    task, problem = countdown(), first(countdown(), "train", 1)[0]
    for response in ("(1 + 2) * 3", "<answer>(1+2)×3 = 9</answer>", r"\boxed{\left(1 + 2\right) \cdot 3}", "So: ((1+2)*(3))"):
        assert task.final_answer(problem, response) == "(1 + 2) * 3"
    assert task.final_answer(problem, "nothing") is None
    assert task.final_answer(problem, "<answer>No  Way</answer>") == "no way"


@given(st.text(st.sampled_from("0123456789+-*/() =.x^!\n<>answer"), max_size=60))
def test_any_response_has_a_verdict(response: str) -> None:
    verdict = EXACTLY.judge(response)
    assert verdict.status.is_scored and verdict == EXACTLY.judge(response)


@given(st.data())
def test_answer_changed_in_a_number_or_sign_is_judged_by_what_it_then_is(data: st.DataObject) -> None:
    """Against Python's own evaluation, of text that this test made."""
    problem = countdown().problem("train", data.draw(st.integers(0, 200)))  # type: ignore[attr-defined]
    posed, pieces = puzzle(problem), problem.answer.replace("(", "( ").replace(")", " )").split(" ")
    place = data.draw(st.sampled_from([place for place, piece in enumerate(pieces) if piece not in "()"]))
    is_number = pieces[place].isdigit()
    pieces[place] = str(data.draw(st.integers(1, 99))) if is_number else data.draw(st.sampled_from("+-*/"))
    changed = " ".join(pieces)
    try:
        is_right_value = abs(eval(changed) - posed.target) < 1e-9  # numbers, signs and brackets of a solution of ours
    except ZeroDivisionError:
        is_right_value = False
    used = Counter(int(piece) for piece in pieces if piece.isdigit())
    is_right = is_right_value and not used - Counter(posed.numbers)
    assert (posed.judge(changed).status is CORRECT) is is_right


# ---- puzzles of files ----

ROWS = [{"nums": [n, 2, 3], "target": n + 5} for n in range(1, 101)]


def test_one_file_is_divided_into_the_splits_of_drawn_puzzles(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "puzzles.parquet", ROWS)
    task = countdown(path=path)
    problems = {split: list(task.problems(split)) for split in ("train", "dev", "test", "all")}
    assert [puzzle(problem).numbers[0] for problem in problems["all"]] == list(range(1, 101))
    assert sorted(len(problems[split]) for split in ("train", "dev", "test"))[:2] > [2, 2]
    assert sum(len(problems[split]) for split in ("train", "dev", "test")) == 100
    assert all(puzzle(problem).split(0.1) == split for split in ("train", "dev", "test") for problem in problems[split])
    assert {problem.problem_id for problem in problems["dev"]} < {problem.problem_id for problem in problems["all"]}
    assert list(countdown(path=str(tmp_path)).problems("dev")) == problems["dev"]


def test_file_called_by_the_split_is_the_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.parquet", ROWS[:7])
    write_rows(tmp_path / "hard.jsonl", ROWS[7:9])
    task = countdown(path=str(tmp_path), use_all=True)
    assert len(list(task.problems("train"))) == 7
    assert [problem.problem_id[:22] for problem in task.problems("hard")] == ["countdown/hard/000000-", "countdown/hard/000001-"]
    assert all(puzzle(problem).must_use_all for problem in task.problems("train"))
    with pytest.raises(TaskError, match=r"no split 'test' in .*, only hard, train"):
        task.problems("test")
    (tmp_path / "hard.jsonl").unlink()  # its rows are all of train, so no part of them is held out
    with pytest.raises(TaskError, match=r"no split 'test' in .*, only train: give train\.parquet another name to have it divided"):
        task.problems("test")


def test_solution_of_the_file_is_kept_and_a_target_will_do(tmp_path: Path) -> None:
    numbers = {"numbers": [1, 2, 3], "target": 6}
    rows = [{"extra": json.dumps(numbers), "answer": answer} for answer in ("1 + 2 + 3", "6", None)]
    problems = list(countdown(path=write_rows(tmp_path / "puzzles.parquet", rows)).problems("all"))
    assert [problem.answer for problem in problems] == ["1 + 2 + 3", "6", "6"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"numbers": [1, 2]}], "no columns nums and target, numbers and target, or extra, only numbers"),
        ([{"numbers": [1, 2], "target": 3}, {"numbers": [1, -2], "target": 3}], r"row 1: \[1, -2\] and 3 are no puzzle"),
        ([{"numbers": [], "target": 3}], "row 0: .* are no puzzle"),
        ([{"numbers": None, "target": 3}, {"numbers": [1], "target": 1}], "row 0: None and 3 are no puzzle"),
        ([{"numbers": [1.5], "target": 3}], "no puzzle"),
        ([{"numbers": [1, 2], "target": 10**10}], "no puzzle"),
        ([{"numbers": [1] * 17, "target": 3}], "no puzzle"),
        ([{"extra": "{"}], "row 0: column 'extra' is not JSON"),
        ([{"extra": "3"}], "row 0: column 'extra' is no object"),
        ([{"extra": '{"numbers": [1, 2]}'}], r"row 0: \[1, 2\] and None are no puzzle"),
        (
            [{"nums": [1, 2], "target": 3, "answer": "1 * 2"}],
            "row 0: column 'answer': '1 \\* 2' is neither 3 nor a solution: equals 2, not 3",
        ),
        ([{"nums": [1, 2], "target": 3, "answer": "none"}], "is neither 3 nor a solution: it states none"),
    ],
)
def test_unusable_file_is_refused_with_row_and_reason(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write_rows(tmp_path / "puzzles.jsonl", rows)
    with pytest.raises(TaskError, match=message) as refused:
        countdown(path=path).problems("all")
    assert path in str(refused.value)


def test_missing_file_is_refused_with_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=rf"no .parquet or .jsonl file at {tmp_path}/none: put the puzzles there, or set task.game24.path"):
        game24(path=str(tmp_path / "none")).problems("train")
    with pytest.raises(TaskError, match=r"no .parquet or .jsonl file"):
        game24(path=str(tmp_path)).problems("train")


def test_unknown_split_of_one_file_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "puzzles.jsonl", ROWS)
    with pytest.raises(TaskError, match=r"no split 'easy': .* is divided into train, dev, test, and all is all of it"):
        countdown(path=path).problems("easy")


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "puzzles.csv"
    file.write_text("1,2,3")
    with pytest.raises(TaskError, match=r"neither .parquet nor .jsonl"):
        countdown(path=str(file)).problems("all")


def test_task_of_files_judges_in_another_process_without_them() -> None:
    task = pickle.loads(pickle.dumps(countdown(path="/nowhere")))
    problem = Problem(task="countdown", problem_id="1", question=AT_MOST.question, answer="28")
    assert [task.verify(problem, response).reward for response in ("25 + 3", "25 - 3", "")] == [1.0, 0.0, 0.0]


# ---- the data sets of shared/data ----


@pytest.fixture(scope="module")
def data() -> Path:
    directory = Path(os.environ.get("REPEXP_DATA") or ROOT.parent / "shared" / "data")
    if not (directory / "countdown").is_dir() or not (directory / "game24").is_dir():
        pytest.skip("Countdown and the Game of 24 are not at hand: set REPEXP_DATA to the directory of their folders")
    return directory


@pytest.mark.parametrize(("split", "num_rows"), [("dev", 256), ("test", 1024), ("train", 8192), ("easy_test", 256), ("easy_train", 2048)])
def test_every_row_of_countdown_is_solvable_and_its_solution_correct(data: Path, split: str, num_rows: int) -> None:
    problems = list(countdown(path=str(data / "countdown"), use_all=True).problems(split))
    assert len(problems) == len({bare(problem) for problem in problems}) == num_rows
    for problem in problems:
        posed = puzzle(problem)
        assert problem.answer != str(posed.target)  # a solution, which was judged as the file was read
        assert posed.judge(problem.answer.replace(str(posed.numbers[0]), str(posed.numbers[0] + 1), 1)).status is INCORRECT
        solution = solve(posed.numbers, posed.target, must_use_all=True)
        assert solution is not None and posed.judge(solution.text).status is CORRECT


def test_published_splits_of_countdown_share_no_puzzle(data: Path) -> None:
    task = countdown(path=str(data / "countdown"))
    train, dev, test = ({bare(problem) for problem in task.problems(split)} for split in ("train", "dev", "test"))
    assert not train & dev and not train & test and not dev & test


def test_every_row_of_the_game_of_24_is_solvable(data: Path) -> None:
    task = game24(path=str(data / "game24"))
    problems = list(task.problems("all"))
    assert len({bare(problem) for problem in problems}) == len(problems) == 1362
    assert [len(list(task.problems(split))) for split in ("train", "dev", "test")] == [1092, 140, 130]
    for problem in problems:
        posed = puzzle(problem)
        solution = solve(posed.numbers, 24, must_use_all=True)
        assert solution is not None and posed.judge(f"{solution.text} = 24").status is CORRECT
        assert posed.judge(f"{solution.text} + 24").status is INCORRECT
