from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from buffers.records import Problem, VerdictStatus
from tasks.base import TaskError
from tasks.parquet import ParquetConfig, ParquetTask
from tasks.stream import ProblemStream
from tests.tasks.samples import Rows, write_rows

SUFFIXES = ["parquet", "jsonl"]
ROWS: Rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "name": f"n{i}", "part": "ab"[i % 2]} for i in range(5)]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
PROBLEM = Problem(task="parquet", problem_id="parquet/0", question="2 + 2?", answer="4")


def task_of(path: str | Path, **fields: Any) -> ParquetTask:
    return ParquetTask(ParquetConfig(path=str(path), **fields))


def written(tmp_path: Path, rows: Rows, suffix: str = "parquet", **fields: Any) -> ParquetTask:
    return task_of(write_rows(tmp_path / f"problems.{suffix}", rows), **fields)


def read(task: ParquetTask, split: str = "train") -> list[Problem]:
    return list(task.problems(split))


def refusal(task: ParquetTask, split: str = "train") -> str:
    """The one line of a refusal that comes before the first problem."""
    with pytest.raises(TaskError) as caught:
        task.problems(split)
    message = str(caught.value)
    assert message.startswith("task parquet: ") and "\n" not in message
    return message


# ---- reading


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_row_is_a_problem_in_the_order_of_the_file(tmp_path: Path, suffix: str) -> None:
    problems = read(written(tmp_path, ROWS, suffix))
    assert [(problem.question, problem.answer) for problem in problems] == [(row["prompt"], row["answer"]) for row in ROWS]
    assert {problem.task for problem in problems} == {"parquet"}


def test_both_formats_give_the_same_problems(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "prompt": CHAT, "answer": "4"}]
    chats = [
        {**row, "prompt": row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]}
        for row in rows
    ]
    assert read(written(tmp_path, chats, "parquet")) == read(written(tmp_path, rows, "jsonl"))


def test_default_ids_are_stable_and_never_repeat_even_where_prompts_do(tmp_path: Path) -> None:
    """The literal pins the ids: memory and logs are keyed by them."""
    ids = [problem.problem_id for problem in read(written(tmp_path, [ROWS[0], ROWS[0]]))]
    assert ids == ["parquet/000000-4dd8c261", "parquet/000001-4dd8c261"]


def test_ids_of_an_id_column_are_kept(tmp_path: Path) -> None:
    assert [problem.problem_id for problem in read(written(tmp_path, ROWS, id_column="name"))] == [f"parquet/n{i}" for i in range(5)]


def test_columns_are_named_by_the_configuration(tmp_path: Path) -> None:
    rows = [{"question": "2 + 2?", "gold": 4}]
    (problem,) = read(written(tmp_path, rows, prompt_column="question", answer_column="gold"))
    assert (problem.question, problem.answer) == ("2 + 2?", "4")


@pytest.mark.parametrize(("value", "answer"), [(4, "4"), (4.5, "4.5"), (1e22, "10000000000000000000000"), ("1,000", "1,000")])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_answer_may_be_a_number(tmp_path: Path, suffix: str, value: Any, answer: str) -> None:
    task = written(tmp_path, [{"prompt": "?", "answer": value}], suffix)
    (problem,) = read(task)
    assert problem.answer == answer
    assert task.verify(problem, f"\\boxed{{{answer}}}").reward == 1.0


def test_text_that_looks_like_a_time_stays_text(tmp_path: Path) -> None:
    (problem,) = read(written(tmp_path, [{"prompt": "When?", "answer": "2020-01-02"}], "jsonl", verifier="exact"))
    assert problem.answer == "2020-01-02"


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '\ufeff{"prompt": "2 + 2?", "answer": "4"}\r\n\n{"prompt": "2 + 3?", "answer": "5"}\n\n', encoding="utf-8"
    )
    assert [problem.answer for problem in read(task_of(tmp_path / "p.jsonl"))] == ["4", "5"]


@pytest.mark.parametrize("path", [".", "*.parquet", "**/?.parquet"])
def test_directory_and_glob_are_read_by_file_name(tmp_path: Path, path: str) -> None:
    for name, row in (("b", ROWS[1]), ("a", ROWS[0]), ("c", ROWS[2])):
        write_rows(tmp_path / f"{name}.parquet", [row])
    (tmp_path / "README.md").write_text("not data")
    problems = read(task_of(tmp_path / path))
    assert [problem.answer for problem in problems] == ["1", "2", "3"]
    assert [problem.problem_id[:15] for problem in problems] == ["parquet/000000-", "parquet/000001-", "parquet/000002-"]


# ---- splits


def test_train_and_test_are_all_rows_where_no_column_says_otherwise(tmp_path: Path) -> None:
    task = written(tmp_path, ROWS)
    assert read(task, "train") == read(task, "test")
    assert "no split 'dev': without task.parquet.split_column there are train and test" in refusal(task, "dev")


