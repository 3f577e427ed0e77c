"""The table of series: conventions of Prometheus, every metric at most once, and values as the run has them. That they
arrive is tested in tests/integration/test_prometheus.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.directory.run_state import RunStatus, WorkerStatus
from jobs.run.prometheus import SERIES, Series, places_of, status_values
from tests.test_docs import metrics_documented

UNITS = ("seconds", "bytes", "tokens", "steps", "nats", "versions", "ratio", "total")
UNITLESS = {
    *("repexp_reward_mean", "repexp_bonus_mean", "repexp_bonus_spread", "repexp_gradient_norm"),
    *("repexp_policy_version", "repexp_groups", "repexp_free_slots", "repexp_workers", "repexp_desired_workers"),
}
STATUS = RunStatus(
    **{"run_id": "run", "phase": "training", "pid": 1, "host": "here", "started": 1.0, "updated": 2.0, "step": 3, "steps": 9},
    **{"trained_version": 3, "live_version": 2, "checkpoint_time": 5.5},
    workers=tuple(
        WorkerStatus(name=name, role=name.partition("-")[0], state=state, since=0.0)
        for name, state in {"rollout-0": "serving", "rollout-1": "serving", "rollout-2": "dead", "encoder-0": "serving"}.items()
    ),
    **{"desired": {"rollout": 2}, "queues": {"held": 4, "free_slots": 1}, "tokens": {"generated": 10, "in_flight": 4, "wasted_lost": 6}},
)


def exported(known: dict[str, float]) -> dict[tuple[str, ...], float]:
    """By the name of a series and its labels, the value."""
    return {(series.name, *labels.values()): value * series.scale for name, value in known.items() for series, labels in places_of(name)}


def test_names_follow_the_conventions_of_prometheus():
    names = [series.name for series in SERIES]
    assert len(set(names)) == len(names) > 25
    assert [name for name in names if not re.fullmatch(r"repexp(_[a-z]+)+", name)] == []
    assert {name for name in names if not name.endswith(UNITS)} == UNITLESS
    assert [series.text for series in SERIES if not series.text or series.text.endswith(".")] == []


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_each_series_has_a_source_that_the_run_knows(series: Series):
    names = metrics_documented() | {f"eval/pass@{k}" for k in (1, 2)} | set(status_values(STATUS))
    found = [name for name in names if re.fullmatch(series.source, name)]
    assert found
    assert len(found) == 1 or series.labels, "several values need a label that tells them apart"


def test_a_value_is_in_one_series_with_its_labels():
    known = {"reward/pass@1": 0.5, "reward/pass@K": 0.75, "replay/held_mib": 2.0, "time/step_s": 9.0, "time/learn_s": 4.0, "time/odd": 1.0}
    assert exported(known) == {
        ("repexp_pass_ratio", "1"): 0.5,
        ("repexp_pass_ratio", "K"): 0.75,
        ("repexp_replay_bytes",): 2.0 * 2**20,
        ("repexp_step_seconds",): 9.0,
        ("repexp_activity_seconds", "learn"): 4.0,
    }
    assert {name: len(places_of(name)) for name in metrics_documented() if len(places_of(name)) > 1} == {}


def test_a_status_gives_steps_versions_queues_workers_by_state_and_tokens_by_fate():
    found = exported(status_values(STATUS))
    workers = {labels: value for (name, *labels), value in found.items() if name == "repexp_workers" for labels in [tuple(labels)]}
    assert workers == {
        **{("rollout", state): 0 for state in ("starting", "stale", "draining")},
        ("rollout", "serving"): 2,
        ("rollout", "dead"): 1,
        ("encoder", "serving"): 1,
    }
    assert {name: value for name, value in found.items() if name[0] != "repexp_workers"} == {
        ("repexp_trained_steps",): 3,
        ("repexp_planned_steps",): 9,
        ("repexp_policy_version", "trained"): 3,
        ("repexp_policy_version", "live"): 2,
        ("repexp_checkpoint_timestamp_seconds",): 5.5,
        ("repexp_desired_workers", "rollout"): 2,
        ("repexp_groups", "held"): 4,
        ("repexp_free_slots",): 1,
        ("repexp_generated_tokens_total",): 10,
        ("repexp_in_flight_tokens",): 4,
        ("repexp_tokens_total", "wasted_lost"): 6,
    }


def test_the_page_lists_every_series_and_no_other():
    page = (Path(__file__).parents[3] / "docs/monitoring.md").read_text()
    cells = re.findall(r"^\| (`repexp_[^|]*)\|([^|]*)\|", page, re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", labels)) for names, labels in cells for name in re.findall(r"`(\w+)`", names)}
    assert listed == {series.name: set(series.labels) for series in SERIES}
