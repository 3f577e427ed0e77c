"""Pools of candidate answers as an Arrow table, and where they are kept while a job runs.

    store = PoolStore(directory)
    store.add(pool)                 # one file a finished prompt, whole or not there
    table = store.compact()         # OUT/pools.parquet

A row is a candidate, a pool its adjacent rows. There is no clock in it: the same job writes the same rows, however often it was killed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from buffers.records import Problem, Verdict, VerdictStatus
from jobs.atomic import replacing
from jobs.config import ConfigError

VERSION_KEY, SETTINGS_KEY = b"repexp.pools", b"repexp.explore"
POOLS_VERSION = "1.0"

SAMPLED_COLUMNS: dict[str, pa.DataType] = {
    "task": pa.string(),
    "problem_id": pa.string(),
    "question": pa.string(),
    "reference_answer": pa.string(),
    "index": pa.int32(),
    "prompt_ids": pa.list_(pa.int32()),
    "response_ids": pa.list_(pa.int32()),
    "response_logprobs": pa.list_(pa.float32()),
    "mean_logprob": pa.float64(),
    "response_text": pa.string(),
    "finish_reason": pa.string(),
    "feature": pa.list_(pa.float32()),
}
JUDGED_COLUMNS: dict[str, pa.DataType] = {
    "final_answer": pa.string(),
    "verdict_status": pa.string(),
    "reward": pa.float64(),
    "verdict_answer": pa.string(),
    "verdict_detail": pa.string(),
    "score_repexp": pa.float64(),
    "score_quality": pa.float64(),
}


def sampled_pool(batch: pa.RecordBatch) -> pa.Table:
    """The candidates of one rollout batch (one prompt), feature included where it has one."""
    rows = pa.Table.from_batches([batch])
    columns = {name: rows[name] for name in SAMPLED_COLUMNS if name in rows.column_names}
    columns["response_logprobs"] = rows["behavior_logprobs"]
    logprobs = rows["behavior_logprobs"].to_pylist()
    columns["mean_logprob"] = pa.chunked_array([pa.array([float(np.mean(row)) if row else None for row in logprobs], pa.float64())])
    return pa.table({name: columns[name].cast(kind) for name, kind in SAMPLED_COLUMNS.items()})


def with_columns(pool: pa.Table, values: Mapping[str, Sequence[Any] | np.ndarray]) -> pa.Table:
    """`pool` with `values` set, in the place of columns of the same names."""
    for name, column in values.items():
        kind = JUDGED_COLUMNS.get(name, pa.int32())
        array = pa.array(column, kind)
        place = pool.column_names.index(name) if name in pool.column_names else pool.num_columns
        pool = pool.remove_column(place) if name in pool.column_names else pool
        pool = pool.add_column(place, name, array)
    return pool


def with_verdicts(pool: pa.Table, verdicts: Mapping[int, Verdict]) -> pa.Table:
    """`pool` with the verdicts of its rows `verdicts`; the others were not judged."""
    rows = [verdicts.get(row) for row in range(pool.num_rows)]
    return with_columns(
        pool,
        {
            "verdict_status": [None if v is None else v.status.value for v in rows],
            "reward": [None if v is None else v.reward for v in rows],
            "verdict_answer": [None if v is None else v.answer for v in rows],
            "verdict_detail": [None if v is None else v.detail for v in rows],
        },
    )


def known_verdicts(pool: pa.Table) -> dict[int, Verdict]:
    """The verdicts that `pool` has, by row."""
    if "verdict_status" not in pool.column_names:
        return {}
    rows = pool.select(["verdict_status", "reward", "verdict_answer", "verdict_detail"]).to_pylist()
    return {
        number: Verdict(
            status=VerdictStatus(row["verdict_status"]), reward=row["reward"], answer=row["verdict_answer"], detail=row["verdict_detail"]
        )
        for number, row in enumerate(rows)
        if row["verdict_status"] is not None
    }


def problem_of(pool: pa.Table) -> Problem:
    """The problem a pool was sampled for; its meta data are not kept."""
    first = pool.slice(0, 1).select(["task", "problem_id", "question", "reference_answer"]).to_pylist()[0]
    return Problem(task=first["task"], problem_id=first["problem_id"], question=first["question"], answer=first["reference_answer"])


def split_pools(table: pa.Table) -> Iterator[pa.Table]:
    """One table a problem, in the order they stand."""
    ids = table["problem_id"].to_numpy()
    starts = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
    for start, stop in itertools.pairwise(starts):
        if stop > start:
            yield table.slice(start, stop - start)


class PoolStore:
    """`OUT/parts/` holds one file a finished pool; `OUT/pools.parquet` all of them once the job has ended."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self._parts = directory / "parts"
        self.file = directory / "pools.parquet"
        self._metadata = {VERSION_KEY: POOLS_VERSION.encode(), SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode()}

    def finished(self) -> set[str]:
        """Problems whose pools are complete: sampled, ordered, judged."""
        done = set(pq.read_table(self.file, columns=["problem_id"])["problem_id"].unique().to_pylist()) if self.file.is_file() else set()
        for part in self._part_files():
            done.add(pq.read_table(part, columns=["problem_id"])["problem_id"][0].as_py())
        return done

    def add(self, pool: pa.Table) -> None:
        self._parts.mkdir(exist_ok=True)
        name = hashlib.sha256(problem_of(pool).problem_id.encode()).hexdigest()[:24]
        _write(pool.replace_schema_metadata(self._metadata), self._parts / f"{name}.parquet")

    def compact(self, order: Sequence[str]) -> pa.Table:
        """All pools as one file, problems in the order of `order`; the parts are then removed."""
        tables = [pq.read_table(self.file)] if self.file.is_file() else []
        tables += [pq.read_table(part) for part in self._part_files()]
        pools = {problem_of(pool).problem_id: pool for table in tables for pool in split_pools(table)}
        if not pools:
            raise ConfigError(f"{self.file.parent} has no finished pool yet")
        place = {problem_id: number for number, problem_id in enumerate(order)}
        chosen = sorted(pools, key=lambda problem_id: (place.get(problem_id, len(place)), problem_id))
        table = pa.concat_tables([pools[problem_id].replace_schema_metadata(None) for problem_id in chosen])
        table = table.replace_schema_metadata(self._metadata)
        _write(table, self.file)
        shutil.rmtree(self._parts, ignore_errors=True)
        return table

    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet")) if self._parts.is_dir() else []


