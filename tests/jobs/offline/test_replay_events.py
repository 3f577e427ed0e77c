from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file

from actors.learner import Learner
from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from buffers.schema import concat_groups, group_ids, split_groups
from jobs.config import RunConfig
from jobs.directory.events import EVENTS, EventKind, EventLog, batches, read_events
from jobs.directory.metrics import read_metrics
from jobs.directory.run_dir import RunDirectory
from jobs.offline.replay_events import Replayed, replay_events, replay_session
from jobs.offline.replay_from import replay_from
from jobs.offline.trainer import undecided
from jobs.user_error import UserError
from learners.checkpoint import CheckpointManager
from tests.jobs.components_fixture import PROMPTS, RESPONSES, LocalRun, assert_same_state, small_config

pytestmark = pytest.mark.whole

STEPS = 3
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> MakeConfig:
    """config("again", steps=2): a small run in a directory of this test."""

    def make(name: str, **values: Any) -> RunConfig:
        return small_config(values.pop("model", tiny_model), tmp_path, **{"run_dir": str(tmp_path / name), "steps": STEPS, **values})

    return make


def record(config: RunConfig) -> LocalRun:
    """A run with engines, verifiers and the asynchronous controller, its batches in the event log."""
    run = LocalRun(config)
    run.train()
    log, path = rollout_log(Path(config.run_dir)), Path(config.run_dir) / EVENTS
    if not path.exists():
        events = EventLog(path)
        for step in log.steps():
            events.write(EventKind.BATCH, step=step, group_ids=group_ids(log.batch(step, GroupOutcome.TRAINED)).tolist())
        events.close()
    return run


def rollout_log(directory: Path) -> RolloutLog:
    return RolloutLog(fs.LocalFileSystem(), str(directory / "rollouts"))


def state_of(config: RunConfig) -> dict[str, torch.Tensor]:
    """As `LocalRun.state` names it."""
    root = Path(config.run_dir) / "state" / f"step_{STEPS:06d}"
    state = {f"policy/{name}": tensor for name, tensor in load_file(root / "learner" / "policy" / "model.safetensors").items()}
    state |= {f"optimiser/{n}": tensor for n, tensor in load_file(root / "learner" / "optimiser.safetensors").items() if n != "rng"}
    if config.bonus.enabled:
        state |= {f"bonus/{name}": tensor for name, tensor in load_file(root / "bonus" / "bonus.safetensors").items()}
    return state


@pytest.mark.parametrize(
    "settings",
    [
        {"bonus": {"memory": "run", "forgetting": 0.9}},
        {"bonus": {"memory": "prompt"}, "learner": {"mini_batches": 2}},
        {"bonus": {"memory": "none", "source": "policy"}},
        {"bonus": {"enabled": False}},
    ],
    ids=str,
)
def test_a_replay_ends_with_what_the_recorded_run_learnt_bit_for_bit(config: MakeConfig, tmp_path: Path, settings: dict[str, Any]) -> None:
    recorded = record(config("recorded", **settings))
    again = config("again", **settings)
    assert replay_events(again, tmp_path / "recorded") == Replayed(steps=STEPS, same_steps=STEPS)
    assert_same_state(state_of(again), recorded.state(tmp_path / "state"))
    ours, theirs = (rollout_log(tmp_path / name).read() for name in ("again", "recorded"))
    assert ours.equals(theirs.filter(pa.compute.equal(theirs["outcome"], "trained")))
    first, second = (batches(read_events(tmp_path / name / EVENTS)) for name in ("recorded", "again"))
    assert first == second and len(first) == STEPS


