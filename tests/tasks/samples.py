"""Rows of data files, written as Parquet or JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

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
