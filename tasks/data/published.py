"""Rows of a published data set, each under its place in the published file, whatever file they are read from.

    for row in published_rows(file, layouts=[("prompt", "answer"), ("question", "answer")], num_rows=1319, title="GSM8K"):
        print(row.index, row.question, row.answer)

A file is as published, row i in place i, or it has a column "index" that says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data.files import DataFile, Row

__all__ = ["PublishedRow", "published_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """Row `index` of the published file. `answer` is what its column holds, of whatever type."""

    row: Row
    index: int
    question: str
    answer: Any
    answer_column: str


def published_rows(
    file: DataFile, *, layouts: Sequence[tuple[str, str]], num_rows: int, title: str, unusable: Collection[int] = ()
) -> list[PublishedRow]:
    """All rows by index but the `unusable`, which the file may lack. `layouts` are pairs of columns, question and
    answer.

    Raises TaskError where the file has none of the layouts, another number of rows, a blank question, or an index
    twice."""
    present = file.columns()
    layout = next((layout for layout in layouts if set(layout) <= set(present)), None)
    if layout is None:
        raise file.error(f"no columns {', or '.join(' and '.join(layout) for layout in layouts)}, only {', '.join(present)}")
    has_index = "index" in present
    rows = file.rows([*layout, "index"] if has_index else layout)
    counts = {num_rows, num_rows - len(unusable)} if has_index else {num_rows}
    if len(rows) not in counts:
        raise file.error(f'{len(rows)} rows, and {title}\'s has {num_rows}: for problems of your own set task.name to "parquet"')
    found: dict[int, PublishedRow] = {}
    for row in rows:
        index = row.values["index"] if has_index else row.number
        if not isinstance(index, int) or index not in range(num_rows) or index in found:
            raise row.error(f"column 'index': {index!r} is no row of the published file, or there twice")
        found[index] = _published(row, index, layout)
    missing = set(range(num_rows)) - set(found) - set(unusable)
    if missing:
        raise file.error(f"column 'index' lacks {min(missing)}")
    return [found[index] for index in sorted(found.keys() - set(unusable))]


def _published(row: Row, index: int, layout: tuple[str, str]) -> PublishedRow:
    question, answer = (row.values[column] for column in layout)
    if not isinstance(question, str) or not question.strip():
        raise row.error(f"column '{layout[0]}' holds no question: {str(question)[:80]!r}")
    return PublishedRow(row=row, index=index, question=question.strip(), answer=answer, answer_column=layout[1])
