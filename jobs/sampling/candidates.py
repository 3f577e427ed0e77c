"""Candidates, the responses to problems, as an Arrow table; and where they are kept while a job runs.

    store = CandidateStore(directory, settings)
    store.add(candidates)           # one file for each finished problem: it is there whole or not at all
    store.compact(order)            # one file of all: pools.parquet, or samples.parquet of jobs.evaluate
    table = store.read()

A row is a candidate; the candidates of one problem are adjacent rows. The table holds no times, so that the same job
writes the same rows, however often it was killed."""

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
from jobs.configuration.files import path_of
from jobs.configuration.user_error import UserError
from jobs.directory.atomic import replacing

CANDIDATES_FILE, PARTS = "pools.parquet", "parts"
VERSION_KEY, SETTINGS_KEY = b"repexp.pools", b"repexp.explore"
TABLE_VERSION = "1.0"

CandidateKey = tuple[str, ...]

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
VERDICT_COLUMNS = ("verdict_status", "reward", "verdict_answer", "verdict_detail")


def sampled_candidates(batch: pa.RecordBatch) -> pa.Table:
    """Return the candidates of one rollout batch, which is of one problem, with their features where it has them."""
    rows = pa.Table.from_batches([batch])
    columns = {name: rows[name] for name in SAMPLED_COLUMNS if name in rows.column_names}
    columns["response_logprobs"] = rows["behavior_logprobs"]
    logprobs = rows["behavior_logprobs"].to_pylist()
    columns["mean_logprob"] = pa.chunked_array([pa.array([float(np.mean(row)) if row else None for row in logprobs], pa.float64())])
    return pa.table({name: columns[name].cast(kind) for name, kind in SAMPLED_COLUMNS.items()})


def with_columns(candidates: pa.Table, values: Mapping[str, Sequence[Any] | np.ndarray]) -> pa.Table:
    """Return `candidates` with the columns `values`, which replace columns of the same names."""
    for name, column in values.items():
        kind = JUDGED_COLUMNS.get(name, pa.int32())
        array = pa.array(column, kind)
        place = candidates.column_names.index(name) if name in candidates.column_names else candidates.num_columns
        candidates = candidates.remove_column(place) if name in candidates.column_names else candidates
        candidates = candidates.add_column(place, name, array)
    return candidates


def with_verdicts(candidates: pa.Table, verdicts: Mapping[int, Verdict]) -> pa.Table:
    """Return `candidates` with `verdicts`, which are given by row. All other rows count as not judged."""
    rows = [verdicts.get(row) for row in range(candidates.num_rows)]
    return with_columns(
        candidates,
        {
            "verdict_status": [None if v is None else v.status.value for v in rows],
            "reward": [None if v is None else v.reward for v in rows],
            "verdict_answer": [None if v is None else v.answer for v in rows],
            "verdict_detail": [None if v is None else v.detail for v in rows],
        },
    )


def known_verdicts(candidates: pa.Table) -> dict[int, Verdict]:
    """Return the verdicts that `candidates` have, by row."""
    if "verdict_status" not in candidates.column_names:
        return {}
    rows = [tuple(row.values()) for row in candidates.select(VERDICT_COLUMNS).to_pylist()]
    return {
        number: Verdict(status=VerdictStatus(status), reward=reward, answer=answer, detail=detail)
        for number, (status, reward, answer, detail) in enumerate(rows)
        if status is not None
    }


def problem_of(candidates: pa.Table) -> Problem:
    """Return the problem that `candidates` are of. The table does not keep the problem's metadata."""
    first = candidates.slice(0, 1).select(["task", "problem_id", "question", "reference_answer"]).to_pylist()[0]
    return Problem(task=first["task"], problem_id=first["problem_id"], question=first["question"], answer=first["reference_answer"])


def split_by_problem(table: pa.Table, key: Sequence[str] = ("problem_id",)) -> Iterator[pa.Table]:
    """Yield one table for each problem: adjacent rows with the same values of `key`."""
    columns = [table[name].to_numpy() for name in key]
    changes = np.any([ids[1:] != ids[:-1] for ids in columns], axis=0)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), table.num_rows]
    for start, stop in itertools.pairwise(starts):
        if stop > start:
            yield table.slice(start, stop - start)


