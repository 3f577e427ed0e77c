from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog, RolloutLogError
from buffers.schema import ROLLOUT_SCHEMA, concat_groups, with_outcome
from tests.buffers.schema_1 import as_schema_1

MakeGroup = Callable[..., pa.RecordBatch]


@pytest.fixture
def log(tmp_path: Path) -> RolloutLog:
    return RolloutLog(fs.LocalFileSystem(), str(tmp_path / "rollouts"))


def test_rows_are_read_back_in_step_order(log: RolloutLog, make_group: MakeGroup) -> None:
    batches = {step: with_outcome(make_group(step), step, GroupOutcome.TRAINED) for step in (10, 2)}
    for step, batch in batches.items():
        log.append(step, [batch])
    assert log.steps() == [2, 10]
    table = log.read()
    assert table.schema.equals(ROLLOUT_SCHEMA, check_metadata=True)
    assert table.equals(pa.Table.from_batches([batches[2], batches[10]]))
    assert log.read([10]).column("group_id").to_pylist() == [10, 10]


def test_a_slice_is_logged_as_its_own_rows_only(log: RolloutLog, make_group: MakeGroup) -> None:
    log.append(1, [concat_groups([make_group(i) for i in range(3)]).slice(2, 2)])
    assert log.read().equals(pa.Table.from_batches([make_group(1)]))


def test_a_step_written_again_replaces_the_first(log: RolloutLog, make_group: MakeGroup) -> None:
    log.append(1, [make_group(0)])
    log.append(1, [make_group(5), make_group(6)])
    assert log.read().column("group_id").to_pylist() == [5, 5, 6, 6]


def test_truncate_removes_later_steps_and_half_written_files(log: RolloutLog, make_group: MakeGroup, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        log.append(step, [make_group(step)])
    (tmp_path / "rollouts" / "step_000001.parquet.partial").write_bytes(b"PAR")
    (tmp_path / "rollouts" / "notes.txt").write_text("not ours")
    log.truncate(after_step=1)
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["notes.txt", "step_000001.parquet"]


def test_a_write_that_fails_leaves_the_earlier_file_alone(
    log: RolloutLog, make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log.append(1, [make_group(0)])

    def write_half(table: pa.Table, sink: pa.NativeFile, **_: object) -> None:
        sink.write(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(RolloutLogError, match=r"the rollout log of step 1 cannot be written \(.*step_000001\.parquet\): disk full"):
        log.append(1, [make_group(9)])
    assert log.read().column("group_id").to_pylist() == [0, 0]
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["step_000001.parquet"]


def test_the_batch_of_a_step_has_the_rows_of_one_outcome_in_the_order_logged(log: RolloutLog, make_group: MakeGroup) -> None:
    trained = [with_outcome(make_group(group_id), 1, GroupOutcome.TRAINED) for group_id in (7, 2)]
    stale = with_outcome(make_group(4), 1, GroupOutcome.STALE)
    log.append(1, [trained[0], stale, trained[1]])
    assert log.batch(1, GroupOutcome.TRAINED).equals(concat_groups(trained))
    assert log.batch(1, GroupOutcome.STALE).equals(stale)
    log.append(2, trained)
    assert log.batch(2, GroupOutcome.STALE).num_rows == 0
    assert [log.has(step) for step in (1, 2, 3)] == [True, True, False]
    with pytest.raises(FileNotFoundError, match="step_000003"):
        log.batch(3, GroupOutcome.TRAINED)


def test_the_oldest_steps_go_when_there_is_too_much_but_none_that_is_needed(log: RolloutLog, make_group: MakeGroup, tmp_path: Path) -> None:
    assert log.prune(0, keep_after=10) == 0
    for step in range(1, 7):
        log.append(step, [make_group(step)])
    sizes = [(tmp_path / "rollouts" / f"step_{step:06d}.parquet").stat().st_size for step in range(1, 7)]
    assert log.nbytes == sum(sizes)
    assert log.prune(sum(sizes), keep_after=6) == 0
    assert log.prune(sum(sizes) - 1, keep_after=6) == 1
    assert (log.steps(), log.nbytes) == ([2, 3, 4, 5, 6], sum(sizes[1:]))
    assert log.prune(0, keep_after=4) == 3
    assert log.steps() == [5, 6]
    log.append(6, [make_group(6), make_group(7)])  # again, larger
    assert log.nbytes == sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir())
    log.truncate(after_step=5)
    assert log.nbytes == sizes[4]


def test_an_empty_log_and_an_empty_step_are_read_as_no_rows(log: RolloutLog) -> None:
    assert log.steps() == []
    assert log.read().num_rows == 0
    log.truncate(after_step=0)
    log.append(4, [])
    assert (log.steps(), log.read().num_rows) == ([4], 0)


def test_a_step_that_was_not_logged_is_an_error(log: RolloutLog) -> None:
    with pytest.raises(FileNotFoundError):
        log.read([3])


def test_a_file_of_another_major_version_is_refused_with_both_numbers(log: RolloutLog, make_group: MakeGroup, tmp_path: Path) -> None:
    log.append(1, [make_group(0)])
    table = pa.Table.from_batches([make_group(1)]).replace_schema_metadata({"repexp.schema": "3.1"})
    pq.write_table(table, tmp_path / "rollouts" / "step_000002.parquet")
    with pytest.raises(ValueError, match=r"step_000002\.parquet: rollout schema 3\.1 is newer than this reader's 2\.1: update the code"):
        log.read()


def test_old_files_beside_new_ones_hinder_nothing_and_whoever_reads_one_is_told(
    log: RolloutLog, make_group: MakeGroup, tmp_path: Path
) -> None:
    """As a run leaves them that was begun with schema 1 and resumed with schema 2."""
    for step in (1, 2, 3):
        log.append(step, [with_outcome(make_group(step), step, GroupOutcome.TRAINED)])
        file = tmp_path / "rollouts" / f"step_{step:06d}.parquet"
        pq.write_table(as_schema_1(pq.read_table(file)), file)
    log.truncate(after_step=2)
    log.append(3, [with_outcome(make_group(9), 3, GroupOutcome.TRAINED)])
    assert log.steps() == [1, 2, 3]
    assert log.batch(3, GroupOutcome.TRAINED)["group_id"].to_pylist() == [9, 9]
    told = r"step_000001\.parquet: rollout schema 1\.2 is older than this reader's 2\.1: read these rows with the version of the code that"
    for read in (log.read, lambda: log.batch(1, GroupOutcome.TRAINED)):
        with pytest.raises(ValueError, match=told) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert log.read([3])["group_id"].to_pylist() == [9, 9]
    assert log.prune(0, keep_after=2) == 2 and log.steps() == [3]
    log.append(2, [make_group(2)])  # a step that is trained again replaces the old file
    assert log.read()["group_id"].to_pylist() == [2, 2, 9, 9]
