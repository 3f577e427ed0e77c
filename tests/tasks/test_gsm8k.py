from __future__ import annotations

import json
import pickle
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest

from buffers.records import Problem, VerdictStatus
from tasks.base import TaskError
from tasks.config import TaskConfig
from tasks.data.splits import GSM8K_DEV
from tasks.gsm8k import NUM_ROWS, Gsm8k, Gsm8kConfig
from tasks.registry import make_task
from tasks.stream import ProblemStream
from tests.tasks.samples import gsm8k_rows, write_rows

SIZES = {"train": 7473, "dev": 512, "test": 807, "test_full": 1319}
NOWHERE = Gsm8k(Gsm8kConfig(path="/nowhere"))
PROBLEM = Problem(task="gsm8k", problem_id="gsm8k/test/000000", question="How many?", answer="72")


def at(directory: Path) -> Gsm8k:
    return Gsm8k(Gsm8kConfig(path=str(directory)))


def ids(task: Gsm8k, split: str) -> list[str]:
    return [problem.problem_id for problem in task.problems(split)]


def refusal(task: Gsm8k, split: str) -> str:
    """The one line of a refusal that comes before the first problem."""
    with pytest.raises(TaskError) as caught:
        task.problems(split)
    message = str(caught.value)
    assert message.startswith("task gsm8k: ") and "\n" not in message
    return message


def test_splits_have_the_published_sizes_in_the_published_order(gsm8k_directory: Path) -> None:
    for split, size in SIZES.items():
        problems = list(at(gsm8k_directory).problems(split))
        names = [problem.problem_id for problem in problems]
        assert len(set(names)) == size and names == sorted(names)
        assert all(int(problem.answer) == 1000 + int(problem.problem_id[-6:]) for problem in problems)


def test_dev_and_test_divide_the_published_test_set(gsm8k_directory: Path) -> None:
    dev, test, full = (ids(at(gsm8k_directory), split) for split in ("dev", "test", "test_full"))
    assert sorted(dev + test) == full
    assert full[123] == "gsm8k/test/000123"


def test_rows_of_dev_never_change() -> None:
    """The literal pins the partition: another one makes earlier test scores incomparable, and chooses models by test
    problems."""
    rows = ",".join(map(str, sorted(GSM8K_DEV)))
    assert rows.startswith("0,8,11,14,")
    assert sha256(rows.encode()).hexdigest() == "53ee4024e3c7ff4146304c378e395abd340fdebab02266cc8d25e0a3a25a63d6"


def test_recorded_rows_of_dev_are_those_of_the_seed() -> None:
    order = sorted(range(NUM_ROWS["test"]), key=lambda index: sha256(f"gsm8k/test/{index}".encode()).digest())
    assert frozenset(order[: SIZES["dev"]]) == GSM8K_DEV


def test_layout_of_the_hub_gives_the_same_problems(gsm8k_directory: Path, tmp_path: Path) -> None:
    for stem in NUM_ROWS:
        rows = [
            {"question": f" {row['prompt']}\n", "answer": f"7 + 8 = <<7+8=15>>15\n#### {int(row['answer']):,}"} for row in gsm8k_rows(stem)
        ]
        write_rows(tmp_path / "main" / f"{stem}-00000-of-00001.parquet", rows)
    for split in SIZES:
        assert list(at(tmp_path).problems(split)) == list(at(gsm8k_directory).problems(split))


def test_index_column_decides_which_row_of_the_published_file_a_row_is(gsm8k_directory: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "test.parquet", gsm8k_rows("test")[::-1])
    assert list(at(tmp_path).problems("dev")) == list(at(gsm8k_directory).problems("dev"))


