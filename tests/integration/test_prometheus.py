"""One tiny run as programs outside see it: the metrics port of its node, and its output as JSON lines."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.directory.run_state import RunStatus, read_status
from jobs.run.prometheus import SERIES
from tests.integration.processes import Training, metrics_of, tiny_settings, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

OFTEN = {"RAY_metrics_report_interval_ms": "1000"}
NOT_IN_THIS_RUN = {
    *("repexp_evaluation_pass_ratio", "repexp_removed_groups_total"),
    *("repexp_faults_total", "repexp_refused_publications_total"),
}
"""Nothing is evaluated here, and nothing is dropped or fails. Ray knows no counter before it is more than 0."""

Scraped = dict[str, list[tuple[Mapping[str, str], float]]]
"""By the name of a series, its values and their labels."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was seen of the run: statuses before and after the scrape, the metrics until then, and all that it said."""

    before: RunStatus
    scraped: Scraped
    after: RunStatus
    metrics: list[dict[str, Any]]
    output: str


def scrape(address: str, run: str) -> Scraped:
    with urlopen(address, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: Scraped = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("ray_repexp_") and sample.labels["run"] == run:
                found.setdefault(sample.name.removeprefix("ray_"), []).append((sample.labels, sample.value))
                assert family.type == ("counter" if sample.name.endswith("_total") else "gauge"), family
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Watched:
    directory = tmp_path_factory.mktemp("watched")
    config, run_dir = directory / "tiny.toml", directory / "mine"
    config.write_text(f'steps = 100000\n{tiny_settings(tiny_model)}\n[checkpoint]\nevery = 2\n[logs]\nformat = "json"\n')
    with Training(config, run_dir, environment=OFTEN) as training:
        training.wait_for_steps(3)
        before = read_status(run_dir)
        assert before is not None

        def complete() -> Scraped | None:
            found = scrape(before.metrics_address, "mine")
            return found if found.keys() >= {series.name for series in SERIES} - NOT_IN_THIS_RUN else None

        scraped = wait_until(complete, timeout_s=90, what="every series")
        after, metrics = read_status(run_dir), metrics_of(run_dir)
        training.signal(signal.SIGINT)
        assert training.exit_code(timeout_s=90) == 130, training.output()
        assert after is not None
        return Watched(before=before, scraped=scraped, after=after, metrics=metrics, output=training.output())


def test_every_series_is_on_the_metrics_port_with_its_labels_and_the_values_of_the_run(watched: Watched):
    found, metrics = watched.scraped, watched.metrics
    for series in SERIES:
        for labels, _ in found.get(series.name, []):
            assert set(series.labels) < labels.keys()
    assert [value for _, value in found["repexp_planned_steps"]] == [100000]
    ((_, steps),) = found["repexp_trained_steps"]
    assert watched.before.step <= steps <= watched.after.step
    ((_, generated),) = found["repexp_generated_tokens_total"]
    assert 0 < generated <= watched.after.tokens["generated"]
    assert {labels["fate"] for labels, _ in found["repexp_tokens_total"]} >= {"trained"}
    assert {(labels["role"], labels["state"]): value for labels, value in found["repexp_workers"]}["rollout", "serving"] == 1
    assert {labels["k"] for labels, _ in found["repexp_pass_ratio"]} == {"1", "K"}
    ((_, reward),) = found["repexp_reward_mean"]
    assert reward in [record["reward/mean"] for record in metrics]
    ((_, replay_bytes),) = found["repexp_replay_bytes"]
    assert replay_bytes / 2**20 in [pytest.approx(record["replay/held_mib"]) for record in metrics]


def test_the_output_is_json_lines_with_the_run_its_steps_groups_and_workers(watched: Watched):
    records = [json.loads(line) for line in watched.output.splitlines()]
    assert all(record["run"] == "mine" and {"timestamp", "level", "message"} <= record.keys() for record in records)
    dispatched = [record for record in records if record["message"] == "dispatched"]
    assert {record["worker"] for record in dispatched} == {"rollout-0"}
    assert len({record["group_id"] for record in dispatched}) >= 6
    steps = {record["step"]: record["metrics"] for record in records if record["message"].startswith("step ")}
    assert steps.keys() >= {1, 2, 3}
    assert all(steps[record["step"]]["reward/mean"] == record["reward/mean"] for record in watched.metrics)
