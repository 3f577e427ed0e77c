"""The chosen answers as JSON lines: what production takes away from `jobs.explore`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.directory.atomic import replacing
from jobs.explore_config import ExploreConfig

COLUMNS = ("problem_id", "question", "response_text", "final_answer", "verdict_status", "reward", "mean_logprob")


def write_selected(table: pa.Table, config: ExploreConfig, path: Path) -> int:
    """One line a chosen answer, problem by problem in the order they were chosen; returns how many."""
    rank = f"rank_{config.primary_order}"
    chosen = table.filter(pc.less(table[rank], config.select[-1]))
    num_written = 0
    with replacing(path) as staging, open(staging, "w", encoding="utf-8") as file:
        by_problem: dict[str, list[dict[str, object]]] = {}
        for row in chosen.select([*COLUMNS, rank]).to_pylist():
            by_problem.setdefault(row["problem_id"], []).append(row)
        for rows in by_problem.values():
            for row in sorted(rows, key=lambda row: row[rank]):  # type: ignore[arg-type,return-value]
                record = {"problem_id": row["problem_id"], "rank": row[rank]} | {name: row[name] for name in COLUMNS[1:]}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                num_written += 1
    return num_written
