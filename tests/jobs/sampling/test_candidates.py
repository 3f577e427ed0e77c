"""Where candidates are kept while a job runs: whole or not there, each once, in order."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.configuration.user_error import UserError
from jobs.sampling.candidates import CandidateStore, split_by_problem
from jobs.sampling.samples import MODEL_AND_PROBLEM
from tests.jobs.samples_fixture import response_table


def store_in(directory: Path) -> CandidateStore:
    return CandidateStore(directory, {"seed": 1}, file="samples.parquet", key=MODEL_AND_PROBLEM)


def test_the_responses_of_two_models_to_one_problem_are_kept_apart(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for model in ("b", "a"):
        store.add(response_table(model, "p0", "1x"))
    assert store.finished() == {("a", "p0"), ("b", "p0")}
    store.compact([("b", "p0"), ("a", "p0")])
    assert store.finished() == {("a", "p0"), ("b", "p0")}
    assert [candidates["model"][0].as_py() for candidates in split_by_problem(store.read(), MODEL_AND_PROBLEM)] == ["b", "a"]
    assert list(tmp_path.iterdir()) == [tmp_path / "samples.parquet"]


def test_candidates_added_again_take_the_place_of_the_first(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.add(response_table("a", "p0", "xx"))
    (candidates,) = store.parts()
    store.add(candidates.set_column(candidates.column_names.index("question"), "question", [["new", "new"]]))
    store.compact([("a", "p0")])
    assert store.read()["question"].to_pylist() == ["new", "new"]


def test_what_was_compacted_before_stays_and_what_came_since_joins_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.add(response_table("a", "p1", "1x"))
    store.compact([("a", "p0"), ("a", "p1")])
    store.add(response_table("a", "p0", "xx"))
    store.compact([("a", "p0"), ("a", "p1")])
    assert store.read()["problem_id"].to_pylist() == ["p0", "p0", "p1", "p1"]
    before = store.file.stat()
    store.compact([("a", "p0"), ("a", "p1")])
    assert store.file.stat().st_mtime_ns == before.st_mtime_ns, "nothing new, and yet it was written again"


def test_problems_are_read_one_at_a_time_with_the_columns_that_are_there(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(3):
        store.add(response_table("a", f"p{number}", "1x"))
    store.compact([("a", f"p{number}") for number in range(3)])
    found = list(store.read_each(lambda key: key != ("a", "p1"), ("problem_id", "base_mean_logprob")))
    assert [table.to_pydict() for table in found] == [{"problem_id": ["p0", "p0"]}, {"problem_id": ["p2", "p2"]}]
    assert pq.ParquetFile(store.file).num_row_groups == 3


def test_a_directory_without_any_finished_problem_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no finished problem yet"):
        store_in(tmp_path).compact([])


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_file_that_was_cut_short_is_named_with_what_to_do(tmp_path: Path, compacted: bool, left: float) -> None:
    store = store_in(tmp_path)
    store.add(response_table("a", "p0", "1x"))
    if compacted:
        store.compact([("a", "p0")])
    (file,) = tmp_path.rglob("*.parquet")
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(UserError) as refused:
        store.finished()
    assert str(file) in str(refused.value) and "\n" not in str(refused.value) and "delete it" in str(refused.value)
    file.unlink()
    assert store.finished() == set()
