"""Where pools are kept while a job runs: whole or not there, each once, in order."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.config import ConfigError
from jobs.sampling.candidates import PoolStore, split_pools
from jobs.sampling.evaluator import POOL_KEY
from tests.jobs.samples_fixture import pool_table


def store_in(directory: Path) -> PoolStore:
    return PoolStore(directory, {"seed": 1}, file="samples.parquet", key=POOL_KEY)


def test_pools_of_two_models_on_one_problem_are_two(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for model in ("b", "a"):
        store.add(pool_table(model, "p0", "1x"))
    assert store.finished() == {("a", "p0"), ("b", "p0")}
    store.compact([("b", "p0"), ("a", "p0")])
    assert store.finished() == {("a", "p0"), ("b", "p0")}
    assert [pool["model"][0].as_py() for pool in split_pools(store.read(), POOL_KEY)] == ["b", "a"]
    assert list(tmp_path.iterdir()) == [tmp_path / "samples.parquet"]


def test_a_pool_added_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.add(pool_table("a", "p0", "xx"))
    (pool,) = store.parts()
    store.add(pool.set_column(pool.column_names.index("question"), "question", [["new", "new"]]))
    store.compact([("a", "p0")])
    assert store.read()["question"].to_pylist() == ["new", "new"]


def test_what_was_compacted_before_stays_and_what_came_since_joins_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.add(pool_table("a", "p1", "1x"))
    store.compact([("a", "p0"), ("a", "p1")])
    store.add(pool_table("a", "p0", "xx"))
    store.compact([("a", "p0"), ("a", "p1")])
    assert store.read()["problem_id"].to_pylist() == ["p0", "p0", "p1", "p1"]
    before = store.file.stat()
    store.compact([("a", "p0"), ("a", "p1")])
    assert store.file.stat().st_mtime_ns == before.st_mtime_ns, "nothing new, and yet it was written again"


def test_pools_are_read_one_at_a_time_with_the_columns_that_are_there(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(3):
        store.add(pool_table("a", f"p{number}", "1x"))
    store.compact([("a", f"p{number}") for number in range(3)])
    found = list(store.read_pools(lambda key: key != ("a", "p1"), ("problem_id", "base_mean_logprob")))
    assert [table.to_pydict() for table in found] == [{"problem_id": ["p0", "p0"]}, {"problem_id": ["p2", "p2"]}]
    assert pq.ParquetFile(store.file).num_row_groups == 3


def test_a_directory_without_any_pool_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no finished pool yet"):
        store_in(tmp_path).compact([])