def test_split_column_says_which_rows_a_split_has(tmp_path: Path) -> None:
    task = written(tmp_path, ROWS, split_column="part")
    assert [problem.answer for problem in read(task, "a")] == ["1", "3", "5"]
    assert [problem.answer for problem in read(task, "b")] == ["2", "4"]
    assert refusal(task, "train") == "task parquet: no split 'train' in column 'part', only a, b"


def test_a_problem_has_one_id_in_every_split(tmp_path: Path) -> None:
    whole, divided = written(tmp_path, ROWS), written(tmp_path, ROWS, split_column="part")
    assert [problem.problem_id for problem in read(divided, "b")] == [problem.problem_id for problem in read(whole)[1::2]]


def test_each_epoch_of_the_stream_meets_every_problem_once(tmp_path: Path) -> None:
    stream = ProblemStream(written(tmp_path, ROWS), "train", seed=0)
    assert sorted(problem.answer for problem in islice(stream, 5)) == ["1", "2", "3", "4", "5"]


# ---- prompts


def test_instruction_follows_the_question(tmp_path: Path) -> None:
    task = written(tmp_path, ROWS[:1], instruction="Only the number.")
    (problem,) = read(task)
    assert problem.question == "What is 0 + 1?"
    assert task.prompt(problem) == [{"role": "user", "content": "What is 0 + 1?\nOnly the number."}]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_chat_messages_are_kept_and_the_instruction_ends_the_last_one_of_the_user(tmp_path: Path, suffix: str) -> None:
    chat = [*CHAT, {"role": "assistant", "content": "Let me see."}]
    task = written(tmp_path, [{"prompt": chat, "answer": "4"}], suffix, instruction="Go on.")
    (problem,) = read(task)
    assert task.prompt(problem) == [CHAT[0], {"role": "user", "content": "2 + 2?\nGo on."}, chat[2]]
    assert problem.question == "system: Be brief.\n\nuser: 2 + 2?\n\nassistant: Let me see."


def test_one_user_message_is_the_same_as_its_text(tmp_path: Path) -> None:
    text, chat = ({"prompt": prompt, "answer": "4"} for prompt in (CHAT[1]["content"], [{**CHAT[1], "name": None}]))
    assert read(written(tmp_path, [text])) == read(written(tmp_path, [chat]))


# ---- verdicts


def test_number_verifier_compares_values_with_the_answer_that_the_gold_text_states() -> None:
    task = ParquetTask(ParquetConfig())
    for gold in ("4", "4.00", "$4", "8/2", "2 + 2 = 4\n#### 4"):
        problem = Problem(task="parquet", problem_id="x", question="?", answer=gold)
        assert [task.verify(problem, text).reward for text in ("It is \\boxed{4}", "so 4.0", "5")] == [1.0, 1.0, 0.0]
    assert task.verify(PROBLEM, "four").status is VerdictStatus.NO_ANSWER


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("New York", VerdictStatus.CORRECT),
        ("It is\n  new   YORK ", VerdictStatus.CORRECT),
        ("\\boxed{\\text{New York}}, I think", VerdictStatus.CORRECT),
        ("It is New York", VerdictStatus.INCORRECT),
        ("New York\nor Boston", VerdictStatus.INCORRECT),
        (" \n", VerdictStatus.NO_ANSWER),
    ],
)
def test_exact_verifier_compares_the_last_box_or_line(response: str, status: VerdictStatus) -> None:
    task = ParquetTask(ParquetConfig(verifier="exact"))
    for gold in (" New York\n", "\\text{New York}"):
        assert task.verify(Problem(task="parquet", problem_id="x", question="?", answer=gold), response).status is status


def test_exact_verifier_compares_the_whole_of_an_answer_of_several_lines() -> None:
    task = ParquetTask(ParquetConfig(verifier="exact"))
    problem = Problem(task="parquet", problem_id="x", question="?", answer="1 2\n3 4")
    assert [task.verify(problem, text).reward for text in ("\\boxed{1 2\n3 4}", "3 4")] == [1.0, 0.0]


def test_without_a_verifier_there_are_final_answers_but_no_verdicts(tmp_path: Path) -> None:
    task = written(tmp_path, [{"prompt": "Write a poem."}], verifier="none")
    (problem,) = read(task)
    assert (task.has_verifier, problem.answer) == (False, "")
    assert task.final_answer(problem, "Roses\nare  RED") == "are red"
    with pytest.raises(TaskError, match=r"task parquet has no verifier: set task\.parquet\.verifier"):
        task.verify(problem, "Roses")


@pytest.mark.parametrize(("verifier", "response"), [("number", "\\boxed{4}"), ("math", "\\boxed{4}"), ("exact", "4")])
def test_verifier_process_needs_no_data(verifier: str, response: str) -> None:
    task = pickle.loads(pickle.dumps(task_of("/nowhere/at/all.parquet", verifier=verifier)))
    assert task.has_verifier
    assert task.verify(PROBLEM, response).reward == 1.0


