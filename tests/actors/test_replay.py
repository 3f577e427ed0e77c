from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.replay import Replay
from buffers.config import ReplayConfig
from buffers.records import GroupOutcome, Verdict, VerdictStatus
from buffers.replay import InsertResult
from buffers.rollout_log import RolloutLogError
from buffers.schema import concat_groups, from_record_batch, group_ids, with_scores
from learners.checkpoint import CheckpointManager
from tasks.rewards import RewardConfig
from tests.learners.samples import make_group, make_verdict

GROUP_SIZE = 2
RESPONSES = [[6, 7], [8]]


def make_replay(log_directory: Path, *, prompts_per_step: int = 1, **config: object) -> Replay:
    return Replay(
        group_size=GROUP_SIZE,
        prompts_per_step=prompts_per_step,
        max_policy_lag=1,
        config=ReplayConfig.model_validate(config),
        log_directory=str(log_directory),
    )


def sampled_group(group_id: int, version: int = 0) -> pa.RecordBatch:
    """A group of tokens of one version, before anything was decided about it."""
    group = make_group(group_id, [5], RESPONSES, [0.0, 0.0], versions=[[version] * len(ids) for ids in RESPONSES])
    undecided = ["verdict_status", "reward", "verdict_answer", "verdict_detail", "verify_s", "bonus"]
    for name in undecided:
        at = group.schema.get_field_index(name)
        group = group.set_column(at, group.schema.field(name), pa.nulls(GROUP_SIZE, group.schema.field(name).type))
    return group


def insert(replay: Replay, group_id: int, *, sampled: int = 0, version: int = 0) -> InsertResult:
    return replay.insert(sampled_group(group_id, sampled), [make_verdict(1.0), make_verdict(None)], version)


def read_log(directory: Path, step: int) -> list[dict]:
    return pq.read_table(directory / f"step_{step:06d}.parquet").to_pylist()


def test_groups_are_inserted_with_their_verdicts_sampled_and_logged(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)
    assert [insert(replay, group_id) for group_id in (2, 0, 1)] == [InsertResult.ACCEPTED] * 3
    assert replay.held_ids() == [0, 1, 2]
    batch, drawn = replay.sample(2, version=0)
    assert batch is not None
    assert (drawn.group_ids, drawn.stale_ids, drawn.held_groups) == ((0, 1), (), 1)
    assert drawn.held_bytes > 0
    assert batch.column("verdict_status").to_pylist() == ["correct", "error"] * 2
    assert batch.column("reward").to_pylist() == [1.0, None] * 2
    replay.log(1, with_scores(batch, [0.1, 0.2, 0.3, 0.4]), [1.0, -1.0, 0.5, -0.5])
    rows = read_log(tmp_path, 1)
    assert [row["group_id"] for row in rows] == [0, 0, 1, 1]
    assert [row["bonus"] for row in rows] == [0.1, 0.2, 0.3, 0.4]
    assert [row["advantage"] for row in rows] == [1.0, -1.0, 0.5, -0.5]
    assert {(row["step"], row["outcome"]) for row in rows} == {(1, "trained")}


def test_too_few_groups_give_no_batch_and_change_nothing(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)
    insert(replay, 0)
    batch, drawn = replay.sample(2, version=0)
    assert batch is None
    assert (drawn.group_ids, drawn.stale_ids, drawn.held_groups) == ((), (), 1)
    assert replay.held_ids() == [0]


