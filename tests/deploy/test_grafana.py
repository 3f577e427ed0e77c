"""The dashboard names series and labels that a run exports, and has what a reader of a panel needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.run.prometheus import SERIES

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
LABELS = {f"ray_{series.name}": {"run", *series.labels} for series in SERIES}
COUNTERS = {f"ray_{series.name}" for series in SERIES if series.is_counter}
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
OF_GRAFANA = {"__rate_interval"}


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def labels_in(expression: str) -> set[str]:
    """The labels that an expression selects by, or keeps."""
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    kept = [label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")]
    return {*selected, *kept}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_names_existing_series_with_their_labels(panel):
    assert panel["title"] and panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        named = re.findall(r"ray_\w+", target["expr"])
        assert named and set(named) <= LABELS.keys()
        assert labels_in(target["expr"]) <= set.union(*(LABELS[name] for name in named))
        kept = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == kept, "a curve is told by all that it differs in"
        assert ("sum by" in target["expr"]) == bool(COUNTERS & set(named)), "a resumed run counts from 0 again, so counters add up"


def test_the_panels_do_not_overlap_and_have_ids_of_their_own():
    assert 8 <= len(PANELS) <= 12
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_the_data_source_and_the_run_are_variables_and_no_other_is_used():
    assert {name: variable["type"] for name, variable in VARIABLES.items()} == {"datasource": "datasource", "run": "query"}
    assert VARIABLES["run"]["multi"] and VARIABLES["run"]["includeAll"]
    (series,) = re.findall(r"label_values\((\w+), run\)", VARIABLES["run"]["query"]["query"])
    assert series in LABELS
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([PANELS, VARIABLES["run"]["datasource"]])))
    assert used - OF_GRAFANA == VARIABLES.keys()
    assert [text for panel in PANELS for text in expressions(panel) if 'run=~"$run"' not in text] == []
