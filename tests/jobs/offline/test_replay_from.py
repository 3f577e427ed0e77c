"""Training on saved rollouts: those of a run give the run again; anybody's rows are trained on, or refused with file
and row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import fs, parquet
from safetensors.torch import load_file

from actors.learner import Learner
from actors.verifier import VerifierPoolError
from buffers.groups import token_versions, trained_tokens
from buffers.records import GroupOutcome, Problem, Verdict, VerdictStatus
from buffers.rollout_log import RolloutLog
from buffers.schema import from_record_batch, with_shaped_rewards, with_trained_from, with_verdicts
from jobs.config import RunConfig
from jobs.configuration.user_error import REFUSALS, UserError
from jobs.directory.events import EVENTS, Event, EventKind, read_events
from jobs.directory.metrics import read_metrics
from jobs.directory.run_dir import RunDirectory
from jobs.directory.trackers import RunInfo
from jobs.offline.replay_from import Rescorer, Trained, TrainingFailed, replay_from, replay_from_session
from jobs.offline.trainer import none_newer, undecided
from jobs.processes.verdict_counter import VerifierFailure
from jobs.train import main
from learners.checkpoint import CheckpointManager
from tests.jobs.components_fixture import PROMPTS, RESPONSES, CoinJudge, LocalRun, assert_same_state, small_config
from tests.jobs.event_batches import batches
from tests.learners.samples import make_group

STEPS = 3
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> MakeConfig:
    """config("again", steps=2): a small run in a directory of this test."""

    def make(name: str, **values: Any) -> RunConfig:
        return small_config(values.pop("model", tiny_model), tmp_path, **{"run_dir": str(tmp_path / name), "steps": STEPS, **values})

    return make


@pytest.fixture(scope="module")
def recorded(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """A run with engines, verifiers and the asynchronous controller, not to be changed."""
    run = LocalRun(small_config(tiny_model, tmp_path_factory.mktemp("recorded"), steps=STEPS))
    run.train()
    return run


def directory_of(run: LocalRun) -> Path:
    return Path(run.config.run_dir)


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


def batches_of(*starts: LocalRun) -> dict[int, list[int]]:
    """The batches that a run noted while it trained on them, over all its starts."""
    noted: list[Event] = []
    for start in starts:
        if noted:
            noted.append(Event(seq=0, time=0.0, step=start.reports[0][0] - 1, kind=EventKind.RESUMED, fields={}))
        noted += [Event(seq=0, time=0.0, step=fields.get("step", 0), kind=kind, fields=fields) for kind, fields in start.events]
    return batches(noted)


def losses(metrics: list[dict[str, float]]) -> list[float]:
    return [record["learner/loss"] for record in metrics]


def learnt(metrics: dict[str, float]) -> dict[str, float]:
    """What a step learnt, its speed left out."""
    groups = ("learner/", "mismatch", "policy/", "bonus/", "advantage/", "reward/")
    return {name: value for name, value in metrics.items() if name.startswith(groups) and name != "learner/tokens_per_s"}


# --- the rollouts of a run -------------------------------------------------------------------------------------------


def test_the_rollouts_of_a_run_give_its_losses_and_its_policy_again(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    assert replay_from(config("again"), directory_of(recorded)) == Trained(
        steps=STEPS, groups_left=0, recorded_steps=STEPS, same_steps=STEPS
    )
    metrics = read_metrics(tmp_path / "again" / "metrics.jsonl")
    online = [report for _, report in recorded.reports]
    assert losses(metrics) == losses(online) and len(set(losses(metrics))) == STEPS
    for ours, theirs in zip(metrics, online, strict=True):
        assert learnt(ours) == learnt(theirs) and len(learnt(ours)) > 30
    assert_same_state(state_of(config("again")), recorded.state(tmp_path / "state"))


@pytest.mark.parametrize(
    "settings",
    [
        {"bonus": {"memory": "run", "forgetting": 0.9}},
        {"bonus": {"memory": "prompt"}, "learner": {"mini_batches": 2}},
        {"bonus": {"memory": "none", "source": "policy"}},
        {"bonus": {"enabled": False}},
        {"learner": {"decay_steps": 2}},
    ],
    ids=str,
)
def test_the_batches_are_those_that_the_run_noted_in_their_order(config: MakeConfig, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = LocalRun(config("run", **settings))
    run.train()
    again = config("again", **settings)
    trained = replay_from(again, tmp_path / "run")
    assert trained == Trained(steps=STEPS, groups_left=0, recorded_steps=STEPS, same_steps=STEPS)
    assert_same_state(state_of(again), run.state(tmp_path / "state"))
    assert batches(read_events(tmp_path / "again" / EVENTS)) == batches_of(run) and len(batches_of(run)) == STEPS
    ours, theirs = (rollout_log(tmp_path / name).read() for name in ("again", "run"))
    assert ours.equals(theirs.filter(pa.compute.equal(theirs["outcome"], "trained")))


def test_of_a_resumed_run_the_batches_are_those_that_count(config: MakeConfig, tmp_path: Path) -> None:
    """The first start is killed in step 2; the second one begins at the checkpoint before it."""

    class Killed(BaseException):
        pass

    def stop(step: int) -> None:
        if step == 2:
            raise Killed

    values = {"checkpoint": {"every": 1, "keep": 5}}
    first = LocalRun(config("run", **values))
    first.on_report = stop
    with pytest.raises(BaseException) as ended:
        first.train()
    assert "Killed" in repr(ended.value)
    second = LocalRun(config("run", **values))
    assert second.train() == STEPS and second.reports[0][0] == 2
    assert replay_from(config("again", **values), tmp_path / "run").same_steps == STEPS
    assert_same_state(state_of(config("again", **values)), second.state(tmp_path / "state"))
    assert batches(read_events(tmp_path / "again" / EVENTS)) == batches_of(first, second)


def test_a_replay_is_recorded_itself_and_exports_its_policy(
    config: MakeConfig, recorded: LocalRun, tiny_model: str, tmp_path: Path
) -> None:
    reports: list[int] = []
    replay_from(config("again"), directory_of(recorded), report=lambda step, metrics: reports.append(step))
    assert reports == [1, 2, 3]
    with RunDirectory(config("again")) as run:
        assert run.policy_step == STEPS
    exported = load_file(tmp_path / "again" / "policy" / "model.safetensors")
    restored = Learner(tiny_model, config("again").learner, temperature=1.0, group_size=RESPONSES)
    restored.load_part(CheckpointManager(str(tmp_path / "again" / "state"), keep=1), STEPS, "learner")
    assert restored.version == STEPS
    assert all(torch.equal(exported[name], tensor) for name, tensor in restored._model.named_parameters())
    assert replay_from(config("third"), tmp_path / "again").same_steps == STEPS
    assert_same_state(state_of(config("third")), state_of(config("again")))


def test_another_configuration_trains_on_the_same_batches(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    plain = config("plain", bonus={"enabled": False}, learner={"lr": 1e-3})
    trained = replay_from(plain, directory_of(recorded))
    assert (trained.recorded_steps, trained.same_steps) == (STEPS, 0)
    directories = (tmp_path / "plain", directory_of(recorded))
    ours, theirs = (rollout_log(directory).read().select(["step", "group_id", "response_text"]) for directory in directories)
    assert ours.equals(theirs)
    assert rollout_log(tmp_path / "plain").read()["bonus"].to_pylist() == [0.0] * (STEPS * PROMPTS * RESPONSES)


def test_steps_that_the_log_does_not_have_any_more_are_told(
    config: MakeConfig, recorded: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(directory_of(recorded) / "rollouts", tmp_path / "copy"))
    (copy / "step_000003.parquet").unlink()  # drawn, and killed before it was trained
    assert replay_from(config("many", steps=50), copy) == Trained(steps=2, groups_left=0, recorded_steps=2, same_steps=2)
    (copy / "step_000001.parquet").unlink()  # the oldest, removed at the log's cap
    assert replay_from_session(config("less"), str(copy), rescore=False) == 0
    assert "1 earlier steps of the run are gone (the first is 1)" in capsys.readouterr().out


def test_rows_that_are_damaged_are_named_in_one_line(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory_of(recorded) / "rollouts", tmp_path / "copy"))
    rows = copy / "step_000001.parquet"
    whole = rows.read_bytes()
    for damaged in (whole[:200], b"", whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)):
        rows.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^--replay-from .*: the rows of step 1 cannot be read: ") as refused:
            replay_from(config("again"), copy)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"responses_per_prompt": 2}, "responses_per_prompt = 2, but the recorded groups have 4"),
        ({"bonus": {"dim": 16}}, r"bonus.dim = 16, but the recorded features have \[8\]"),
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"trackers": ["no_such_module:Mine"]}, "there is no module no_such_module"),
    ],
    ids=["responses", "dim", "model", "tracker"],
)
def test_a_configuration_that_the_rollouts_do_not_fit_is_refused(
    config: MakeConfig, recorded: LocalRun, tmp_path: Path, values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(REFUSALS, match=complaint):
        replay_from(config("again", **values), directory_of(recorded))
    assert not (tmp_path / "again").exists()


def test_a_bonus_without_recorded_features_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    LocalRun(config("plain", steps=1, bonus={"enabled": False})).train()
    with pytest.raises(UserError, match=r"the recorded run has no features: --set bonus\.enabled=false"):
        replay_from(config("again"), tmp_path / "plain")


def test_what_was_decided_at_consumption_is_forgotten_and_nothing_else(recorded: LocalRun) -> None:
    logged = rollout_log(directory_of(recorded)).batch(1, GroupOutcome.TRAINED)
    drawn = undecided(logged)
    decided = {name for name in logged.schema.names if drawn.column(name).null_count == drawn.num_rows} - {
        "verdict_detail",
        "verdict_answer",
    }
    assert decided >= {"bonus", "advantage", "step", "outcome"} and "feature" not in decided
    kept = [name for name in logged.schema.names if name not in decided]
    assert {"reward", "verdict_status", "behavior_logprobs"} <= set(kept)
    assert drawn.select(kept).equals(logged.select(kept))


def test_a_tracker_that_fails_does_not_end_the_training(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    warnings: list[str] = []
    again = config("again", trackers=["tests.jobs.offline.test_replay_from:Unreachable", "tensorboard"])
    assert replay_from(again, directory_of(recorded), warn=warnings.append).steps == STEPS
    assert len(warnings) == 1 and "Unreachable failed and gets no more metrics (ConnectionError: no network)" in warnings[0]
    assert len(read_metrics(tmp_path / "again" / "metrics.jsonl")) == STEPS and list((tmp_path / "again" / "tensorboard").iterdir())


class Unreachable:
    """A tracker of a user, whose server does not answer."""

    def start(self, info: RunInfo) -> None: ...

    def write(self, step: int, metrics: dict[str, float]) -> None:
        raise ConnectionError("no network")

    def close(self) -> None: ...


def test_neither_an_event_log_nor_the_run_directory_around_them_is_needed(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for file in (directory_of(recorded) / "rollouts").glob("*.parquet"):
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    assert replay_from(config("again"), tmp_path / "copy").steps == STEPS
    assert_same_state(state_of(config("again")), recorded.state(tmp_path / "state"))
    assert (tmp_path / "again" / EVENTS).exists() and (tmp_path / "again" / "policy" / "config.json").exists()


@pytest.mark.parametrize("form", ["a run", "plain rows"])
@pytest.mark.parametrize("bonus", [True, False])
def test_batches_of_another_size_count_no_token_as_newer_than_their_own_policy(
    config: MakeConfig, recorded: LocalRun, tmp_path: Path, form: str, bonus: bool
) -> None:
    """Three groups a step: the last ones were sampled for the third step, and the second one has them."""
    source = directory_of(recorded) if form == "a run" else write_jsonl(tmp_path / "rows.jsonl", plain_rows(recorded))
    trained = replay_from(config("again", prompts_per_step=3, steps=9, bonus={"enabled": bonus}), source)
    assert (trained.steps, trained.groups_left) == (2, 0)
    assert trained.recorded_steps == (2 if form == "a run" else 0)
    rows = RolloutLog(fs.LocalFileSystem(), str(tmp_path / "again" / "rollouts")).read().to_pylist()
    assert len(rows) == 2 * 3 * RESPONSES
    for row in rows:
        assert max(row["version_values"]) <= row["step"] - 1
    for record in read_metrics(tmp_path / "again" / "metrics.jsonl"):
        assert 0 <= record["policy/lag_mean"] <= record["policy/lag_max"]


def test_groups_that_fill_no_batch_are_counted(config: MakeConfig, recorded: LocalRun) -> None:
    assert replay_from(config("again", prompts_per_step=4, steps=9), directory_of(recorded)).groups_left == 2


def test_another_loss_trains_on_the_same_rollouts(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    other = config("other", learner={"loss": {"surrogate": "cispo", "aggregation": "sequence_mean"}})
    assert replay_from(other, directory_of(recorded)).steps == STEPS
    assert losses(read_metrics(tmp_path / "other" / "metrics.jsonl")) != losses([report for _, report in recorded.reports])


def test_rewards_given_anew_by_the_same_verifier_are_the_same(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    trained = replay_from(config("again"), directory_of(recorded), judge=CoinJudge().verify_batch)
    assert (trained.changed_verdicts, trained.verdicts, trained.same_steps) == (0, STEPS * PROMPTS * RESPONSES, STEPS)
    assert_same_state(state_of(config("again")), recorded.state(tmp_path / "state"))


def test_rewards_given_anew_by_another_verifier_are_others_shaping_included(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    def judge(problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        return [Verdict(status=VerdictStatus.MALFORMED, reward=0.0)] * batch.num_rows

    again = config("again", reward={"format_penalty": 0.25})
    trained = replay_from(again, directory_of(recorded), judge=judge)
    assert 0 < trained.changed_verdicts < trained.verdicts == STEPS * PROMPTS * RESPONSES
    rows = RolloutLog(fs.LocalFileSystem(), str(tmp_path / "again" / "rollouts")).read()
    assert set(rows["reward"].to_pylist()) == {-0.25} and set(rows["verdict_status"].to_pylist()) == {"malformed"}


def test_rewards_given_anew_without_shaping_are_shaped_no_more(config: MakeConfig, tmp_path: Path) -> None:
    run = LocalRun(config("shaped", reward={"format_penalty": 0.25}))
    run.train()
    assert any(row["reward_format"] is not None for row in run.logged())
    replay_from(config("again"), directory_of(run), judge=CoinJudge().verify_batch)
    rows = rollout_log(tmp_path / "again").read()
    assert rows["reward_format"].null_count == rows["reward_length"].null_count == len(rows)
    assert set(rows["reward"].to_pylist()) == {0.0, 1.0}


def test_shaping_of_recorded_rewards_needs_them_to_be_given_again(config: MakeConfig, recorded: LocalRun) -> None:
    with pytest.raises(UserError, match=r"\[reward\] shapes rewards, and the recorded ones are not shaped: --rescore"):
        replay_from(config("again", reward={"format_penalty": 0.25}), directory_of(recorded))


def test_a_verdict_that_differs_by_rounding_is_the_same(config: MakeConfig) -> None:
    """0 − 0.1 − 0.2, less the two terms, is not 0."""
    verdicts = [Verdict(status=VerdictStatus.MALFORMED, reward=0.0)] * 2
    group = with_verdicts(make_group(0, [5], [[6], [7]], [0.0, 0.0]), verdicts)
    terms = {"format_term": [-0.1] * 2, "length_term": [-0.2] * 2}
    shaped = with_shaped_rewards(group, reward=[0.0 - 0.1 - 0.2] * 2, **terms)
    assert [verdict.reward for stored in from_record_batch(shaped) for verdict in stored.verdicts if verdict is not None] != [0.0, 0.0]
    rescorer = Rescorer(config("again", task={"name": "arithmetic"}), lambda problem, batch: verdicts)
    rescorer._known = {"sums"}
    rescorer.rescored(shaped)
    assert rescorer.num_changed == 0


def test_a_mixture_s_own_rows_are_judged_by_its_parts(config: MakeConfig, tmp_path: Path) -> None:
    parts = {"arithmetic": {"weight": 1}, "hard": {"name": "arithmetic", "weight": 1}}
    mixture = {"name": "mixture", "mixture": {"parts": parts}}
    run = LocalRun(config("mixed", task=mixture))
    run.train()
    assert {row["task"] for row in run.logged()} == {"arithmetic", "hard"}
    judge = CoinJudge().verify_batch
    assert replay_from(config("again", task=mixture), directory_of(run), judge=judge).verdicts == STEPS * PROMPTS * RESPONSES
    other = {"name": "mixture", "mixture": {"parts": {"arithmetic": parts["arithmetic"], "easy": parts["hard"]}}}
    with pytest.raises(UserError, match=r"is of task hard, but task\.name = mixture of arithmetic, easy"):
        replay_from(config("other", task=other), directory_of(run), judge=judge)


def test_a_verifier_pool_that_breaks_is_one_line(
    config: MakeConfig, recorded: LocalRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self, *_: Any, **options: Any) -> None:
            raise VerifierPoolError("none of 1 new verifier workers was ready")

    monkeypatch.setattr("jobs.offline.replay_from.VerifierPool", Broken)
    assert replay_from_session(config("again"), str(directory_of(recorded)), rescore=True) == 1
    said = capsys.readouterr()
    assert "error: the run failed: none of 1 new verifier workers was ready" in said.out + said.err


def test_a_verifier_that_fails_ends_the_training(config: MakeConfig, recorded: LocalRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.processes.verdict_counter.VerdictCounter.MIN_VERDICTS", 8)

    def judge(problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        return [Verdict(status=VerdictStatus.ERROR, reward=None, detail="no such luck")] * batch.num_rows

    with pytest.raises(VerifierFailure, match="no such luck"):
        replay_from(config("again"), directory_of(recorded), judge=judge)


def test_by_command_with_the_tasks_own_verifier(
    config: MakeConfig, recorded: LocalRun, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real pool, through the command line: a random model has no sum right, half of which the coin had called
    correct."""
    settings = [
        *(f"run_dir={tmp_path / 'again'}", f"model={tiny_model}", "steps=2", f"prompts_per_step={PROMPTS}"),
        *(f"responses_per_prompt={RESPONSES}", "bonus.enabled=false", "learner.dtype=float32", "verifier.num_workers=1"),
    ]
    (tmp_path / "c.toml").write_text("")
    command = [str(tmp_path / "c.toml"), "--replay-from", str(directory_of(recorded)), "--rescore"]
    assert main([*command, *(part for setting in settings for part in ("--set", setting))]) == 0
    out = capsys.readouterr().out
    assert "2 steps trained on rollouts" in out and f"of {2 * PROMPTS * RESPONSES} verdicts differ from those saved" in out
    assert [record["reward/mean"] for record in read_metrics(tmp_path / "again" / "metrics.jsonl")] == [0.0, 0.0]