def test_math_is_judged_by_the_ladder_and_final_answers_are_its_spelling(tmp_path: Path) -> None:
    task = written(tmp_path, [{"prompt": "?", "answer": "\\frac{1}{2}, \\sqrt{8}"}], verifier="math")
    (problem,) = read(task)
    assert task.verify(problem, "\\boxed{2\\sqrt2 \\text{ and } 0.5}").status is VerdictStatus.CORRECT
    assert task.verify(problem, "\\boxed{0.5}").status is VerdictStatus.INCORRECT
    assert task.verify(problem, "\\boxed{9^{9^9}, 1}").status is VerdictStatus.MALFORMED
    assert task.final_answer(problem, "\\boxed{0.5}") == "1/2"
    assert (task.deadline_s, written(tmp_path, ROWS).deadline_s) == (5.0, 2.0)


# ---- refusals


def test_without_a_path_the_refusal_says_what_to_set() -> None:
    assert refusal(ParquetTask(ParquetConfig())).endswith(
        "set task.parquet.path to a .parquet or .jsonl file, a directory of them or a glob"
    )


@pytest.mark.parametrize(("path", "what"), [("gone.parquet", "no file"), ("*.jsonl", "no file"), (".", "no .parquet or .jsonl file in")])
def test_missing_file_is_named(tmp_path: Path, path: str, what: str) -> None:
    assert f"task parquet: {what} {tmp_path / path}: set task.parquet.path" in refusal(task_of(tmp_path / path))


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,answer\n")
    assert refusal(task_of(tmp_path / "p.csv")) == f"task parquet: {tmp_path / 'p.csv'}: neither .parquet nor .jsonl"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (ROWS, {"prompt_column": "question"}, "no column 'question', only prompt, answer, name, part"),
        (ROWS, {"answer_column": "gold"}, "no column 'gold', only prompt, answer, name, part"),
        (ROWS, {"id_column": "id"}, "no column 'id', only prompt, answer, name, part"),
        (ROWS, {"split_column": "split"}, "no column 'split', only prompt, answer, name, part"),
        ([ROWS[0], {**ROWS[1], "prompt": None}], {}, "row 1: column 'prompt' is null"),
        ([ROWS[0], {**ROWS[1], "prompt": " \n"}], {}, "row 1: column 'prompt' is blank"),
        ([ROWS[0], {**ROWS[1], "answer": None}], {}, "row 1: column 'answer' is null"),
        ([ROWS[0], {**ROWS[1], "answer": "one"}], {}, "row 1: column 'answer' states no single number: 'one'"),
        ([{**ROWS[0], "answer": "95 + (24 - 21)"}], {}, "row 0: column 'answer' states no single number: '95 + (24 - 21)'"),
        ([{**ROWS[0], "answer": "\\sum_k k"}], {"verifier": "math"}, "row 0: column 'answer' is no mathematics that can be verified: "),
        ([{**ROWS[0], "answer": ["1"]}], {}, "row 0: column 'answer' is neither text nor a number: ['1']"),
        ([{**ROWS[0], "answer": float("nan")}], {}, "row 0: column 'answer' states no single number: 'NaN'"),
        ([ROWS[0], {**ROWS[1], "name": None}], {"id_column": "name"}, "row 1: column 'name' is null"),
        ([ROWS[0], {**ROWS[1], "part": None}], {"split_column": "part"}, "row 1: column 'part' is null"),
        (
            [{**ROWS[0], "prompt": [{"role": "user"}]}],
            {},
            "row 0: column 'prompt' is neither text nor a list of messages with a role and a",
        ),
        ([{**ROWS[0], "prompt": [{"role": "user", "content": None}]}], {}, "row 0: column 'prompt' is neither text nor a list of messages"),
        ([{**ROWS[0], "prompt": []}], {}, "row 0: column 'prompt' is neither text nor a list of messages with a role and a content: []"),
    ],
)
def test_bad_data_are_refused_with_file_row_and_column(
    tmp_path: Path, suffix: str, rows: Rows, fields: dict[str, Any], message: str
) -> None:
    line = refusal(written(tmp_path, rows, suffix, **fields))
    assert line.startswith(f"task parquet: {tmp_path / 'problems'}.{suffix}: {message}")


def test_repeated_id_is_refused_with_both_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", ROWS[:2])
    line = refusal(task_of(tmp_path, id_column="name"))
    assert line == f"task parquet: {tmp_path / 'b.jsonl'}: row 0: id 'parquet/n0' is that of {tmp_path / 'a.jsonl'} row 0 too"


def test_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.schema({"prompt": pa.string(), "answer": pa.string()}).empty_table(), tmp_path / "p.parquet")
    assert refusal(task_of(tmp_path / "p.parquet")) == f"task parquet: {tmp_path / 'p.parquet'}: no rows"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "no rows"),
        ("p.jsonl", b'{"prompt": "a", "answer": "1"}\n{"prompt": \n', "line 2 is not JSON: "),
        ("p.jsonl", b'["a", "1"]\n', "line 1 is no JSON object"),
        ("p.jsonl", b"\xff\xfe", "cannot be read as UTF-8: "),
        ("p.parquet", b"", "cannot be read as Parquet: "),
        ("p.parquet", b"PAR1 and more", "cannot be read as Parquet: "),
    ],
)
def test_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(task_of(tmp_path / name)).startswith(f"task parquet: {tmp_path / name}: {message}")
