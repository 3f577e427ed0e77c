"""Whole runs with bonuses and samplers that the product does not know."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from actors.verifier import VerifierPool
from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from buffers.records import Problem, Verdict, VerdictStatus
from buffers.rollout_log import RolloutLog
from buffers.samplers import HeldGroup
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.offline.replay_from import replay_from, replay_from_session
from jobs.processes.description import TrainingComponents, needs_of_run
from tests.bonus.outside import AnswerCounts
from tests.buffers.schema_1 import as_schema_1
from tests.jobs.components_fixture import PROMPTS, RESPONSES, LocalRun, assert_same_state, small_config

OUTSIDE = "tests.bonus.outside"
COUNTS: dict[str, Any] = {"bonus": {"kind": f"{OUTSIDE}:AnswerCounts"}, "learner": {"advantage": {"beta": 0.5, "combine": "reward"}}}


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> Callable[..., RunConfig]:
    """config("name", steps=5): a small run in a directory of that name."""
    return lambda name="run", **values: small_config(tiny_model, tmp_path, run_dir=str(tmp_path / name), **values)


class AnswerJudge:
    """In place of the verifier pool: makes up one of three answers to each response, always the same one, and is asked
    for final answers as the pool is."""

    def __init__(self, config: RunConfig) -> None:
        self._states_answers = config.needs_answers

    def answers(self, batch: pa.RecordBatch) -> list[str]:
        return [str(sum(ids) % 3) for ids in batch.column("response_ids").to_pylist()]

    def verify_batch(self, problem: Problem, batch: pa.RecordBatch) -> list[Verdict]:
        return [
            Verdict(
                status=VerdictStatus.CORRECT if answer == "0" else VerdictStatus.INCORRECT,
                reward=float(answer == "0"),
                final_answer=answer if self._states_answers else None,
            )
            for answer in self.answers(batch)
        ]


def train(settings: RunConfig) -> LocalRun:
    run = LocalRun(settings, judge=AnswerJudge(settings))
    run.train()
    run.check_valid()
    return run


def times_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [dict(row["bonus_detail"])["times"] for row in rows]


def test_a_bonus_from_final_answers_trains_without_an_encoder_and_without_features(config: Callable[..., RunConfig]) -> None:
    run = train(config(steps=3, **COUNTS))
    assert "encoder" not in run.parts and "bonus" in run.parts
    rows = run.logged()
    assert all(row["feature"] is None and row["final_answer"] in ("0", "1", "2") for row in rows)
    in_group: Counter[tuple[int, str]] = Counter((row["group_id"], row["final_answer"]) for row in rows)  # no problem comes twice
    assert times_of(rows) == [in_group[row["group_id"], row["final_answer"]] for row in rows]
    assert [row["bonus"] for row in rows] == pytest.approx([times**-0.5 for times in times_of(rows)])
    last = dict(run.reports)[3]
    assert last["bonus/mean"] > 0 and last["bonus/num_answers"] == len(in_group)
    assert "bonus/ridge" not in last


def test_a_run_of_an_outside_bonus_is_resumed_bit_for_bit(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    settings = {**COUNTS, "max_policy_lag": 0, "checkpoint": {"every": 2}}
    straight = train(config("straight", steps=4, **settings))
    train(config("stopped", steps=2, **settings))
    resumed = train(config("stopped", steps=4, **settings))
    assert_same_state(straight.state(tmp_path / "a"), resumed.state(tmp_path / "b"))
    assert straight.samples() == resumed.samples() and times_of(straight.logged()) == times_of(resumed.logged())


def test_a_lost_outside_bonus_comes_back_with_all_it_remembered(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    settings = {**COUNTS, "max_policy_lag": 0, "supervision": {"backoff_s": 0.0}}
    straight = train(config("straight", steps=4, **settings))
    lost = LocalRun(config("lost", steps=4, **settings), judge=AnswerJudge(config(**settings)))
    lost.on_report = lambda step: lost.handles["bonus"].kill() if step == 2 else None
    lost.train()
    assert len(lost.parts["bonus"]) == 2
    assert_same_state(straight.state(tmp_path / "a"), lost.state(tmp_path / "b"))


@pytest.mark.parametrize(("name", "num_encoders"), [("Distance", 1), ("Surprise", 0)])
def test_a_bonus_from_features_has_an_encoder_and_one_from_log_probs_has_none(
    config: Callable[..., RunConfig], name: str, num_encoders: int
) -> None:
    run = train(config(steps=2, bonus={"kind": f"{OUTSIDE}:{name}"}))
    assert len(run.parts.get("encoder", [])) == num_encoders
    assert all((row["feature"] is not None) == bool(num_encoders) for row in run.logged())
    assert len({row["bonus"] for row in run.logged()}) > RESPONSES


@pytest.fixture
def pool(config: Callable[..., RunConfig]) -> Iterator[VerifierPool]:
    settings = config(**COUNTS)
    with VerifierPool(settings.task, settings.verifier, final_answers=settings.bonus.needs_answers) as pool:
        yield pool


def test_the_real_verifiers_read_the_answers(config: Callable[..., RunConfig], pool: VerifierPool) -> None:
    run = LocalRun(config(steps=2, **COUNTS), judge=pool)
    run.train()
    run.check_valid()
    for row in run.logged():
        problem = Problem(task=row["task"], problem_id=row["problem_id"], question=row["question"], answer=row["reference_answer"])
        assert row["final_answer"] == run.task.final_answer(problem, row["response_text"])


# ---- what each process is given ----


@pytest.mark.parametrize(
    ("bonus", "encoders", "from_policy", "final_answers"),
    [
        ({}, 2, False, False),
        ({"source": "policy"}, 0, True, False),
        ({"enabled": False, "source": "policy"}, 0, False, False),
        ({"kind": f"{OUTSIDE}:Distance"}, 2, False, False),
        ({"kind": f"{OUTSIDE}:Distance", "source": "policy"}, 0, True, False),
        ({"kind": f"{OUTSIDE}:AnswerCounts"}, 0, False, True),
        ({"kind": f"{OUTSIDE}:AnswerCounts", "source": "policy"}, 0, False, True),
        ({"kind": f"{OUTSIDE}:AnswerCounts", "enabled": False}, 0, False, False),
    ],
    ids=str,
)
def test_processes_compute_what_the_bonus_needs_and_nothing_else(
    bonus: dict[str, Any], encoders: int, from_policy: bool, final_answers: bool
) -> None:
    settings = RunConfig.model_validate({"bonus": bonus, "encoder": {"replicas": 2}})
    components = TrainingComponents(settings, "model", run_id="run", log_directory="log")
    assert (components.rollout_worker(0).kwargs["features"] is not None) == from_policy
    assert components.verifier().kwargs["final_answers"] == final_answers
    without = len(needs_of_run(RunConfig(bonus=BonusConfig(enabled=False))))
    assert len(needs_of_run(settings)) - without == encoders + settings.bonus.enabled


# ---- saved rollouts ----


def test_saved_rollouts_give_an_outside_bonus_again(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recorded = train(config("recorded", steps=3, **COUNTS))
    again = config("again", steps=3, **COUNTS)
    assert replay_from(again, tmp_path / "recorded").steps == 3
    rows = RolloutLog(fs.LocalFileSystem(), str(tmp_path / "again" / "rollouts")).read().to_pylist()
    columns = ("step", "group_id", "bonus", "bonus_detail", "advantage")
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in recorded.logged()]


def test_saved_rollouts_without_final_answers_are_refused_for_a_bonus_that_needs_them(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    train(config("recorded", steps=2, bonus={"enabled": False}))
    with pytest.raises(UserError, match=r'bonus\.kind = "tests\.bonus\.outside:AnswerCounts" needs final answers.*--rescore'):
        replay_from(config("again", steps=2, **COUNTS), tmp_path / "recorded")
    settings = config("rescored", steps=2, **COUNTS)
    assert replay_from(settings, tmp_path / "recorded", judge=AnswerJudge(settings).verify_batch).steps == 2
    rows = RolloutLog(fs.LocalFileSystem(), str(tmp_path / "rescored" / "rollouts")).read().to_pylist()
    assert all(row["final_answer"] is not None for row in rows)


class FailsLater(AnswerCounts):
    """Gives a score that is not finite in the second step."""

    steps = 0

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        scores, state = super().score(step, state)
        self.steps += 1
        return (replace(scores, bonus_GK=scores.bonus_GK * float("nan")) if self.steps == 2 else scores), state


def test_a_bonus_that_fails_later_is_a_failure_and_no_refusal(
    config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config("recorded", steps=3, **COUNTS))
    settings = config("again", steps=3, **{**COUNTS, "bonus": {"kind": f"{__name__}:FailsLater"}})
    assert replay_from_session(settings, str(tmp_path / "recorded"), rescore=False) == 1
    assert "error: the run failed: bonus.kind" in capsys.readouterr().err
    assert len(list((tmp_path / "again" / "rollouts").glob("*.parquet"))) == 1


# ---- a sampler ----


class Newest:
    """The groups admitted last."""

    def choose(self, held: Sequence[HeldGroup], num_groups: int) -> Sequence[int]:
        return [group.group_id for group in held][-num_groups:]


def test_a_sampler_of_ones_own_trains_a_whole_run(config: Callable[..., RunConfig]) -> None:
    settings = config(steps=6, max_policy_lag=2, replay={"sampler": f"{__name__}:Newest"})
    run = LocalRun(settings)
    run.train()
    run.check_valid()
    assert len(run.trained_problems()) == 6 * PROMPTS


# ---- a run that was begun before ----


def test_a_run_that_was_begun_with_schema_1_is_resumed_and_its_old_steps_stay(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Its checkpoint's rows are converted; its rollout log then has files of both versions."""
    settings = {"checkpoint": {"every": 2}, "deterministic": True}
    straight = LocalRun(config("straight", steps=4, **settings))
    straight.train()
    LocalRun(config("run", steps=2, **settings)).train()
    for step in (1, 2):
        file = tmp_path / "run" / "rollouts" / f"step_{step:06d}.parquet"
        pq.write_table(as_schema_1(pq.read_table(file)), file)
    rows_held = 0
    for name in ("replay.arrow", "aside.arrow"):
        file = tmp_path / "run" / "checkpoints" / "step_000002" / "replay" / name
        with pa.OSFile(str(file)) as source:
            rows = pa.ipc.open_file(source).read_all()
        rows_held += len(rows)
        rewrite(file, as_schema_1(rows))
    assert rows_held, "nothing was held at the checkpoint"
    resumed = LocalRun(config("run", steps=4, **settings))
    resumed.train()
    assert_same_state(straight.state(tmp_path / "a"), resumed.state(tmp_path / "b"))
    versions = [pq.read_schema(file).metadata[b"repexp.schema"] for file in sorted((tmp_path / "run" / "rollouts").iterdir())]
    assert versions == [b"1.2", b"1.2", b"2.1", b"2.1"]
    with pytest.raises(UserError, match=r"step 1 cannot be read: .*rollout schema 1\.2 is older than this reader's 2\.1"):
        replay_from(config("again", steps=2), tmp_path / "run")


def rewrite(file: Path, rows: Any) -> None:
    """Replace a file of a checkpoint, and what the manifest says of it."""
    with pa.ipc.new_file(str(file), rows.schema) as writer:
        writer.write_table(rows)
    path = file.parents[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    (entry,) = [entry for entry in manifest["files"] if entry["path"].endswith(f"{file.parent.name}/{file.name}")]
    entry |= {"size_bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}
    path.write_text(json.dumps(manifest))
