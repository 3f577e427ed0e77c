from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from jobs.reports.run.curves import MAX_POINTS, curve_sections, thinned


def panels(metrics: list[dict[str, float]], evaluations: list[dict[str, float]] | None = None) -> dict[str, Any]:
    return {panel["title"]: panel for section in curve_sections(metrics, evaluations or []) for panel in section["panels"]}


def test_evaluations_are_drawn_beside_the_batches_at_their_own_steps() -> None:
    found = panels(
        [{"step": 1, "reward/pass@1": 0.1}, {"step": 2, "reward/pass@1": 0.2}], [{"step": 2, "eval/pass@1": 0.5, "eval/pass@16": 0.9}]
    )
    lines = found["pass@k, batches and evaluations"]["lines"]
    assert [(line["name"], line["x"], line["y"]) for line in lines] == [
        ("reward/pass@1", [1, 2], [0.1, 0.2]),
        ("eval/pass@1", [2], [0.5]),
        ("eval/pass@16", [2], [0.9]),
    ]


def test_a_metric_that_no_panel_names_has_one_of_its_own() -> None:
    assert panels([{"step": 1, "bonus/of_my_own": 2.0}]).keys() == {"bonus/of_my_own"}


def test_what_a_step_lacks_or_no_number_is_a_gap_that_json_can_hold() -> None:
    found = panels([{"step": 1, "learner/grad_norm": float("nan")}, {"step": 2}, {"step": 3, "learner/grad_norm": 1 / 3}])
    assert found["Gradient norm"]["lines"][0]["y"] == [None, None, 0.333333]
    json.dumps(found, allow_nan=False)


def test_of_a_long_run_evenly_chosen_steps_are_drawn_the_last_among_them() -> None:
    kept = [record["step"] for record in thinned([{"step": float(step)} for step in range(1, 2501)])]
    assert len(kept) <= MAX_POINTS and kept[-1] == 2500 and {b - a for a, b in pairwise(kept)} == {3}