def test_stale_groups_are_reported_once_and_logged_with_the_next_step(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)
    for group_id, sampled in ((0, 0), (1, 1), (2, 2)):
        insert(replay, group_id, sampled=sampled, version=1)
    batch, drawn = replay.sample(5, version=2)  # lag 2 is beyond the bound of 1
    assert (batch, drawn.stale_ids, drawn.held_groups) == (None, (0,), 2)
    batch, drawn = replay.sample(1, version=3)
    assert batch is not None and (drawn.group_ids, drawn.stale_ids) == ((2,), (1,))
    replay.log(4, with_scores(batch, [0.0, 0.0]), [0.5, -0.5])
    found = {(row["group_id"], row["outcome"], row["step"], row["advantage"]) for row in read_log(tmp_path, 4)}
    assert found == {(2, GroupOutcome.TRAINED, 4, 0.5), (2, GroupOutcome.TRAINED, 4, -0.5)} | {
        (group_id, GroupOutcome.STALE, 4, None) for group_id in (0, 1)
    }
    insert(replay, 3, sampled=3, version=3)
    batch, drawn = replay.sample(1, version=3)
    assert batch is not None and drawn.stale_ids == ()
    replay.log(5, with_scores(batch, [0.0, 0.0]), [0.5, -0.5])
    assert {row["group_id"] for row in read_log(tmp_path, 5)} == {3}


def test_refusals_reach_the_producer(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)
    insert(replay, 0)
    assert insert(replay, 0) is InsertResult.DUPLICATE
    assert insert(replay, 1, sampled=0, version=2) is InsertResult.STALE
    assert replay.held_ids() == [0]


def test_a_full_replay_makes_the_producer_wait(tmp_path: Path) -> None:
    size = concat_groups([sampled_group(0)]).get_total_buffer_size()
    replay = make_replay(tmp_path, max_bytes=3 * size)
    results = [insert(replay, group_id) for group_id in range(4)]
    assert results[0] is InsertResult.ACCEPTED and results[-1] is InsertResult.FULL
    refused = results.index(InsertResult.FULL)
    replay.sample(1, version=0)
    assert insert(replay, refused) is InsertResult.ACCEPTED


def test_a_replay_too_small_for_a_step_says_so_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    size = concat_groups([sampled_group(0)]).get_total_buffer_size()
    replay = make_replay(tmp_path, prompts_per_step=9, max_bytes=3 * size)
    with pytest.raises(ValueError, match=rf"prompts_per_step = 9: raise replay.max_bytes = {3 * size}"):
        for group_id in range(9):
            insert(replay, group_id)


def test_without_a_bonus_the_log_says_zero(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)
    insert(replay, 0)
    batch, _ = replay.sample(1, version=0)
    assert batch is not None and batch.column("bonus").null_count == GROUP_SIZE
    replay.log(1, batch, [0.5, -0.5])
    assert [row["bonus"] for row in read_log(tmp_path, 1)] == [0.0, 0.0]


def test_the_log_can_be_switched_off(tmp_path: Path) -> None:
    replay = make_replay(tmp_path / "log", log_rollouts=False)
    insert(replay, 0)
    batch, _ = replay.sample(1, version=0)
    assert batch is not None
    replay.log(1, batch, [0.5, -0.5])
    replay.forget_log_after(0)
    assert not (tmp_path / "log").exists()


def outcomes(directory: Path, step: int) -> list[tuple[int, str]]:
    """(group, outcome) in the order of the log, once a group."""
    return [(row["group_id"], row["outcome"]) for row in read_log(directory, step)[::GROUP_SIZE]]


def with_stale_groups(directory: Path) -> tuple[Replay, pa.RecordBatch]:
    """A replay that found group 0 stale when it was offered and 1 when batch [2] was drawn, which is what it
    returns."""
    replay = make_replay(directory)
    insert(replay, 1, sampled=0)
    insert(replay, 0, sampled=0, version=2)
    insert(replay, 2, sampled=2)
    batch, _ = replay.sample(1, version=2)
    assert batch is not None
    return replay, batch


def test_a_step_logged_twice_keeps_its_stale_groups_once(tmp_path: Path) -> None:
    replay, batch = with_stale_groups(tmp_path)
    replay.log(3, batch, [0.5, -0.5])
    before = read_log(tmp_path, 3)
    assert outcomes(tmp_path, 3) == [(2, "trained"), (0, "stale"), (1, "stale")]
    replay.log(3, batch, [0.5, -0.5])
    assert read_log(tmp_path, 3) == before
    insert(replay, 5, sampled=0, version=2)
    replay.log(3, batch, [0.5, -0.5])
    assert outcomes(tmp_path, 3) == [(2, "trained"), (0, "stale"), (1, "stale"), (5, "stale")]
    replay.log(4, batch, [0.5, -0.5])
    assert outcomes(tmp_path, 4) == [(2, "trained")]


