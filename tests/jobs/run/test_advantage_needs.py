"""Whole runs whose advantages need features or final answers, without a bonus that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.offline.replay_from import replay_from
from tests.jobs.components_fixture import LocalRun, small_config
from tests.jobs.run.test_bonus_kinds import AnswerJudge

NO_BONUS: dict[str, Any] = {"bonus": {"enabled": False}, "max_policy_lag": 2}
FEATURES = {"estimator": "uniqueness", "cluster_by": "features", "max_clusters": 2, "diversity_product": 0.9, "normalise": "mean"}


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> Callable[..., RunConfig]:
    """config("name", steps=5): a small run in a directory of that name."""
    return lambda name="run", **values: small_config(tiny_model, tmp_path, run_dir=str(tmp_path / name), **{**NO_BONUS, **values})


def train(settings: RunConfig) -> LocalRun:
    run = LocalRun(settings, judge=AnswerJudge(settings))
    run.train()
    run.check_valid()
    return run


def test_features_are_computed_for_the_advantages_alone(config: Callable[..., RunConfig]) -> None:
    run = train(config(steps=3, learner={"advantage": FEATURES}))
    assert len(run.parts["encoder"]) == 1 and "bonus" not in run.parts
    assert all(row["feature"] is not None and row["bonus"] == 0 for row in run.logged())
    metrics = [metrics for _, metrics in run.reports]
    assert all(0 < each["reward/diversity_product"] < each["reward/mean"] for each in metrics if each["reward/mean"])
    assert any(each["reward/mean"] for each in metrics)


def test_final_answers_are_read_for_the_advantages_alone(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = train(config(steps=3, learner={"advantage": {"estimator": "uniqueness"}}))
    assert not {"encoder", "bonus"} & run.parts.keys()
    assert all(row["feature"] is None and row["final_answer"] in ("0", "1", "2") for row in run.logged())
    replayed = replay_from(config("again", steps=3, learner={"advantage": {"estimator": "uniqueness"}}), tmp_path / "run")
    assert replayed.steps == 3


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        (FEATURES, r"diversity_product = 0\.9 needs features, and .* --set learner\.advantage\.diversity_product=0"),
        ({**FEATURES, "diversity_product": 0.0}, r'estimator = "uniqueness" needs features, and .* choose another estimator'),
        ({"estimator": "uniqueness"}, r'estimator = "uniqueness" needs final answers, .*--rescore .* or choose another estimator'),
    ],
    ids=str,
)
def test_saved_rollouts_without_what_the_advantages_need_are_refused(
    config: Callable[..., RunConfig], tmp_path: Path, advantage: dict[str, Any], message: str
) -> None:
    train(config("recorded", steps=2))
    with pytest.raises(UserError, match=message):
        replay_from(config("again", steps=2, learner={"advantage": advantage}), tmp_path / "recorded")
