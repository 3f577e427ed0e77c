from __future__ import annotations

import ast
import json
import pickle
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from buffers.records import Problem, VerdictStatus
from tasks.base import TaskError
from tasks.config import TaskConfig
from tasks.data.files import DataFile
from tasks.mbpp_plus import MbppConfig, MbppPlus, MbppPlusConfig
from tasks.programs.mbpp_files import mbpp_rows, plus_rows
from tasks.programs.program_tests import ProgramTests, read_tests, write_tests
from tasks.registry import make_task
from tests.tasks.samples import write_rows

NOWHERE = MbppPlus(MbppPlusConfig(path="/nowhere"))
TESTS = ProgramTests(reference="def f(x):\n    return x * x", calls=("f(*[2])", "f(*[3])"))
PROBLEM = Problem(task="mbpp-plus", problem_id="mbpp-plus/7", question="Square x.\nassert f(2) == 4", answer=write_tests(TESTS))
SIZES = {"train": 265, "dev": 51, "test": 378}


def plus_row(number: int, **more: Any) -> dict[str, Any]:
    """A row as EvalPlus releases it: the sum of two numbers and the length of a tuple."""
    extra = {"task_id": f"Mbpp/{number}", "entry_point": "f", "base_input": [[1, 2]], "plus_input": [[3, 4.5]], "atol": 0}
    prompt = f'"""\nAdd {number} things.\nassert f(1, 2) == 3\n"""\n'
    return {
        "prompt": prompt,
        "answer": "\ndef f(a, b):\n    return a + b\n",
        "source": "",
        "index": number,
        "extra": json.dumps(extra | more),
    }


def hub_row(number: int, **more: Any) -> dict[str, Any]:
    test = (
        "import numpy as np\nfrom math import inf\n\ndef is_floats(x) -> bool:\n    return False\n\ndef assertion(out, exp, atol):\n"
        "    assert out == exp\n\ninputs = [[1, 2], [3, 4.5], [-inf, (1, {2, 3})]]\nresults = [3, 7.5, None]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(f(*inp), exp, 0.0001)\n"
    )
    row = {"task_id": number, "prompt": f"Add {number} things.", "code": "def f(a, b):\r\n    return a + b", "test": test}
    return row | {"source_file": "", "test_imports": [], "test_list": ["assert f(1, 2) == 3", "assert f(2, 2) == 4"]} | more


def mbpp_row(number: int, **more: Any) -> dict[str, Any]:
    extra = {"task_id": number, "test_setup_code": "", "test_list": ["assert f(1) == 2", "assert f([]) == (1, 'a')"]}
    row = {"prompt": f"Do {number}.", "answer": "def f(x):\r\n\treturn 2", "source": "", "index": number, "extra": json.dumps(extra | more)}
    return row


def hub_mbpp_row(number: int) -> dict[str, Any]:
    asserts = ["assert f(1) == 2", "assert f([]) == (1, 'a')"]
    return {"task_id": number, "text": f"Do {number}.", "code": "def f(x):\r\n\treturn 2", "test_list": asserts, "test_setup_code": ""}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """As many rows as published; MBPP+ has ten numbers of MBPP's training set."""
    tested = [*range(601, 611), *range(1001, 1369)]
    write_rows(tmp_path / "mbppplus" / "test.parquet", [plus_row(number) for number in tested])
    write_rows(tmp_path / "mbpp" / "train.parquet", [mbpp_row(number) for number in range(601, 975)])
    write_rows(tmp_path / "mbpp" / "validation.parquet", [mbpp_row(number) for number in range(511, 601)])
    return tmp_path


def at(directory: Path, **more: Any) -> MbppPlus:
    return MbppPlus(MbppPlusConfig(path=str(directory / "mbppplus"), mbpp=MbppConfig(path=str(directory / "mbpp")), **more))


