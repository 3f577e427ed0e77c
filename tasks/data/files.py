"""Rows of local Parquet and JSON Lines files. A TaskError says what is wrong, in which file, column and row.

    file = DataFile(task="parquet", path=Path("problems.jsonl"))
    for row in file.rows(["prompt", "answer"]):
        if row.values["prompt"] is None:
            raise row.error("column 'prompt' is null")

Rows count from 0; the blank lines of a JSON Lines file do not count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import TaskError
from tasks.data.texts import fault

__all__ = ["SUFFIXES", "DataFile", "Row"]

SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A data file of `task`. All methods raise TaskError if it cannot be read."""

    task: str
    path: Path

    def columns(self) -> list[str]:
        """Return the names of all columns: for JSON Lines, every key that occurs in some row."""
        return _keys(self._json_rows()) if self._is_json else self._parquet_columns()

    def num_rows(self) -> int:
        if self._is_json:
            return len(self._json_rows())
        from pyarrow import parquet

        with self._readable("Parquet"):
            count: int = parquet.read_metadata(self.path).num_rows
        return count

    def rows(self, columns: Sequence[str]) -> list[Row]:
        """Return all rows with their values of `columns`. A key that a JSON row lacks has the value None. Raises
        TaskError for a file without rows, and for a column that the file does not have."""
        if self._is_json:
            rows = self._json_rows()
            self._require(columns, _keys(rows))
        else:
            self._require(columns, self._parquet_columns())
            rows = self._parquet_rows(columns)
        if not rows:
            raise self.error("no rows")
        return [Row(file=self, number=number, values={name: row.get(name) for name in columns}) for number, row in enumerate(rows)]

    def error(self, problem: str) -> TaskError:
        return TaskError(f"task {self.task}: {self.path}: {problem}")

    @property
    def _is_json(self) -> bool:
        return self.path.suffix == ".jsonl"

    def _require(self, columns: Sequence[str], present: Sequence[str]) -> None:
        missing = [column for column in columns if column not in present]
        if missing and present:
            raise self.error(f"no column '{missing[0]}', only {', '.join(present)}")

    def _parquet_columns(self) -> list[str]:
        from pyarrow import parquet  # a verifier process makes tasks but reads no file

        with self._readable("Parquet"):
            names: list[str] = parquet.read_schema(self.path).names
        return names

    def _parquet_rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        from pyarrow import parquet

        with self._readable("Parquet"), parquet.ParquetFile(self.path) as file:
            rows: list[dict[str, Any]] = file.read(columns=list(columns)).to_pylist()
        return rows

    def _json_rows(self) -> list[dict[str, Any]]:
        """Parse with the standard library, because Arrow's reader turns text that looks like a time into one."""
        with self._readable("UTF-8"):
            lines = self.path.read_text(encoding="utf-8-sig").split("\n")
        return [self._json_row(line, number) for number, line in enumerate(lines, start=1) if line.strip()]

    def _json_row(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self.error(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise self.error(f"line {number} is no JSON object")
        return row

    @contextmanager
    def _readable(self, form: str) -> Iterator[None]:
        """Turn the errors of Arrow, which are ValueErrors and OSErrors, into TaskErrors."""
        try:
            yield
        except (ValueError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise self.error(f"cannot be read as {form}: {reason}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of `file`: its number, and its values by column."""

    file: DataFile
    number: int
    values: Mapping[str, Any]

    def error(self, problem: str) -> TaskError:
        return self.file.error(f"row {self.number}: {problem}")

    def require_sound(self, column: str, *, is_answer: bool = False) -> None:
        """Raise TaskError for a value that cannot be what was meant (`tasks.data.texts`)."""
        found = fault(self.values.get(column), is_answer=is_answer)
        if found is not None:
            raise self.error(f"column '{column}' {found}")


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