def test_a_step_logged_again_by_a_replay_that_took_over_keeps_its_stale_groups(tmp_path: Path) -> None:
    first, batch = with_stale_groups(tmp_path)
    first.log(3, batch, [0.5, -0.5])
    second = make_replay(tmp_path)
    second.take_over(3, [])
    second.log(3, batch, [0.5, -0.5])
    assert outcomes(tmp_path, 3) == [(2, "trained"), (0, "stale"), (1, "stale")]


def test_a_step_whose_log_failed_is_logged_again_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, batch = with_stale_groups(tmp_path)

    def write_half(table: pa.Table, sink: pa.NativeFile, **_: object) -> None:
        sink.write(b"PAR1")
        raise OSError("disk full")

    with monkeypatch.context() as full:
        full.setattr(pq, "write_table", write_half)
        with pytest.raises(RolloutLogError, match="disk full"):
            replay.log(3, batch, [0.5, -0.5])
    assert list(tmp_path.iterdir()) == []
    insert(replay, 5, sampled=0, version=2)
    replay.log(3, batch, [0.5, -0.5])
    assert outcomes(tmp_path, 3) == [(2, "trained"), (0, "stale"), (1, "stale"), (5, "stale")]


def test_a_new_replay_takes_over_from_one_that_was_lost(tmp_path: Path) -> None:
    lost = make_replay(tmp_path)
    for group_id in (0, 1, 2, 4):
        insert(lost, group_id)
    lost.sample(2, version=0)
    rows, ids = lost.held_rows()
    assert ids == [2, 4]
    new = make_replay(tmp_path)
    new.take_over(6, [2, 3, 4, 5])
    new.insert_rows(rows, [4])
    new.insert_rows(rows, [2, 4])  # again, its answer was lost
    assert insert(new, 3) is InsertResult.ACCEPTED
    assert [insert(new, group_id) for group_id in (0, 1, 2)] == [InsertResult.DUPLICATE] * 3
    batch, drawn = new.sample(3, version=0)
    assert batch is not None and drawn.group_ids == (2, 3, 4)
    expected, _ = lost.sample(2, version=0)
    assert expected is not None
    assert concat_groups([batch.slice(0, GROUP_SIZE), batch.slice(2 * GROUP_SIZE)]).equals(expected)


def test_rows_that_a_replay_cannot_take_are_refused(tmp_path: Path) -> None:
    lost = make_replay(tmp_path)
    insert(lost, 3)
    rows, _ = lost.held_rows()
    with pytest.raises(ValueError, match=r"group 4 is not among the rows: \[3\]"):
        make_replay(tmp_path).insert_rows(rows, [4])
    small = make_replay(tmp_path, max_bytes=int(1.5 * concat_groups([sampled_group(0)]).get_total_buffer_size()))
    insert(small, 0)
    with pytest.raises(ValueError, match=r"group 3 does not fit into replay.max_bytes = "):
        small.insert_rows(rows, [3])


def test_a_replay_saved_and_restored_gives_the_same_next_outputs(tmp_path: Path) -> None:
    straight = make_replay(tmp_path / "log")
    for group_id in (0, 1, 2, 5, 6):
        insert(straight, group_id)
    straight.sample(2, version=0)
    manager = CheckpointManager(str(tmp_path / "checkpoints"), keep=1)
    manager.commit(1, straight.save_part(manager, 1, "replay"), {})
    restored = make_replay(tmp_path / "log")
    restored.load_part(manager, 1, "replay")
    assert restored.held_ids() == [2, 5, 6]
    for replay in (restored, straight):
        assert insert(replay, 1) is InsertResult.DUPLICATE  # trained on before the checkpoint
        assert insert(replay, 3) is InsertResult.ACCEPTED
    (found, found_drawn), (expected, expected_drawn) = (replay.sample(3, version=1) for replay in (restored, straight))
    assert found is not None and found.equals(expected)
    assert group_ids(found).tolist() == [2, 3, 5]
    assert found_drawn == expected_drawn


