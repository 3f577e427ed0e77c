"""A run exports its series: the metrics port of the node is scraped while a tiny run trains."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.directory.run_state import read_status
from jobs.run.prometheus import SERIES
from tests.integration.processes import Training, metrics_of, tiny_settings, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

OFTEN = {"RAY_metrics_report_interval_ms": "1000"}
NOT_IN_THIS_RUN = {
    "repexp_evaluation_pass_ratio",
    "repexp_removed_groups_total",
    "repexp_faults_total",
    "repexp_refused_publications_total",
}
"""Nothing is evaluated here, and nothing is dropped or fails. Ray knows no counter before it is more than 0."""


def scraped(address: str, run: str) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """By the name of a series, its values and their labels."""
    with urlopen(address, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("ray_repexp_") and sample.labels["run"] == run:
                found.setdefault(sample.name.removeprefix("ray_"), []).append((sample.labels, sample.value))
                assert family.type == ("counter" if sample.name.endswith("_total") else "gauge"), family
    return found


def test_every_series_is_on_the_metrics_port_of_the_node_with_its_labels_and_the_values_of_the_run(tmp_path: Path, tiny_model: str):
    config, run_dir = tmp_path / "tiny.toml", tmp_path / "mine"
    config.write_text(f"steps = 100000\n{tiny_settings(tiny_model)}\n[checkpoint]\nevery = 2\n")
    with Training(config, run_dir, environment=OFTEN) as training:
        training.wait_for_steps(3)
        status = read_status(run_dir)
        assert status is not None

        def complete() -> dict[str, list[tuple[Mapping[str, str], float]]] | None:
            found = scraped(status.metrics_address, "mine")
            return found if found.keys() >= {series.name for series in SERIES} - NOT_IN_THIS_RUN else None

        found = wait_until(complete, timeout_s=90, what="every series")
        later = read_status(run_dir)
        records = metrics_of(run_dir)
        training.signal(signal.SIGINT)
        assert training.exit_code(timeout_s=90) == 130, training.output()
    assert later is not None
    for series in SERIES:
        for labels, _ in found.get(series.name, []):
            assert set(series.labels) < labels.keys()
    assert [value for _, value in found["repexp_planned_steps"]] == [100000]
    ((_, steps),) = found["repexp_trained_steps"]
    assert status.step <= steps <= later.step
    ((_, generated),) = found["repexp_generated_tokens_total"]
    assert 0 < generated <= later.tokens["generated"]
    assert {labels["fate"] for labels, _ in found["repexp_tokens_total"]} >= {"trained"}
    assert {(labels["role"], labels["state"]): value for labels, value in found["repexp_workers"]}["rollout", "serving"] == 1
    assert {labels["k"] for labels, _ in found["repexp_pass_ratio"]} == {"1", "K"}
    ((_, reward),) = found["repexp_reward_mean"]
    assert reward in [record["reward/mean"] for record in records]
    ((_, replay_bytes),) = found["repexp_replay_bytes"]
    assert replay_bytes / 2**20 in [pytest.approx(record["replay/held_mib"]) for record in records]