class CandidateStore:
    """Candidates of a job: a file in `OUT/parts/` for each finished key, all in `OUT/FILE` at the end."""

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], *, file: str = CANDIDATES_FILE, key: Sequence[str] = ("problem_id",)
    ) -> None:
        """`key` names the columns that tell the candidates of one problem from those of another."""
        self._parts = directory / PARTS
        self.file = directory / file
        self._key = tuple(key)
        self._metadata = {VERSION_KEY: TABLE_VERSION.encode(), SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode()}

    def finished(self) -> set[CandidateKey]:
        """Return the keys that are finished: sampled, judged, and whatever else the job does before it adds them."""
        keys = set(self._parts_by_key())
        if self.file.is_file():
            rows = _table(self.file, self._key).group_by(list(self._key)).aggregate([]).to_pylist()
            keys |= {tuple(row[name] for name in self._key) for row in rows}
        return keys

    def add(self, candidates: pa.Table) -> None:
        """Keep the candidates of one key, in place of earlier ones of the same key."""
        self._parts.mkdir(exist_ok=True)
        name = hashlib.sha256("\x1f".join(self._key_of(candidates)).encode()).hexdigest()[:24]
        with replacing(self._parts / f"{name}.parquet") as staging:
            pq.write_table(candidates.replace_schema_metadata(self._metadata), staging, compression="zstd")

    def parts(self) -> Iterator[pa.Table]:
        """Yield what was added since the last `compact`, one key at a time."""
        return (_table(part).replace_schema_metadata(None) for part in self._part_files())

    def compact(self, order: Sequence[CandidateKey]) -> None:
        """Write all candidates into one file, in the order of `order`, one row group for each key, and remove the
        parts. The candidates of one key lie in memory at a time. Raises UserError where there are none at all."""
        parts = self._parts_by_key()
        if not parts and self.file.is_file():
            return
        old = {self._key_of(one): one for one in split_by_problem(_table(self.file), self._key)} if self.file.is_file() else {}
        if not parts:
            raise UserError(f"{self.file.parent} has no finished problem yet")
        place = {key: number for number, key in enumerate(order)}
        chosen = sorted(parts.keys() | old.keys(), key=lambda key: (place.get(key, len(place)), key))
        schema = pq.read_schema(next(iter(parts.values()))).with_metadata(self._metadata)
        with replacing(self.file) as staging, pq.ParquetWriter(staging, schema, compression="zstd") as writer:
            for key in chosen:
                candidates = _table(parts[key]) if key in parts else old[key]
                writer.write_table(candidates.replace_schema_metadata(self._metadata))
        shutil.rmtree(self._parts, ignore_errors=True)

    def read(self) -> pa.Table:
        """Return all candidates after `compact`."""
        return _table(self.file)

    def read_each(self, wanted: Callable[[CandidateKey], bool], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the candidates of every key that is `wanted`, after `compact`, with those of `columns` they have."""
        with pq.ParquetFile(self.file) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                if wanted(self._key_of(file.read_row_group(number, columns=list(self._key)).slice(0, 1))):
                    yield file.read_row_group(number, columns=present)

    def _parts_by_key(self) -> dict[CandidateKey, Path]:
        return {self._key_of(_table(part, self._key).slice(0, 1)): part for part in self._part_files()}

    def _key_of(self, candidates: pa.Table) -> CandidateKey:
        return tuple(candidates[name][0].as_py() for name in self._key)

    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet")) if self._parts.is_dir() else []


def _table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file of a job. Raises UserError, which says what to do, for one that is damaged."""
    try:
        return pq.read_table(file, columns=None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read ({why}): delete it, and the same command samples what it held again") from None


def read_candidates(path: str) -> tuple[pa.Table, dict[str, Any]]:
    """Return candidates and the settings they were sampled with, from a file or a job's directory. Raises UserError."""
    place = path_of(path)
    if place.is_dir():
        place = place / CANDIDATES_FILE if (place / CANDIDATES_FILE).is_file() else place / PARTS
    if not place.exists():
        raise UserError(f"--from-pools {path}: there are no pools; give a {CANDIDATES_FILE} or the directory of a job")
    try:
        table = pq.read_table(place)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--from-pools {path} cannot be read: {str(error).splitlines()[0]}") from None
    metadata = table.schema.metadata or {}
    found = metadata.get(VERSION_KEY, b"").decode()
    if found.split(".")[0] != TABLE_VERSION.split(".")[0]:
        what = f"pools of version {found}" if found else "not a table of pools"
        raise UserError(f"--from-pools {path}: {what}, needed is {TABLE_VERSION}")
    missing = [name for name in SAMPLED_COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"--from-pools {path} lacks the columns {', '.join(missing)}")
    if not table.num_rows:
        raise UserError(f"--from-pools {path} is empty")
    return table, json.loads(metadata.get(SETTINGS_KEY, b"{}"))
