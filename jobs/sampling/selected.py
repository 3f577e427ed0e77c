"""The chosen answers as JSON lines: what production takes from `jobs.explore`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.directory.atomic import replacing
from jobs.explore_config import ExploreConfig

COLUMNS = ("problem_id", "question", "response_text", "final_answer", "verdict_status", "reward", "mean_logprob")


def write_selected(table: pa.Table, config: ExploreConfig, path: Path) -> int:
    """Write one line for each chosen answer, problem by problem, in the order they were chosen. Return their number."""
    rank = f"rank_{config.primary_order}"
    rows = table.filter(pc.less(table[rank], config.select[-1])).select([*COLUMNS, rank]).to_pylist()
    problems = {row["problem_id"]: place for place, row in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda row: (problems[row["problem_id"]], row[rank]))
    with replacing(path) as staging, open(staging, "w", encoding="utf-8") as file:
        for row in rows:
            record = {"problem_id": row["problem_id"], "rank": row[rank]} | {name: row[name] for name in COLUMNS[1:]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(rows)