def numbers(task: MbppPlus, split: str) -> list[int]:
    return [int(problem.problem_id.rpartition("/")[2]) for problem in task.problems(split)]


# ---- problems ----


@pytest.mark.usefixtures("sandboxed")
def test_training_has_no_problem_that_is_tested(directory: Path) -> None:
    assert numbers(at(directory), "test") == [*range(601, 611), *range(1001, 1369)]
    assert numbers(at(directory), "train") == list(range(611, 975))
    assert numbers(at(directory), "dev") == list(range(511, 601))


@pytest.mark.usefixtures("sandboxed")
def test_training_has_no_problem_of_the_same_wording_either(directory: Path) -> None:
    rows = [mbpp_row(number) for number in range(601, 975)]
    rows[300]["prompt"] = "add 1005  Things"
    write_rows(directory / "mbpp" / "train.parquet", rows)
    assert 901 not in numbers(at(directory), "train")


@pytest.mark.usefixtures("sandboxed")
def test_data_lie_in_two_folders_of_the_environments(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPEXP_DATA", str(directory))
    assert list(MbppPlus(MbppPlusConfig()).problems("dev")) == list(at(directory).problems("dev"))


@pytest.mark.usefixtures("sandboxed")
def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task mbpp-plus: no file test.parquet in .*task.mbpp_plus.path"):
        at(tmp_path).problems("test")
    write_rows(tmp_path / "mbppplus" / "test.parquet", [plus_row(number) for number in range(1000, 1378)])
    with pytest.raises(TaskError, match=r"task mbpp-plus: no file validation.parquet in .*task.mbpp_plus.mbpp.path"):
        at(tmp_path).problems("dev")


@pytest.mark.usefixtures("sandboxed")
def test_another_number_of_problems_is_refused(directory: Path) -> None:
    write_rows(directory / "mbppplus" / "test.parquet", [plus_row(number) for number in range(1000, 1377)])
    with pytest.raises(TaskError, match=r"test.parquet: 377 problems, and MBPP\+'s has 378"):
        at(directory).problems("test")


def test_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(TaskError, match="no split 'validation', only train, dev, test"):
        NOWHERE.problems("validation")


def test_host_without_namespaces_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.programs.sandbox.why_unavailable", lambda isolation: f"no {isolation} here")
    with pytest.raises(TaskError) as caught:
        NOWHERE.problems("test")
    assert str(caught.value) == (
        'task mbpp-plus: no namespaces here; task.mbpp_plus.isolation = "rlimits" runs programs without isolation, which is NOT safe'
    )
    with pytest.raises(TaskError, match=r"^task mbpp-plus: no rlimits here$"):
        MbppPlus(MbppPlusConfig(path="/nowhere", isolation="rlimits")).problems("test")


# ---- rows ----


def rows_of(tmp_path: Path, read: Any, *rows: dict[str, Any]) -> list[Any]:
    return list(read(DataFile(task="mbpp-plus", path=Path(write_rows(tmp_path / "rows.parquet", list(rows))))))


def test_row_of_the_release_is_calls_of_its_function(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, plus_rows, plus_row(5, atol=1e-4))
    assert (row.number, row.text, row.shown) == (5, "Add 5 things.", "assert f(1, 2) == 3")
    assert row.tests == ProgramTests(reference="def f(a, b):\n    return a + b", calls=("f(*[1, 2])", "f(*[3, 4.5])"), atol=1e-4)


def test_row_of_the_hub_is_the_same(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, plus_rows, hub_row(5))
    assert (row.number, row.text, row.shown) == (5, "Add 5 things.", "assert f(1, 2) == 3")
    calls = ("f(*[1, 2])", "f(*[3, 4.5])", "f(*[-inf, (1, {2, 3})])")
    assert row.tests == ProgramTests(reference="def f(a, b):\n    return a + b", calls=calls, atol=1e-4)


def test_hubs_test_by_a_second_function_is_read_as_well(tmp_path: Path) -> None:
    test = (
        "def ref_func(l, n):\n    return l\n\ninputs = [[['a'], 1], [['b'], 77]]\n"
        "for i, inp in enumerate(inputs):\n    assertion(f(*inp), ref_func(*inp), 0)\n"
    )
    (row,) = rows_of(tmp_path, plus_rows, hub_row(255, test=test))
    assert row.tests.calls == ("f(*[['a'], 1])",)  # without the argument that makes the reference endless


@pytest.mark.parametrize(
    ("number", "given", "arguments"),
    [
        (1, [[1], {"a": [2]}], "[[1], {'a': [2]}]"),
        (2, [[1, 2], [3]], "[(1, 2), (3,)]"),
        (63, [[[1, 2], [3, 4]]], "[[(1, 2), (3, 4)]]"),
        (75, [[[1, 2]], 3], "[[(1, 2)], 3]"),
        (106, [[1], [2]], "[[1], (2,)]"),
        (115, [[[1, 2], []]], "[[{1, 2}, {}]]"),
        (124, ["1.5", "(2+3j)"], "[1.5, (2+3j)]"),
        (252, ["2j"], "[2j]"),
        (259, [[[1, 2]], [[3, 4]]], "[((1, 2),), ((3, 4),)]"),
        (278, [[1, [2, 3]]], "[(1, (2, 3))]"),
        (307, [[1, [2]], 3, 4], "[(1, [2]), 3, 4]"),
        (722, [{"a": [1.5, 2]}, 3], "[{'a': (1.5, 2)}, 3]"),
        (580, [[1, [2, [3]]]], "[(1, (2, (3,)))]"),
        (1, [float("inf"), -0.0], "[inf, -0.0]"),
    ],
)
def test_arguments_of_the_release_become_what_they_stand_for(number: int, given: list[Any], arguments: str, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, plus_rows, plus_row(number, base_input=[given], plus_input=[]))
    (call,) = row.tests.calls
    assert call in (f"f(*{arguments})", f"set(f(*{arguments}))")


def test_row_of_mbpp_is_both_sides_of_its_asserts_in_either_layout(tmp_path: Path) -> None:
    (ours,) = rows_of(tmp_path, mbpp_rows, mbpp_row(601))
    (hubs,) = rows_of(tmp_path, mbpp_rows, hub_mbpp_row(601))
    assert ours == hubs
    assert (ours.number, ours.text, ours.shown) == (601, "Do 601.", "assert f(1) == 2")
    assert ours.tests == ProgramTests(reference="def f(x):\n\treturn 2", calls=("f(1)", "f([])"), expected=("2", "(1, 'a')"))


@pytest.mark.parametrize(
    ("read", "row", "reason"),
    [
        (mbpp_rows, mbpp_row(601, test_list=["assert f(1)"]), "ValueError: not of the form assert CALL == EXPECTED: assert f(1)"),
        (mbpp_rows, mbpp_row(601, test_list=["assert f(1) =="]), "SyntaxError: invalid syntax"),
        (mbpp_rows, mbpp_row(601, test_list=[]), "IndexError: "),
        (mbpp_rows, mbpp_row(601) | {"extra": "{"}, "JSONDecodeError: "),
        (mbpp_rows, mbpp_row(601) | {"extra": "[]"}, "ValueError: column 'extra' is no JSON object"),
        (plus_rows, plus_row(2, base_input=[[1, 2]]), "TypeError: 'int' object is not iterable"),
        (plus_rows, plus_row(1) | {"extra": '{"task_id": "Mbpp/1"}'}, "KeyError: 'base_input'"),
        (plus_rows, hub_row(1, test="inputs = 1"), "ValueError: "),
        (plus_rows, hub_row(1, test="assert f(1)"), "ValueError: "),
    ],
)
def test_row_that_cannot_be_read_is_named(read: Any, row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        rows_of(tmp_path, read, row)
    message = str(caught.value)
    assert message.startswith(f"task mbpp-plus: {tmp_path}/rows.parquet: row 0: is no problem of MBPP: {reason}") and "\n" not in message


# ---- prompt and verdict ----


def test_prompt_shows_one_assert_and_how_to_answer() -> None:
    (message,) = NOWHERE.prompt(PROBLEM)
    assert message["role"] == "user"
    assert message["content"] == "Square x.\nThis must hold:\nassert f(2) == 4\nAnswer with the whole program in one ```python block."


def test_prompt_can_be_evalplus() -> None:
    (message,) = MbppPlus(MbppPlusConfig(wording="evalplus")).prompt(PROBLEM)
    assert message["content"] == (
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        '```\n"""\nSquare x.\nassert f(2) == 4\n"""\n```'
    )


@pytest.mark.usefixtures("sandboxed")
@pytest.mark.parametrize(
    ("response", "status", "answer"),
    [
        ("```python\ndef f(x):\n    return x ** 2\n```", VerdictStatus.CORRECT, "def f(x):\n    return x ** 2"),
        ("```python\ndef f(x):\n    return x + x\n```", VerdictStatus.INCORRECT, "def f(x):\n    return x + x"),
        ("```python\ndef f(x):\n    return x **\n```", VerdictStatus.MALFORMED, "def f(x):\n    return x **"),
        ("```python\n" + "#" * 100 + "\n```", VerdictStatus.INCORRECT, "#" * 64),
        ("It is x squared.", VerdictStatus.NO_ANSWER, None),
    ],
)
def test_verdict(response: str, status: VerdictStatus, answer: str | None) -> None:
    verdict = NOWHERE.verify(PROBLEM, response)
    assert (verdict.status, verdict.answer) == (status, answer)
    assert verdict.reward == float(status is VerdictStatus.CORRECT)


def test_problem_without_tests_is_an_error_of_the_verification() -> None:
    problem = Problem(task="mbpp-plus", problem_id="x", question="?", answer="72")
    verdict = NOWHERE.verify(problem, "```python\nx = 1\n```")
    assert verdict.status is VerdictStatus.ERROR and "'x' has no tests that can be read" in str(verdict.detail)


def test_final_answer_is_the_program() -> None:
    assert NOWHERE.final_answer(PROBLEM, "So:\n```python\n\nx = 1\n```") == "x = 1"
    assert NOWHERE.final_answer(PROBLEM, "I do not know") is None


@pytest.mark.usefixtures("sandboxed")
def test_verifier_process_needs_no_data_and_says_how_long_it_may_take() -> None:
    config = MbppPlusConfig(path="/nowhere", limit_s=2.0)
    task = pickle.loads(pickle.dumps(make_task(TaskConfig(name="mbpp-plus", mbpp_plus=config))))
    assert task.has_verifier and 200 < task.deadline_s < 300
    assert task.verify(PROBLEM, f"```\n{TESTS.reference}\n```").reward == 1.0


# ---- the published data ----


@pytest.fixture(scope="module")
def published(mbpp_data: Path) -> MbppPlus:
    return at(mbpp_data)


@pytest.mark.usefixtures("sandboxed")
def test_splits_of_the_published_data_never_change(published: MbppPlus) -> None:
    digests = {}
    for split, size in SIZES.items():
        problems = list(published.problems(split))
        assert len({problem.problem_id for problem in problems}) == size
        digests[split] = sha256("\n".join(f"{p.problem_id} {p.question} {p.answer}" for p in problems).encode()).hexdigest()[:16]
    assert digests == {"train": "4a41e3d8a3663aac", "dev": "ec113b28a1a50750", "test": "1b188aa7c2d95107"}


def test_arguments_are_those_of_the_published_asserts(mbpp_data: Path) -> None:
    """The release has its first arguments twice: as JSON, and in its asserts as they are. Where they differ, so do
    EvalPlus'."""
    file = DataFile(task="mbpp-plus", path=mbpp_data / "mbppplus" / "test.parquet")
    others = set()
    for row, published_row in zip(plus_rows(file), file.rows(["extra"]), strict=True):
        extra = json.loads(published_row.values["extra"])
        asserted = [ast.unparse(ast.List(call.args, ast.Load())) for call in calls_of(extra["entry_point"], extra["assertion"])]
        read = [calls_of(extra["entry_point"], text)[0].args[0].value for text in row.tests.calls[: len(asserted)]]
        if [eval(ast.unparse(given)) for given in read] != [eval(given) for given in asserted]:
            others.add(row.number)
    in_another_order, with_other_values, with_lists_for_tuples = {737, 781, 787, 803}, {87, 301}, {98, 104, 140, 145, 596}
    assert others == in_another_order | with_other_values | with_lists_for_tuples


def calls_of(name: str, text: str) -> list[Any]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def called_in(call: str) -> str:
    """The function under test: of "set(f(*[1]))", f; of MBPP's "int(f(1))", f."""
    names = [node.func.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return next(name for name in names if name not in ("set", "int"))


def wrong_at(reference: str, name: str, number: int) -> str:
    """The reference, but for its answer to one call; calls by itself do not count."""
    return f"""{reference}

_right, _count, _is_inside = {name}, 0, False
def {name}(*args):
    global _count, _is_inside
    if _is_inside: return _right(*args)
    _count += 1
    _is_inside = True
    value = _right(*args)
    _is_inside = False
    return value if _count != {number} else None if value else "wrong"
"""


def check_reference(task: MbppPlus, problem: Problem) -> None:
    """The published program is correct; with another answer to the first or to the last call it is not."""
    tests = read_tests(problem.answer)
    verdict = task.verify(problem, f"```python\n{tests.reference}\n```")
    assert verdict.status is VerdictStatus.CORRECT, (problem.problem_id, verdict)
    name = called_in(tests.calls[0])
    for number in {1, len(tests.calls)}:
        verdict = task.verify(problem, f"```python\n{wrong_at(tests.reference, name, number)}\n```")
        assert verdict.status is VerdictStatus.INCORRECT, (problem.problem_id, number, verdict)
        assert str(verdict.detail).startswith(f"test {number} of {len(tests.calls)}, "), (problem.problem_id, verdict)


SLOW = {84, 123, 271, 300, 389, 392, 453, 583, 589, 592, 603, 630}  # their references take seconds


@pytest.mark.usefixtures("sandboxed")
def test_published_programs_are_correct_and_perturbed_ones_are_not(published: MbppPlus) -> None:
    quick = [problem for problem in published.problems("test") if int(problem.problem_id.rpartition("/")[2]) not in SLOW]
    for problem in random.Random(0).sample(quick, 20):
        check_reference(published, problem)


@pytest.mark.usefixtures("sandboxed")
def test_exact_integers_are_right_where_the_reference_gives_floats(published: MbppPlus) -> None:
    """The reference of Mbpp/287 divides by 3 with "/", and its sums exceed what a float holds exactly."""
    problem = next(problem for problem in published.problems("test") if problem.problem_id == "mbpp-plus/287")
    use = "For example:\n\n```python\nprint(square_Sum(2))\n```\n"
    for number, status in ((0, VerdictStatus.CORRECT), (1, VerdictStatus.INCORRECT)):
        program = f"   def square_Sum(n):\n       return 2 * n * (n + 1) * (2 * n + 1) // 3 + {number}"
        assert published.verify(problem, f"1. It is\n   ```python\n{program}\n   ```\n{use}").status is status


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("sandboxed")
@pytest.mark.parametrize("split", SIZES)
def test_all_published_programs_are_correct_and_perturbed_ones_are_not(published: MbppPlus, split: str) -> None:
    for problem in published.problems(split):
        check_reference(published, problem)
