"""Values that cannot be what was meant, in answers, in prompts and in saved rollouts."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from tasks.base import TaskError
from tasks.data.files import DataFile
from tasks.data.texts import fault
from tasks.parquet import ParquetConfig, ParquetTask

IN_BOTH = [
    (r'"\frac{1}{2}"', r"""a form feed before 'rac{1}{2}': in JSON the backslash of "\frac" is written twice"""),
    (r'"\boxed{3}"', r"a backspace before"),
    (r'"\beta"', r'"\beta"'),
    (r'"\theta"', r'''a tab before 'heta': in JSON the backslash of "\theta"'''),
    (r'"2 \times 3"', r'"\times"'),
    (r'"\text{even}"', r'"\text"'),
    (r'"\tfrac12"', r'"\tfrac"'),
    (r'"A^\top"', r'"\top"'),
    (r'"\tau + 1"', r'"\tau"'),
    (r'"\rho"', r"a carriage return before"),
    (r'"\right)"', r'"\right"'),
    (r'"\nabla f"', r"a line break before"),
    (r'"x \notin A"', r'"\notin"'),
    (r'"\ud835"', r"a lone surrogate, \ud835"),
    (r'"a\udc65b"', r"a lone surrogate, \udc65"),
    (r'"\u0000"', "a null character"),
    (r'"\u000b"', "the control character U+000B"),
    (r'"\u0007lpha"', "the control character U+0007"),
    ("NaN", "'NaN' stands for a value that is missing"),
    ("Infinity", "is Infinity"),
    ("-Infinity", "is Infinity"),
    ("1e999", "is Infinity"),
    (r'[1, "\frac12"]', "a form feed"),
    (r'[{"role": "user", "content": "\frac12"}]', "a form feed"),
]
ONLY_IN_ANSWERS = [
    (r'"x\tan y"', "a tab"),
    (r'"\tfoo"', "a tab"),
    (r'"x \neq 5"', r'"\neq"'),
    (r'"\nu"', None),
    (r'"x\nu"', r'"\nu"'),
    ('"nan"', "'NaN'"),
    ('"-nan"', "'NaN'"),
    ('"#### NaN"', "'NaN'"),
    (r'"$\\boxed{NaN}$."', "'NaN'"),
    ('"caf\ufffd"', "U+FFFD"),
]
SOUND = [
    *(
        r'"\\frac{1}{2}"',
        r'"\\theta"',
        r'"1\t2"',
        r'"3 + 4\n#### 7"',
        r'"a\r\nb"',
        r'"\ud835\udc65"',
        '"Infinity"',
        '"\\\\infty"',
        "1e300",
        "7",
        "null",
    ),
    # wrapped lines and code
    '"we show that there\\nexists a number"',
    r'"def f(x):\n\tfrac = x % 1\n\top = 2\n\treturn frac"',
    json.dumps("\n".join(["Let", "u = 3 and", "e = 5.", "draw((0,0));\tdraw((1,1));", "x " * 100, "#### 7"])),
    *('"None"', '"no answer"', '"é"', '"½"'),
]


@pytest.mark.parametrize(("text", "cause"), IN_BOTH)
def test_damaged_values_are_found_in_answers_and_prompts(text: str, cause: str) -> None:
    for is_answer in (True, False):
        assert cause in (fault(json.loads(text), is_answer=is_answer) or "")


@pytest.mark.parametrize(("text", "cause"), ONLY_IN_ANSWERS)
def test_what_may_stand_in_a_prompt_may_not_in_an_answer(text: str, cause: str | None) -> None:
    assert fault(json.loads(text), is_answer=False) is None
    found = fault(json.loads(text), is_answer=True)
    assert found is None if cause is None else cause in (found or "")


@pytest.mark.parametrize("text", SOUND)
def test_sound_values_have_no_fault(text: str) -> None:
    assert fault(json.loads(text), is_answer=True) is None
    assert fault(json.loads(text), is_answer=False) is None


def test_code_in_a_prompt_may_be_indented_with_tabs() -> None:
    assert fault("def f(x):\n\tif x:\n\t\treturn x\n\telse:\n\t\ta = an(x)\n\tt = 1", is_answer=False) is None


def test_decimals_are_looked_at() -> None:
    assert "NaN" in (fault(Decimal("NaN"), is_answer=True) or "") and fault(Decimal("1.5"), is_answer=True) is None


@pytest.mark.parametrize("verifier", ["number", "math", "exact"])
@pytest.mark.parametrize("answer", [r'"\frac{1}{2}"', "NaN", "-Infinity", r'"\ud800"', r'"\theta"', r'"2\times 3"', r'"\boxed{5}"'])
def test_row_is_refused_with_file_row_and_cause(tmp_path: Path, verifier: str, answer: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "1"}}\n{{"prompt": "b", "answer": {answer}}}\n')
    with pytest.raises(TaskError) as refusal:
        ParquetTask(ParquetConfig.model_validate({"path": str(path), "verifier": verifier})).problems("train")
    line = str(refusal.value)
    assert line.startswith(f"task parquet: {path}: row 1: column 'answer' ") and "\n" not in line and line.isprintable()
    assert line.encode() and len(line) > len(f"task parquet: {path}: row 1: column 'answer' ") + 10


@pytest.mark.parametrize("prompt", [r'"What is \frac{1}{2}?"', r'[{"role": "user", "content": "\boxed{}"}]', r'"\udfff"', "NaN"])
def test_prompt_is_refused_likewise(tmp_path: Path, prompt: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(f'{{"prompt": {prompt}, "answer": "1"}}\n')
    with pytest.raises(TaskError, match="row 0: column 'prompt' "):
        ParquetTask(ParquetConfig(path=str(path))).problems("train")


@pytest.mark.parametrize(
    ("verifier", "answer"),
    [
        *(("exact", answer) for answer in ("<think>a", "</think>", "a<|im_end|>", "[INST]", "\u200b")),
        *(("number", answer) for answer in ("2^10", "1/0", "12:30", "2\\sqrt3", "1.2.3")),
    ],
)
def test_answer_that_no_response_could_equal_is_refused(tmp_path: Path, verifier: str, answer: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": answer}))
    with pytest.raises(TaskError, match=r"row 0: column 'answer' (is a text that no response can state|states no single number): "):
        ParquetTask(ParquetConfig.model_validate({"path": str(path), "verifier": verifier})).problems("train")


@pytest.mark.parametrize("answer", ["\\boxed{Paris}", "\u200bParis", "Paris\ufeff", "PARIS"])
def test_boxed_or_invisible_parts_of_an_exact_answer_do_not_count(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": answer}))
    task = ParquetTask(ParquetConfig.model_validate({"path": str(path), "verifier": "exact"}))
    (problem,) = task.problems("train")
    assert [task.verify(problem, response).reward for response in ("It is\nParis", "\\boxed{Paris}", "Lyon")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("contents", [[""], [" ", "\n"]])
def test_prompt_of_blank_messages_is_refused(tmp_path: Path, contents: list[str]) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": content} for content in contents], "answer": "1"}))
    with pytest.raises(TaskError, match="column 'prompt' is blank"):
        ParquetTask(ParquetConfig(path=str(path))).problems("train")


def test_long_answers_take_linear_time() -> None:
    """The size is the measurement: a quadratic rule meets the suite's timeout."""
    for unit in ("\n", " $", "#", "\\boxed{", "nan", "\t "):
        fault(unit * 200_000, is_answer=True)


def test_row_names_itself_only_for_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\tb", "b": null}\n')
    (row,) = DataFile(task="t", path=path).rows(["a", "b"])
    row.require_sound("a")
    row.require_sound("b", is_answer=True)
    with pytest.raises(TaskError, match="column 'a' holds a tab before 'b'"):
        row.require_sound("a", is_answer=True)