# --- anybody's rows --------------------------------------------------------------------------------------------------


def plain_rows(recorded: LocalRun) -> list[dict[str, Any]]:
    """The recorded rows as others would write them."""
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "response_ids": row["response_ids"],
            "logprobs": row["behavior_logprobs"],
            "reward": row["reward"],
            "group_id": f"g{row['group_id']}",
            "version": versions_of(row),
            "feature": row["feature"],
        }
        for row in recorded.logged()
    ]


def versions_of(row: dict[str, Any]) -> list[int]:
    """One a token."""
    ends = [*row["version_starts"][1:], len(row["response_ids"])]
    runs = zip(row["version_starts"], ends, row["version_values"], strict=True) if row["response_ids"] else []
    return [version for start, end, version in runs for _ in range(start, end)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ["jsonl", "parquet", "directory"])
def test_plain_rows_train_as_the_run_did(config: MakeConfig, recorded: LocalRun, tmp_path: Path, form: str) -> None:
    rows = plain_rows(recorded)
    if form == "jsonl":
        source = write_jsonl(tmp_path / "rows.jsonl", rows)
    elif form == "parquet":
        source = tmp_path / "rows.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), source)
    else:
        source = write_jsonl(tmp_path / "rows" / "a.jsonl", rows[: PROMPTS * RESPONSES]).parent
        write_jsonl(source / "b.jsonl", rows[PROMPTS * RESPONSES :])
    assert replay_from(config("again"), source).steps == STEPS
    assert losses(read_metrics(tmp_path / "again" / "metrics.jsonl")) == losses([report for _, report in recorded.reports])
    assert_same_state(state_of(config("again")), recorded.state(tmp_path / "state"))


