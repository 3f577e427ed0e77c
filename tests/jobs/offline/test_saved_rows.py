"""Rows of rollouts from elsewhere: what is damaged in their texts is refused with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.offline.saved_rows import SavedRows

ROW: dict[str, Any] = {"prompt_ids": [1, 2], "response_ids": [3], "logprobs": [-0.5], "reward": 1.0, "question": "?", "answer": "7"}
ROW |= {"response_text": "7", "group_id": 0, "feature": [0.5, 1.0]}


def groups(tmp_path: Path, text: str) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n{text}\n{text}\n")
    return list(SavedRows(RunConfig(responses_per_prompt=2), path).groups())


def test_sound_rows_are_read_with_whatever_a_model_wrote(tmp_path: Path) -> None:
    row = json.dumps({**ROW, "group_id": 1, "response_text": "a form feed \f, a tab\tb, \\boxed{7}"})
    assert [batch.num_rows for batch in groups(tmp_path, row)] == [2, 2]


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        ("answer", r'"\frac12"', "a form feed before 'rac12'"),
        ("answer", r'"\theta"', "a tab before 'heta'"),
        ("answer", "NaN", "'NaN' stands for a value that is missing"),
        ("question", r'"2 \times 3"', "a tab before 'imes 3'"),
        ("question", r'"\ud800"', "a lone surrogate"),
        ("response_text", r'"\ud800"', "a lone surrogate"),
        ("feature", "[0.5, Infinity]", "Infinity"),
        ("feature", '["a", "b"]', "no list of numbers"),
        ("feature", "0.5", "no list of numbers"),
        ("feature", "[[1], [2]]", "no list of numbers"),
    ],
)
def test_damaged_rows_are_refused_with_file_row_and_cause(tmp_path: Path, column: str, value: str, cause: str) -> None:
    rest = json.dumps({key: item for key, item in ({**ROW, "group_id": 1}).items() if key != column})
    with pytest.raises(UserError) as refusal:
        groups(tmp_path, f'{rest[:-1]}, "{column}": {value}}}')
    line = str(refusal.value)
    assert f"rows.jsonl: row 2: column '{column}' " in line and cause in line and "\n" not in line
