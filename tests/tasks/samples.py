"""Rows of data files, written as Parquet or JSON Lines, and a task of numbered problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from buffers.records import Problem, Verdict, VerdictStatus
from tasks.base import Message
from tasks.gsm8k import NUM_ROWS

Rows = list[dict[str, Any]]


def write_rows(path: Path, rows: Rows) -> str:
    """As the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def gsm8k_rows(stem: str) -> Rows:
    """As many as GSM8K has: question i has answer 1000 + i."""
    return [{"prompt": f"Question {i} of {stem}?", "answer": str(1000 + i), "index": i} for i in range(NUM_ROWS[stem])]


class ListTask:
    """A task of `num_problems` problems in split "train"; None: endless."""

    name: str = "list"
    deadline_s: float = 2.0
    has_verifier: bool = True

    def __init__(self, num_problems: int | None) -> None:
        self._indices = count() if num_problems is None else range(num_problems)

    def problems(self, split: str) -> Iterator[Problem]:
        if split != "train":
            raise ValueError(f"no split '{split}'")
        return (Problem(task=self.name, problem_id=str(index), question="?", answer="!") for index in self._indices)

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        return response

    def verify(self, problem: Problem, response: str) -> Verdict:
        return Verdict(status=VerdictStatus.INCORRECT, reward=0.0)


class EndlessTask(ListTask):
    """A `tasks.stream.IndexedTask` of numbered problems."""

    def __init__(self) -> None:
        super().__init__(None)

    def problem(self, split: str, index: int) -> Problem:
        return Problem(task=self.name, problem_id=str(index), question="?", answer="!")