def test_groups_without_a_name_are_told_by_their_prompts(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("group_id", "version")} for row in plain_rows(recorded)]
    twice = write_jsonl(tmp_path / "rows.jsonl", [*rows[:RESPONSES], *rows[:RESPONSES], *rows[RESPONSES : 2 * RESPONSES]])
    assert replay_from(config("again", bonus={"enabled": False}), twice) == Trained(steps=1, groups_left=1)


def test_a_response_without_a_score_has_none(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    rows = plain_rows(recorded)
    rows[0]["reward"] = None
    replay_from(config("again", steps=1), write_jsonl(tmp_path / "rows.jsonl", rows))
    assert read_metrics(tmp_path / "again" / "metrics.jsonl")[0]["verifier/unscored"] == 1 / (PROMPTS * RESPONSES)


def test_a_zero_is_a_value(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    """Whole numbers as ids usually start at 0, and 0 is an answer."""
    rows = plain_rows(recorded)[: PROMPTS * RESPONSES]
    for place, row in enumerate(rows):
        row |= {"problem_id": place // RESPONSES, "answer": 0, "question": 0}
        del row["group_id"]
    replay_from(config("again", steps=1), write_jsonl(tmp_path / "rows.jsonl", rows))
    read = rollout_log(tmp_path / "again").read()
    assert sorted(set(read["problem_id"].to_pylist())) == [str(place) for place in range(PROMPTS)]
    assert set(read["reference_answer"].to_pylist()) == set(read["question"].to_pylist()) == {"0"}


def test_the_rows_of_one_logged_step_are_not_read_as_plain_rows(config: MakeConfig, recorded: LocalRun) -> None:
    (file, *_) = sorted((directory_of(recorded) / "rollouts").glob("*.parquet"))
    with pytest.raises(UserError, match=r"these are the rows of one step of a rollout log: name its directory"):
        replay_from(config("again"), file)


def test_a_method_that_refuses_a_batch_ends_the_training_in_one_line(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    rows = plain_rows(recorded)
    rows[0]["reward"] = -0.5
    maxrl = config("again", learner={"advantage": {"estimator": "maxrl"}})
    with pytest.raises(TrainingFailed, match="maxrl"):
        replay_from(maxrl, write_jsonl(tmp_path / "rows.jsonl", rows))


def row_with(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Row 5 with other values; None: without that column."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[5].update(values)

    return change


def without(*names: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for name in names:
                del row[name]

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("logprobs"), r"rows\.jsonl: no column 'logprobs' \(or 'behavior_logprobs'\)"),
        (without("reward"), r"rows\.jsonl: no column 'reward'"),
        (row_with(logprobs=[-1.0]), r"rows\.jsonl: row 5: \d+ response_ids but 1 log-probs"),
        (row_with(logprobs=[float("nan")] * 6), "row 5: the log-probs are no list of numbers"),
        (row_with(response_ids="12"), "row 5: column 'response_ids' is no list of token ids"),
        (row_with(response_ids=[9999] * 6, logprobs=[-1.0] * 6), r"token id 9999 in 'response_ids', but the model has 104"),
        (row_with(prompt_ids=[7]), "row 5: column 'prompt_ids' is not that of the other rows of its group"),
        (row_with(reward="good"), "row 5: column 'reward' is 'good', not a number"),
        (row_with(version=-1), "row 5: column 'version' is -1"),
        (row_with(group_id="other"), "row 4: a group of 1 rows begins here, but responses_per_prompt = 4"),
        (row_with(feature=[1.0]), "row 5: column 'feature' has not the 8 numbers"),
        (without("feature"), "bonus.enabled = true, but the recorded run has no features"),
        (lambda rows: rows.__delitem__(slice(4, None)), "1 groups, but prompts_per_step = 2"),
        (lambda rows: rows.clear(), r"rows\.jsonl: no rows"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(
    config: MakeConfig, recorded: LocalRun, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], complaint: str
) -> None:
    rows = plain_rows(recorded)
    change(rows)
    with pytest.raises(UserError, match=complaint) as caught:
        replay_from(config("again"), write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "\n" not in str(caught.value) and not (tmp_path / "again").exists()


def test_what_is_no_place_of_rollouts_is_refused(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path, write_jsonl(tmp_path / "rows.txt", [])):
        with pytest.raises(UserError, match="neither the directory of a run"):
            replay_from(config("again"), source)
    with pytest.raises(UserError, match="is run_dir itself"):
        replay_from(config("again", run_dir=recorded.config.run_dir), directory_of(recorded))
    with pytest.raises(UserError, match="responses_per_prompt = 2, but the recorded groups have 4"):
        replay_from(config("again", responses_per_prompt=2), directory_of(recorded))


def test_layers_that_cannot_be_compiled_here_are_refused(
    config: MakeConfig, recorded: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"^learner\.compile = true needs a C\+\+ compiler"):
        replay_from(config("again", learner={"compile": True}), directory_of(recorded))


def test_trains_on_the_gpu_that_the_configuration_asks_for_or_says_that_there_is_none(
    config: MakeConfig, recorded: LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        pass

    def make(*_: Any, device: str, **__: Any) -> None:
        raise Made(device)

    monkeypatch.setattr("jobs.offline.trainer.Learner", make)
    for num_gpus, expected in ((0, "cpu"), (0.5, "cuda")):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        with pytest.raises(Made, match=f"^{expected}$"):
            replay_from(config(f"on {expected}", learner={"num_gpus": num_gpus}), directory_of(recorded))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"^learner\.num_gpus = 0\.5, but there is no GPU here: --set learner\.num_gpus=0 trains on"):
        replay_from(config("none", learner={"num_gpus": 0.5}), directory_of(recorded))


def test_old_tokens_are_not_trained_on_uncorrected(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    uncorrected = {"max_policy_lag": 0, "learner": {"loss": {"correction": "none"}}}
    with pytest.raises(UserError, match=r'correction = "none", but step 2 trains version 1 on tokens of version 0'):
        replay_from(config("again", **uncorrected), directory_of(recorded))
    accepted = {"max_policy_lag": 0, "learner": {"loss": {"correction": "none", "accept_uncorrected": True}}}
    assert replay_from(config("other", **accepted), directory_of(recorded)).steps == STEPS


def test_what_cannot_be_judged_again_is_refused(config: MakeConfig, recorded: LocalRun, tmp_path: Path) -> None:
    judge = CoinJudge().verify_batch
    rows = write_jsonl(tmp_path / "rows.jsonl", plain_rows(recorded))
    with pytest.raises(UserError, match=r"rows\.jsonl: no column 'response_text'"):
        replay_from(config("again"), rows, judge=judge)
    with pytest.raises(UserError, match=r"is of task arithmetic, but task\.name = gsm8k"):
        replay_from(config("other", task={"name": "gsm8k"}), directory_of(recorded), judge=judge)
    without_verifier = config("third", task={"name": "parquet", "parquet": {"path": "x.jsonl", "verifier": "none", "answer_column": None}})
    with pytest.raises(UserError, match="--rescore: task parquet has no verifier"):
        replay_from_session(without_verifier, str(rows), rescore=True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rescore"], "--rescore goes with --replay-from"),
        (["--replay-from", "x", "--resume", "latest"], "--replay-from goes with neither"),
        (["--replay-from", "x"], "--replay-from x: neither the directory of a run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, tiny_model: str, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(f'run_dir = "{tmp_path / "run"}"\nmodel = "{tiny_model}"\n')
    assert main([str(tmp_path / "c.toml"), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_tokens_of_versions_to_come_are_of_this_one_and_not_too_old() -> None:
    group = make_group(0, [5], [[6, 7, 8], [9]], [1.0, 0.0], versions=[[1, 4, 6], [6]])
    batch = with_trained_from(group, 4)
    assert trained_tokens(batch).tolist() == [False, True, True, True]
    sooner = none_newer(batch, 2)
    assert token_versions(sooner).tolist() == [1, 2, 2, 2]
    assert trained_tokens(sooner).tolist() == [False, True, True, True]
    assert trained_tokens(none_newer(batch, 1)).all()
    assert none_newer(batch, 6).equals(batch) and none_newer(group, 0).column("trained_from_version").null_count == 2