def test_an_empty_replay_is_saved_and_restored(tmp_path: Path) -> None:
    make_replay(tmp_path / "log").save(tmp_path)
    restored = make_replay(tmp_path / "log")
    insert(restored, 0)
    restored.load(tmp_path)
    assert restored.held_ids() == []


def test_on_resume_the_log_of_later_steps_is_forgotten(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)
    for step in (1, 2, 3):
        insert(replay, step)
        batch, _ = replay.sample(1, version=0)
        assert batch is not None
        replay.log(step, batch, [0.0, 0.0])
    replay.forget_log_after(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001.parquet"]


def test_a_log_that_is_too_large_loses_its_oldest_steps_but_none_since_the_newest_checkpoint(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(str(tmp_path / "checkpoints"), keep=2)
    replay = make_replay(tmp_path / "log", log_max_mib=1e-6)
    logged = []
    for step in range(1, 8):
        insert(replay, step, sampled=step, version=step)
        batch, _ = replay.sample(1, version=step)
        logged.append(replay.log(step, with_scores(batch, [0.0, 0.0], [0.0, 0.0]), [0.0, 0.0]))
        if step in (3, 5):
            checkpoints.commit(step, replay.save_part(checkpoints, step, "replay"), {})
        if step == 6:
            replay.save_part(checkpoints, step, "replay")  # and the disk is full: it never counts
    assert [entry.removed_steps for entry in logged] == [0, 0, 0, 3, 3, 5, 5]
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["step_000006.parquet", "step_000007.parquet"]
    assert logged[-1].nbytes == sum(path.stat().st_size for path in (tmp_path / "log").iterdir())


def test_groups_that_teach_nothing_are_filtered_where_they_may_be_and_logged(tmp_path: Path) -> None:
    replay = make_replay(tmp_path)

    def offer(group_id: int, *rewards: float | None, filterable: bool = True) -> InsertResult:
        return replay.insert(sampled_group(group_id), [make_verdict(reward) for reward in rewards], 0, filterable)

    assert offer(0, 1.0, 1.0) is InsertResult.FILTERED
    assert offer(1, 0.0, None) is InsertResult.FILTERED, "what could not be scored says nothing"
    assert offer(2, 1.0, 0.0) is InsertResult.ACCEPTED
    assert offer(3, 0.0, 0.0, filterable=False) is InsertResult.ACCEPTED
    assert offer(0, 1.0, 1.0) is InsertResult.FILTERED, "its answer was lost"
    assert replay.held_ids() == [2, 3]
    replay.save(tmp_path)
    restored = make_replay(tmp_path)
    restored.load(tmp_path)
    batch, _ = restored.sample(1, version=0)
    restored.log(1, batch, [0.5, -0.5])
    assert outcomes(tmp_path, 1) == [(2, "trained"), (0, "filtered"), (1, "filtered")]
    restored.log(1, batch, [0.5, -0.5])
    assert outcomes(tmp_path, 1) == [(2, "trained"), (0, "filtered"), (1, "filtered")]


def test_shaped_rewards_are_kept_apart_from_the_task_s_own(tmp_path: Path) -> None:
    replay = Replay(
        group_size=GROUP_SIZE,
        prompts_per_step=1,
        max_policy_lag=1,
        config=ReplayConfig(),
        log_directory=str(tmp_path),
        rewards=RewardConfig(format_penalty=0.25, overlong_tokens=2),
        max_response_tokens=3,
    )
    formless = Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
    replay.insert(sampled_group(0), [make_verdict(1.0), formless], 0)  # of two tokens and of one
    batch, _ = replay.sample(1, version=0)
    assert batch is not None
    assert batch.column("reward").to_pylist() == [0.5, -0.25]
    assert batch.column("reward_format").to_pylist() == [0.0, -0.25]
    assert batch.column("reward_length").to_pylist() == [-0.5, 0.0]
    (group,) = from_record_batch(batch)
    assert [verdict.reward for verdict in group.verdicts if verdict] == [1.0, 0.0]