def test_without_a_path_the_data_lie_in_the_folder_gsm8k_of_the_environments(
    gsm8k_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPEXP_DATA", str(tmp_path))
    (tmp_path / "gsm8k").symlink_to(gsm8k_directory)
    assert ids(Gsm8k(Gsm8kConfig()), "dev") == ids(at(gsm8k_directory), "dev")


def test_without_any_data_the_refusal_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPEXP_DATA", raising=False)
    message = refusal(Gsm8k(Gsm8kConfig()), "train")
    assert all(part in message for part in ("train.parquet", "task.gsm8k.path", "REPEXP_DATA", "openai/gsm8k"))


@pytest.mark.parametrize(("split", "file"), [("train", "train"), ("dev", "test"), ("test", "test"), ("test_full", "test")])
def test_missing_file_is_named_with_its_directory_before_the_first_problem(split: str, file: str, tmp_path: Path) -> None:
    assert refusal(at(tmp_path), split) == (
        f"task gsm8k: no file {file}.parquet in {tmp_path}: put it there, or set task.gsm8k.path to the directory that has it"
    )


def test_unknown_split_is_refused_with_those_there_are() -> None:
    assert refusal(NOWHERE, "validation").endswith("no split 'validation', only train, dev, test, test_full")


def test_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "train.parquet: cannot be read as Parquet: " in refusal(at(tmp_path), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [{"text": "a", "label": 1}], "no columns prompt and answer, or question and answer, only text, label"),
        (lambda rows: rows[:-1], '1318 rows, and GSM8K\'s has 1319: for problems of your own set task.name to "parquet"'),
        (lambda rows: [*rows[:5], rows[5] | {"answer": "many"}, *rows[6:]], "row 5: column 'answer' states no number: 'many'"),
        (lambda rows: [*rows[:5], rows[5] | {"answer": None}, *rows[6:]], "row 5: column 'answer' states no number: 'None'"),
        (lambda rows: [*rows[:5], rows[5] | {"prompt": " "}, *rows[6:]], "row 5: column 'prompt' holds no question: ' '"),
        (
            lambda rows: [*rows[:5], rows[5] | {"index": 4}, *rows[6:]],
            "row 5: column 'index': 4 is no row of the published file, or there twice",
        ),
        (lambda rows: [*rows[:5], rows[5] | {"index": 1319}, *rows[6:]], "row 5: column 'index': 1319 is no row of the published file"),
    ],
)
def test_bad_file_is_refused_with_file_row_and_column(change, message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.parquet", change(gsm8k_rows("test")))
    assert f"task gsm8k: {path}: {message}" in refusal(at(tmp_path), "test_full")


def test_prompt_is_the_question_with_the_instruction() -> None:
    (message,) = NOWHERE.prompt(PROBLEM)
    assert message == {"role": "user", "content": "How many?\n" + Gsm8kConfig().instruction}
    assert message["content"].endswith("put the final answer within \\boxed{}.")
    assert Gsm8k(Gsm8kConfig(instruction="")).prompt(PROBLEM) == [{"role": "user", "content": "How many?"}]


def test_verifier_process_needs_no_data() -> None:
    task = pickle.loads(pickle.dumps(make_task(TaskConfig(name="gsm8k", gsm8k=Gsm8kConfig(path="/nowhere")))))
    assert task.has_verifier
    assert task.verify(PROBLEM, "\\boxed{72}").reward == 1.0


def test_task_travels_light_however_often_it_was_read(gsm8k_directory: Path) -> None:
    task = at(gsm8k_directory)
    list(task.problems("train"))
    assert len(pickle.dumps(task)) < 1000


@pytest.mark.parametrize(
    ("response", "status", "answer"),
    [
        ("48 / 2 = 24 and 48 + 24 = \\boxed{72}", VerdictStatus.CORRECT, "72"),
        ("\\boxed{\\$72.00}", VerdictStatus.CORRECT, "72"),
        ("\\boxed{72\\text{ clips}}, of 48 and 24", VerdictStatus.CORRECT, "72"),
        ("#### 72\n\nQuestion: what is 3 + 4?", VerdictStatus.CORRECT, "72"),
        ("The answer is 144/2.", VerdictStatus.CORRECT, "72"),
        ("so she sold 72 clips", VerdictStatus.CORRECT, "72"),
        ("72, no, \\boxed{73}", VerdictStatus.INCORRECT, "73"),
        ("\\boxed{-72}", VerdictStatus.INCORRECT, "-72"),
        ("\\boxed{7" + "2" * 1000 + "}", VerdictStatus.INCORRECT, "7" + "2" * 63),
        ("\\boxed{x}, that is 72", VerdictStatus.NO_ANSWER, None),
        ("I do not know", VerdictStatus.NO_ANSWER, None),
    ],
)
def test_verdict(response: str, status: VerdictStatus, answer: str | None) -> None:
    verdict = NOWHERE.verify(PROBLEM, response)
    assert (verdict.status, verdict.answer) == (status, answer)
    assert verdict.reward == float(status is VerdictStatus.CORRECT)


def test_problem_from_elsewhere_may_spell_its_answer_freely() -> None:
    problem = Problem(task="gsm8k", problem_id="x", question="?", answer="$1,234")
    assert NOWHERE.verify(problem, "\\boxed{1234}").reward == 1.0


def test_each_epoch_of_the_stream_meets_every_problem_once(gsm8k_directory: Path) -> None:
    stream = ProblemStream(at(gsm8k_directory), "dev", seed=0)
    first, second = ([problem.problem_id for problem in islice(stream, SIZES["dev"])] for _ in range(2))
    assert sorted(first) == sorted(second) == ids(at(gsm8k_directory), "dev")
    assert first != second


@pytest.mark.parametrize("split", ["train", "test_full"])
def test_every_published_answer_is_correct_however_it_is_put_and_no_other_is(gsm8k_data: Path, split: str) -> None:
    task = at(gsm8k_data)
    problems = list(task.problems(split))
    assert len(problems) == SIZES[split]
    for problem in problems:
        gold = int(problem.answer)
        for right in (f"\\boxed{{{gold}}}", f"\\boxed{{\\${gold:,}.00}}", f"#### {gold}", f"The answer is {gold}.", f"It is {gold:,} then"):
            assert task.verify(problem, right).reward == 1.0, (problem, right)
        for number in {gold + 1, gold - 1, gold * 10, -gold, gold + 0.5} - {gold}:
            for wrong in (f"\\boxed{{{number}}}", f"#### {number}", f"The answer is {number}."):
                assert task.verify(problem, wrong).reward == 0.0, (problem, wrong)


def test_published_solutions_are_read_as_their_answers(gsm8k_data: Path) -> None:
    from pyarrow import parquet

    for stem in NUM_ROWS:
        extras = parquet.read_table(gsm8k_data / f"{stem}.parquet", columns=["extra"])["extra"].to_pylist()
        problems = at(gsm8k_data).problems("train" if stem == "train" else "test_full")
        for problem, extra in zip(problems, extras, strict=True):
            assert NOWHERE.verify(problem, json.loads(extra)["solution"]).reward == 1.0
