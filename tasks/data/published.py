"""Rows of a published data set. Each row keeps its index in the published file, whatever file it is read from.

    layouts = [("prompt", "answer"), ("question", "answer")]
    for row in published_rows(file, layouts=layouts, num_rows=1319, title="GSM8K"):
        print(row.index, row.question, row.answer)

Row i stands in place i, as published, unless the file has a column "index" that gives the indices."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data.files import DataFile, Row

__all__ = ["PublishedRow", "published_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """Row `index` of the published file. `answer` is the value of its column, of any type."""

    row: Row
    index: int
    question: str
    answer: Any
    answer_column: str


def published_rows(
    file: DataFile, *, layouts: Sequence[tuple[str, str]], num_rows: int, title: str, unusable: Collection[int] = ()
) -> list[PublishedRow]:
    """Return all rows in the order of their indices, except the `unusable` ones, which the file may lack. Each of
    `layouts` is a pair of columns: question and answer. Raises TaskError if the file has none of the layouts, another
    number of rows, a blank question, the same index twice, or an answer that is damaged (`tasks.data.texts`)."""
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
    row.require_sound(layout[1], is_answer=True)
    question, answer = (row.values[column] for column in layout)
    if not isinstance(question, str) or not question.strip():
        raise row.error(f"column '{layout[0]}' holds no question: {str(question)[:80]!r}")
    return PublishedRow(row=row, index=index, question=question.strip(), answer=answer, answer_column=layout[1])
