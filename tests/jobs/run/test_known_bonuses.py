"""Whole runs with every known bonus: trained, stopped, resumed to the same state, and with late groups."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.bonus import REST
from bonus.base import Need
from bonus.kinds import KINDS
from buffers.records import Problem, Verdict, VerdictStatus
from jobs.config import RunConfig
from tasks.base import Task
from tests.jobs.components_fixture import LocalRun, assert_same_state, small_config
from tests.jobs.run.test_bonus_kinds import AnswerJudge

FAMILY: list[dict[str, Any]] = [
    *({"kind": kind} for kind in KINDS if kind not in ("elliptical", "outcome_ucb", "surprise")),
    {"kind": "surprise", "surprise": {"scale": 0.01, "decay": 0.9}},
    {"kind": "logdet", "memory": "prompt", "gate": "always"},
    {"kind": "outcome_ucb", "outcome_ucb": {"baseline": "constant"}},
    {"terms": [{"kind": "elliptical", "weight": 0.01}, {"kind": "outcome_batch", "weight": 0.1}, {"kind": "rnd"}], "memory": "run"},
]


def name_of(bonus: dict[str, Any]) -> str:
    return str(bonus.get("kind", "several"))


class PlacedAnswers(AnswerJudge):
    """Equal responses state different answers where their places differ."""

    def answers(self, batch: pa.RecordBatch) -> list[str]:
        return [str((sum(ids) + index) % 3) for index, ids in enumerate(batch.column("response_ids").to_pylist())]


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> Callable[..., RunConfig]:
    """config("name", steps=4): a small run in a directory of that name, in which the bonus is all that is trained on
    where rewards are equal."""
    combined = {"advantage": {"beta": 0.5, "combine": "reward"}}
    return lambda name="run", **values: small_config(tiny_model, tmp_path, run_dir=str(tmp_path / name), learner=combined, **values)


def train(settings: RunConfig) -> LocalRun:
    run = LocalRun(settings, judge=PlacedAnswers(settings))
    run.train()
    run.check_valid()
    return run


def saved_state(run: LocalRun, directory: Path) -> Any:
    """What is saved of the bonus besides tensors."""
    directory.mkdir(exist_ok=True)
    assert run.the_bonus is not None
    run.the_bonus.save(directory)
    return json.loads((directory / REST).read_text())


@pytest.mark.parametrize("bonus", FAMILY, ids=name_of)
def test_a_run_is_resumed_bit_for_bit_and_starts_no_encoder_that_it_does_not_need(
    config: Callable[..., RunConfig], tmp_path: Path, bonus: dict[str, Any]
) -> None:
    settings = {"bonus": {"dim": 8, **bonus}, "max_policy_lag": 0, "checkpoint": {"every": 2}}
    straight = train(config("straight", steps=4, **settings))
    train(config("stopped", steps=2, **settings))
    resumed = train(config("stopped", steps=4, **settings))
    assert_same_state(straight.state(tmp_path / "a"), resumed.state(tmp_path / "b"))
    assert saved_state(straight, tmp_path / "a") == saved_state(resumed, tmp_path / "b")
    assert straight.samples() == resumed.samples()
    rows = straight.logged()
    assert [row["bonus_detail"] for row in rows] == [row["bonus_detail"] for row in resumed.logged()]
    assert len({row["bonus"] for row in rows}) > 1
    assert ("encoder" in straight.parts) == (Need.FEATURES in straight.config.bonus.needs)


def test_several_bonuses_are_logged_apart(config: Callable[..., RunConfig]) -> None:
    run = train(config(steps=2, bonus={"dim": 8, **FAMILY[-1]}))
    last = dict(run.reports)[2]
    assert {"bonus/mean", "bonus/elliptical/mean", "bonus/elliptical/spread", "bonus/outcome_batch/mean", "bonus/rnd/mean"} <= last.keys()
    for row in run.logged():
        detail = dict(row["bonus_detail"])
        expected = 0.01 * detail["elliptical"] + 0.1 * detail["outcome_batch"] + detail["rnd"]
        assert row["bonus"] == pytest.approx(expected)


def test_a_lost_bonus_absorbs_the_steps_since_the_checkpoint_once(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    terms = [{"kind": kind} for kind in ("outcome_ucb", "rnd", "coin_flip", "logdet")]
    settings = {"bonus": {"dim": 8, "terms": terms, "memory": "run"}, "max_policy_lag": 0, "supervision": {"backoff_s": 0.0}}
    straight = train(config("straight", steps=4, **settings))
    lost = LocalRun(config("lost", steps=4, **settings), judge=PlacedAnswers(config(**settings)))
    lost.on_report = lambda step: lost.handles["bonus"].kill() if step == 2 else None
    lost.train()
    assert len(lost.parts["bonus"]) == 2
    assert_same_state(straight.state(tmp_path / "a"), lost.state(tmp_path / "b"))
    assert saved_state(straight, tmp_path / "a") == saved_state(lost, tmp_path / "b")


# ---- late groups ----

STEPS, GROUPS_PER_STEP, GROUP_SIZE = 16, 4, 2
LENGTHS = {"kind": "lognormal", "group_size": GROUP_SIZE, "mean_tokens": 12.0, "sigma": 1.5}


class Few(Task):
    """A task of so few problems that a run goes through all of them several times."""

    name = "few"

    def problems(self, split: str) -> Iterator[Problem]:
        for number in range(16):
            yield Problem(task=self.name, problem_id=f"few/{number}", question=f"{number}?", answer="")

    def verify(self, problem: Problem, response: str) -> Verdict:
        return Verdict(status=VerdictStatus.INCORRECT, reward=0.0)


@pytest.mark.whole
@pytest.mark.parametrize("lag", [0, 2])
def test_every_state_counts_each_response_once_also_with_late_groups(tiny_model: str, tmp_path: Path, lag: int) -> None:
    """The engine sleeps, and a few groups take far longer than the others: with S = 2 their first tokens are too old to
    be trained on, and the bonus scores the whole response once all the same."""
    config = small_config(
        tiny_model,
        tmp_path,
        steps=STEPS,
        prompts_per_step=GROUPS_PER_STEP,
        responses_per_prompt=GROUP_SIZE,
        max_policy_lag=lag,
        late="mask",
        max_attempts=2,
        task={"name": f"{__name__}:Few"},
        sampling={"max_response_tokens": 200},
        rollout={
            "workers": 2,
            "max_sequences": 4 * GROUP_SIZE,
            "engine": "benchmarks.sleeping:SleepingEngine",
            "engine_options": {"token_s": 0.002, "again": "same", **LENGTHS},
        },
        bonus={"dim": 8, "terms": [{"kind": kind} for kind in KINDS], "memory": "run", "gate": "always"},
        checkpoint={"every": STEPS},
        learner={"lr": 1e-6},
    )
    run = LocalRun(config, judge=PlacedAnswers(config))
    assert run.train() == STEPS
    run.books.check_valid()
    rows = run.logged()
    assert len(rows) == STEPS * GROUPS_PER_STEP * GROUP_SIZE
    assert any(row["trained_from_version"] is not None for row in rows) == (lag > 0), "the schedule tried nothing"
    saved = saved_state(run, tmp_path / "state")
    assert saved["steps"] == STEPS
    state = saved["state"]
    counted = [times for answers in state["outcome_ucb"]["of_problem"].values() for times in answers.values()]
    assert sum(counted) == state["rnd"]["responses"] == state["coin_flip"]["responses"] == len(rows)
    for kind in ("elliptical", "logdet"):
        assert (state[kind]["covariance.steps"], state[kind]["covariance.groups"]) == (STEPS, STEPS * GROUPS_PER_STEP)
    for row in rows:
        assert row["feature"] is not None and row["bonus"] == pytest.approx(sum(dict(row["bonus_detail"])[kind] for kind in KINDS))
