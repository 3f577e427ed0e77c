"""Pools of candidate answers as an Arrow table, and where they are kept while a job runs.

    store = PoolStore(directory, settings)
    store.add(pool)                 # one file a finished pool, whole or not there
    store.compact(order)            # OUT/pools.parquet
    table = store.read()

A row is a candidate, a pool its adjacent rows. There is no clock in it: the same job writes the same rows, however
often it was killed."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from buffers.records import Problem, Verdict, VerdictStatus
from jobs.config import ConfigError
from jobs.directory.atomic import replacing

VERSION_KEY, SETTINGS_KEY = b"repexp.pools", b"repexp.explore"
POOLS_VERSION = "1.0"

PoolKey = tuple[str, ...]

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
    "base_mean_logprob": pa.float64(),
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


def split_pools(table: pa.Table, key: Sequence[str] = ("problem_id",)) -> Iterator[pa.Table]:
    """One table a pool, in the order they stand: adjacent rows with the same values of `key`."""
    columns = [table[name].to_numpy() for name in key]
    changes = np.any([ids[1:] != ids[:-1] for ids in columns], axis=0)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), table.num_rows]
    for start, stop in itertools.pairwise(starts):
        if stop > start:
            yield table.slice(start, stop - start)


class PoolStore:
    """`OUT/parts/` holds one file a finished pool; `OUT/pools.parquet` all of them once the job has ended."""

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], *, file: str = "pools.parquet", key: Sequence[str] = ("problem_id",)
    ) -> None:
        """`key`: the columns that tell one pool from another."""
        self._parts = directory / "parts"
        self.file = directory / file
        self._key = tuple(key)
        self._metadata = {VERSION_KEY: POOLS_VERSION.encode(), SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode()}

    def finished(self) -> set[PoolKey]:
        """Pools that are complete: sampled, judged, and whatever else the job does before it adds them."""
        return set(self._compacted_keys()) | set(self._parts_by_key())

    def add(self, pool: pa.Table) -> None:
        """In the place of the pool of the same key, if there is one."""
        self._parts.mkdir(exist_ok=True)
        name = hashlib.sha256("\x1f".join(self._key_of(pool)).encode()).hexdigest()[:24]
        with replacing(self._parts / f"{name}.parquet") as staging:
            pq.write_table(pool.replace_schema_metadata(self._metadata), staging, compression="zstd")

    def parts(self) -> Iterator[pa.Table]:
        """The pools that were added since the last `compact`, one at a time."""
        return (_without_metadata(pq.read_table(part)) for part in self._part_files())

    def compact(self, order: Sequence[PoolKey]) -> None:
        """All pools as one file, in the order of `order`, a row group each; the parts are then removed. One pool is in
        memory at a time."""
        parts = self._parts_by_key()
        if not parts and self.file.is_file():
            return
        old = {self._key_of(pool): pool for pool in split_pools(pq.read_table(self.file), self._key)} if self.file.is_file() else {}
        if not parts:
            raise ConfigError(f"{self.file.parent} has no finished pool yet")
        place = {key: number for number, key in enumerate(order)}
        chosen = sorted(parts.keys() | old.keys(), key=lambda key: (place.get(key, len(place)), key))
        schema = pq.read_schema(next(iter(parts.values()))).with_metadata(self._metadata)
        with replacing(self.file) as staging, pq.ParquetWriter(staging, schema, compression="zstd") as writer:
            for key in chosen:
                pool = pq.read_table(parts[key]) if key in parts else old[key]
                writer.write_table(pool.replace_schema_metadata(self._metadata))
        shutil.rmtree(self._parts, ignore_errors=True)

    def read(self) -> pa.Table:
        """The compacted pools."""
        return pq.read_table(self.file)

    def read_pools(self, wanted: Callable[[PoolKey], bool], columns: Sequence[str]) -> Iterator[pa.Table]:
        """The compacted pools that are wanted, one at a time; of their columns those that are asked for and there."""
        with pq.ParquetFile(self.file) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                if wanted(self._key_of(file.read_row_group(number, columns=list(self._key)).slice(0, 1))):
                    yield file.read_row_group(number, columns=present)

    def _compacted_keys(self) -> Iterator[PoolKey]:
        if self.file.is_file():
            keys = pq.read_table(self.file, columns=list(self._key)).group_by(list(self._key)).aggregate([])
            yield from (tuple(row[name] for name in self._key) for row in keys.to_pylist())

    def _parts_by_key(self) -> dict[PoolKey, Path]:
        return {self._key_of(pq.read_table(part, columns=list(self._key)).slice(0, 1)): part for part in self._part_files()}

    def _key_of(self, pool: pa.Table) -> PoolKey:
        return tuple(pool[name][0].as_py() for name in self._key)

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


def _without_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)
