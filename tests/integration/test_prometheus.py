"""A run exports its series: the metrics port of a real Ray is scraped after a tiny run in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.directory.run_state import read_status
from jobs.processes.build import ray_session
from jobs.run.control import Control
from jobs.run.prometheus import SERIES, scrape_address
from tests.integration.processes import wait_until
from tests.jobs.components_fixture import BOUND_S, LocalRun, small_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

STEPS = 4
NOT_IN_THIS_RUN = {"repexp_removed_groups_total", "repexp_faults_total", "repexp_refused_publications_total"}
"""Nothing is dropped or fails here, and Ray knows no counter before it is more than 0."""

Scraped = dict[str, list[tuple[Mapping[str, str], float]]]
"""By the name of a series, its values and their labels."""


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


def trained(run: LocalRun, control: Control) -> None:
    async def train() -> None:
        async with asyncio.timeout(BOUND_S):
            await run.trainer.train(0, alongside=[control.loop(run.trainer)])

    asyncio.run(train())
    control.checkpointed(run.run.step, time.time())  # what the session hears of the run
    control.evaluated({"eval/pass@1": 0.25, "eval/pass@4": 0.5})
    control.enter("finished", step=run.run.step)


def test_every_series_is_on_the_metrics_port_with_its_labels_and_the_values_of_the_run(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    monkeypatch.setattr("jobs.run.control.TICK_S", 0.05)
    run = LocalRun(small_config(tiny_model, tmp_path, steps=STEPS))
    path = run.directory.path
    path.mkdir(parents=True, exist_ok=True)
    with ray_session("repexp-test", []):
        control = Control(path, "mine", run.config, warn=pytest.fail)
        run.on_report = lambda step: control.stepped(run.reports[-1][1])
        trained(run, control)
        status, (_, metrics) = read_status(path), run.reports[-1]
        assert status is not None

        def complete() -> Scraped | None:
            control.export()  # as the run does every second
            found = scrape(scrape_address(), "mine")
            is_newest = [value for _, value in found.get("repexp_trained_steps", [])] == [STEPS]
            return found if is_newest and found.keys() >= {series.name for series in SERIES} - NOT_IN_THIS_RUN else None

        found = wait_until(complete, timeout_s=60, what="every series")

    def values(name: str, *labels: str) -> dict[str, float]:
        return {" ".join(sample[label] for label in labels): value for sample, value in found[name]}

    for series in SERIES:
        for labels, _ in found.get(series.name, []):
            assert set(series.labels) < labels.keys()
    assert values("repexp_planned_steps") == {"": STEPS}
    assert values("repexp_policy_version", "state") == {"trained": STEPS, "live": status.live_version}
    assert values("repexp_reward_mean") == {"": metrics["reward/mean"]}
    assert values("repexp_pass_ratio", "k") == {"1": metrics["reward/pass@1"], "K": metrics["reward/pass@K"]}
    assert values("repexp_evaluation_pass_ratio", "k") == {"1": 0.25, "4": 0.5}
    assert values("repexp_replay_bytes") == {"": metrics["replay/held_mib"] * 2**20}
    assert values("repexp_workers", "role", "state") == {
        **{f"rollout {state}": 0 for state in ("starting", "stale", "draining")},
        **{
            f"rollout {state}": sum(each.role == "rollout" and each.state == state for each in status.workers)
            for state in ("serving", "dead")
        },
        "encoder serving": 1,
    }
    assert values("repexp_generated_tokens_total") == {"": status.tokens["generated"]}
    assert values("repexp_tokens_total", "fate") == {
        fate: number for fate, number in status.tokens.items() if number and fate not in ("generated", "in_flight")
    }