def read_pools(path: str) -> tuple[pa.Table, dict[str, Any]]:
    """Pools and the settings they were sampled with, from a file or from a job's directory. Raises ConfigError."""
    place = Path(path)
    if place.is_dir():
        place = place / "pools.parquet" if (place / "pools.parquet").is_file() else place / "parts"
    if not place.exists():
        raise ConfigError(f"--from-pools {path}: there are no pools; give a pools.parquet or the directory of a job")
    try:
        table = pq.read_table(place)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"--from-pools {path} cannot be read: {str(error).splitlines()[0]}") from None
    metadata = table.schema.metadata or {}
    found = metadata.get(VERSION_KEY, b"").decode()
    if found.split(".")[0] != POOLS_VERSION.split(".")[0]:
        raise ConfigError(
            f"--from-pools {path}: {'not a table of pools' if not found else f'pools of version {found}'}, needed is {POOLS_VERSION}"
        )
    missing = [name for name in SAMPLED_COLUMNS if name not in table.column_names]
    if missing:
        raise ConfigError(f"--from-pools {path} lacks the columns {', '.join(missing)}")
    if not table.num_rows:
        raise ConfigError(f"--from-pools {path} is empty")
    return table, json.loads(metadata.get(SETTINGS_KEY, b"{}"))


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as staging:
        pq.write_table(table, staging, compression="zstd")