def test_a_replay_is_recorded_itself_and_exports_its_policy(config: MakeConfig, tiny_model: str, tmp_path: Path) -> None:
    recorded = record(config("recorded"))
    reports: list[int] = []
    replay_events(config("again"), tmp_path / "recorded", report=lambda step, metrics: reports.append(step))
    assert reports == [1, 2, 3]
    metrics = read_metrics(tmp_path / "again" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3]
    for ours, (_, theirs) in zip(metrics, recorded.reports, strict=True):
        same = [name for name in theirs if name.startswith(("reward/", "bonus/", "policy/", "groups/")) and name in ours]
        assert len(same) > 15 and {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    with RunDirectory(config("again")) as run:
        assert run.policy_step == STEPS
    exported = load_file(tmp_path / "again" / "policy" / "model.safetensors")
    restored = Learner(tiny_model, config("again").learner, temperature=1.0, group_size=RESPONSES)
    restored.load_part(CheckpointManager(str(tmp_path / "again" / "state"), keep=1), STEPS, "learner")
    assert restored.version == STEPS
    assert all(torch.equal(exported[name], tensor) for name, tensor in restored._model.named_parameters())
    assert replay_events(config("third"), tmp_path / "again") == Replayed(steps=STEPS, same_steps=STEPS)
    assert_same_state(state_of(config("third")), state_of(config("again")))


def test_the_order_of_the_events_decides_not_that_of_the_log(config: MakeConfig, tmp_path: Path) -> None:
    recorded = record(config("recorded"))
    log = rollout_log(tmp_path / "recorded")
    for step in log.steps():
        groups = split_groups(log.batch(step, GroupOutcome.TRAINED))
        log.append(step, [concat_groups(groups[::-1])])
    assert replay_events(config("again"), tmp_path / "recorded").same_steps == STEPS
    assert_same_state(state_of(config("again")), recorded.state(tmp_path / "state"))


def test_another_configuration_trains_on_the_same_batches(config: MakeConfig, tmp_path: Path) -> None:
    recorded = record(config("recorded"))
    plain = config("plain", bonus={"enabled": False}, learner={"lr": 1e-3})
    assert replay_events(plain, tmp_path / "recorded").same_steps == 0
    ours, theirs = (rollout_log(tmp_path / name).read().select(["step", "group_id", "response_text"]) for name in ("plain", "recorded"))
    assert ours.equals(theirs)
    assert rollout_log(tmp_path / "plain").read()["bonus"].to_pylist() == [0.0] * (STEPS * PROMPTS * RESPONSES)
    assert state_of(plain)["policy/model.norm.weight"].ne(recorded.state(tmp_path / "state")["policy/model.norm.weight"]).any()


def test_as_many_steps_are_trained_as_asked_for_and_recorded(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(config("recorded"))
    assert replay_events(config("one", steps=1), tmp_path / "recorded").steps == 1
    (tmp_path / "recorded" / "rollouts" / "step_000003.parquet").unlink()  # drawn, and killed before it was trained
    assert replay_session(config("many", steps=50), str(tmp_path / "recorded")) == 0
    assert "2 steps of" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recorded(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run of one step, not to be changed."""
    directory = tmp_path_factory.mktemp("recorded")
    record(small_config(tiny_model, directory, steps=1))
    return directory / "run"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"responses_per_prompt": 2}, "responses_per_prompt = 2, but the recorded groups have 4"),
        ({"bonus": {"dim": 16}}, r"bonus.dim = 16, but the recorded features have \[8\]"),
        ({"model": "/no/such/model"}, "/no/such/model"),
    ],
    ids=["responses", "dim", "model"],
)
def test_a_configuration_that_the_record_does_not_fit_is_refused(
    config: MakeConfig, recorded: Path, tmp_path: Path, values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        replay_events(config("again", **values), recorded)
    assert not (tmp_path / "again").exists()


def test_a_bonus_without_recorded_features_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    record(config("recorded", steps=1, bonus={"enabled": False}))
    with pytest.raises(UserError, match=r"the recorded run has no features: --set bonus\.enabled=false"):
        replay_events(config("again"), tmp_path / "recorded")


def test_a_directory_that_cannot_be_read_from_or_written_to_is_refused(config: MakeConfig, recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is run_dir itself"):
        replay_events(config("again", run_dir=f"{recorded}/../run"), recorded)
    with pytest.raises(UserError, match=r"there is no events\.jsonl in it"):
        replay_events(config("again"), tmp_path / "nothing")
    (tmp_path / "no rows").mkdir()
    (tmp_path / "no rows" / EVENTS).write_bytes((recorded / EVENTS).read_bytes())
    with pytest.raises(UserError, match="no rows of step 1"):
        replay_events(config("again"), tmp_path / "no rows")
    (tmp_path / "no rows" / EVENTS).write_text("half\n")
    with pytest.raises(UserError, match="line 1 is no event"):
        replay_events(config("again"), tmp_path / "no rows")
    assert not (tmp_path / "again").exists()
    replay_events(config("again"), recorded)
    with pytest.raises(UserError, match="has a run in it already"):
        replay_events(config("again"), recorded)


def test_a_batch_whose_groups_are_not_those_of_the_log_is_named(config: MakeConfig, recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "rollouts").symlink_to(recorded / "rollouts")
    (known, *_) = batches(read_events(recorded / EVENTS))[1]
    events = EventLog(tmp_path / "odd" / EVENTS)
    events.write(EventKind.BATCH, step=1, group_ids=[known, 77])
    events.close()
    with pytest.raises(UserError, match=r"step 1: groups \[\d, 77\] are in one of batch and rollout log only"):
        replay_events(config("again"), tmp_path / "odd")


def test_rows_and_events_that_are_damaged_are_named_in_one_line(config: MakeConfig, recorded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recorded, tmp_path / "copy"))
    rows = copy / "rollouts" / "step_000001.parquet"
    whole = rows.read_bytes()
    for damaged in (whole[:200], b"", whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)):
        rows.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^--replay-events .*: the rows of step 1 cannot be read: ") as refused:
            replay_events(config("again"), copy)
        assert "\n" not in str(refused.value)
        with pytest.raises(UserError, match=r"^--replay-from .*: the rows of step 1 cannot be read: ") as refused:
            replay_from(config("again"), copy)
        assert "\n" not in str(refused.value)
    (copy / EVENTS).write_text('{"seq": 7, "time": 0.0, "step": 1, "event": "batch"}\n')
    with pytest.raises(UserError, match="event 7, the batch of step 1, has no group_ids"):
        replay_events(config("again"), copy)


def test_what_was_decided_at_consumption_is_forgotten_and_nothing_else(recorded: Path) -> None:
    logged = rollout_log(recorded).batch(1, GroupOutcome.TRAINED)
    drawn = undecided(logged)
    decided = {name for name in logged.schema.names if drawn.column(name).null_count == drawn.num_rows} - {
        "verdict_detail",
        "verdict_answer",
    }
    assert decided >= {"bonus", "leverage", "advantage", "step", "outcome"} and "feature" not in decided
    kept = [name for name in logged.schema.names if name not in decided]
    assert {"reward", "verdict_status", "behavior_logprobs"} <= set(kept)
    assert drawn.select(kept).equals(logged.select(kept))
