"""The report on comparisons whose results are made by hand: what it says, and what it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from jobs.analysis.trained import trained_run
from jobs.compare_config import CompareConfig
from jobs.reports.compare.report import CompareReport, Found, write_report
from jobs.reports.plots import style_of
from tests.jobs.reports.page_text import Text
from tests.jobs.samples_fixture import binomial_outcomes, outcomes_of

HOSTILE = "error: </p><script>alert(1)</script>"


def settings(*methods: str, seeds: tuple[int, ...] = (0, 1, 2), **evaluation: int) -> CompareConfig:
    asked = {"problems": 30, "samples": 8, "resamples": 400} | evaluation
    return CompareConfig.model_validate({"methods": {name: {} for name in methods}, "seeds": seeds, "steps": (5,), "evaluation": asked})


def found(gains: Mapping[str, float], *, step: int = 5, seeds: tuple[int, ...] = (0, 1, 2)) -> Found:
    """A base model of 30 problems, and methods that are better by a gain."""
    rng = np.random.default_rng(0)
    rate_P = np.full(30, 0.3)
    policies = {"base": {0: {0: binomial_outcomes(rate_P, 8, rng)}}}
    policies |= {name: {step: {seed: binomial_outcomes(rate_P + gain, 8, rng) for seed in seeds}} for name, gain in gains.items()}
    records = [
        {"step": 1, "reward/pass@1": 0.5, "policy/entropy": 1.0, "response/tokens_mean": 9.0, "tokens/generated": 500.0, "time/step_s": 3.0}
    ]
    runs = tuple(trained_run(records, name=f"{name}-{seed}", method=name, seed=seed) for name in gains for seed in seeds)
    return Found(policies=policies, runs=runs, num_expected=1 + len(gains) * len(seeds))


def write(
    directory: Path, gains: Mapping[str, float], config: CompareConfig, failures: Mapping[str, str] | None = None
) -> tuple[CompareReport, Text]:
    report = write_report(found(gains, seeds=config.seeds), config, directory, failures=failures or {})
    return report, Text((directory / "report.html").read_text())


def test_better_is_said_only_where_the_interval_says_so(tmp_path: Path) -> None:
    report, page = write(tmp_path, {"grpo": 0.0, "good": 0.4, "same": 0.0, "bad": -0.25}, settings("grpo", "good", "same", "bad"))
    sentences = {one.split()[0].rstrip(":"): one for one in report.summary}
    assert sentences["good"].startswith("good is better at pass@1 by +0.")
    assert "survives the correction for 3 methods" in sentences["good"] and "sample efficiency" in sentences["good"]
    assert sentences["bad"].startswith("bad is worse at pass@1 by -0.")
    assert sentences["same"] == "same: no difference from grpo is shown at pass@1, pass@8 or the area under pass@k."
    for one in report.differences:
        test = one.tests["pass@1"]
        assert (test.verdict == "better") == (test.difference.low > 0)
    assert all(sentence in page.text for sentence in report.summary)


def test_the_base_model_stands_among_the_methods_and_outside_the_correction(tmp_path: Path) -> None:
    report, page = write(tmp_path, {"grpo": 0.2, "other": 0.2}, settings("grpo", "other"))
    assert list(report.last) == ["base", "grpo", "other"]
    assert [one.method for one in report.differences] == ["other"]
    assert report.base_difference is not None and report.base_difference.seeds == (0,)
    assert report.base_difference.against_seeds == (0, 1, 2)
    assert report.base_difference.tests["pass@1"].adjusted_p == report.base_difference.tests["pass@1"].p
    assert "correction" not in report.summary[0], "one method needs none"
    assert "base" in page.text


def test_one_seed_and_few_problems_are_said_to_be_so(tmp_path: Path) -> None:
    report, _ = write(tmp_path, {"grpo": 0.0, "other": 0.2}, settings("grpo", "other", seeds=(7,)))
    assert any(note.startswith("No method has runs of two seeds: intervals are over problems alone") for note in report.notes)
    assert "1 seed of each method" in report.summary[-1]
    report, _ = write(tmp_path, {"grpo": 0.0, "other": 0.2}, settings("grpo", "other"))
    said = r"Runs of one method differ by 0\.\d\d at pass@1 and 0\.\d\d at pass@8 \(.*, 4 degrees of freedom\)\."
    assert re.fullmatch(said, report.summary[-1])


def test_a_comparison_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    begun = Found(policies={"base": {0: {0: outcomes_of("11xx", "xxxx")}}}, runs=(), num_expected=7)
    report = write_report(begun, settings("grpo", "other", samples=4), tmp_path, failures={})
    assert report.notes[0].startswith("Not finished: 1 of 7 evaluations")
    assert (tmp_path / "overview.png").is_file() and not (tmp_path / "differences.png").exists()
    one_method = Found(policies={"other": {5: {0: outcomes_of("11xx", "xxxx")}}}, runs=(), num_expected=7)
    report = write_report(one_method, settings("grpo", "other", samples=4), tmp_path, failures={})
    assert report.differences == () and "base" not in report.statistics
    json.loads((tmp_path / "report.json").read_text())


def test_a_policy_that_answers_nothing_that_can_be_scored_is_left_out(tmp_path: Path) -> None:
    results = found({"grpo": 0.0, "broken": 0.0})
    unscored = {seed: outcomes_of(*["tttttttt"] * 30) for seed in (0, 1, 2)}
    report = write_report(
        Found(policies={**results.policies, "broken": {5: unscored}}, runs=results.runs, num_expected=7),
        settings("grpo", "broken"),
        tmp_path,
        failures={},
    )
    assert list(report.statistics) == ["base", "grpo"] and report.differences == ()


def test_what_failed_is_named_and_stays_text(tmp_path: Path) -> None:
    report, page = write(tmp_path, {"grpo": 0.0, "other": 0.0}, settings("grpo", "other"), {"q-other-1": HOSTILE})
    assert any("q-other-1 failed" in note for note in report.notes)
    assert "script" not in page.tags and "alert(1)" in page.text


def test_what_was_spent_is_reported(tmp_path: Path) -> None:
    report, page = write(tmp_path, {"grpo": 0.0, "other": 0.0}, settings("grpo", "other"))
    spending = report.page_values()["spending"]
    assert [row[:5] for row in spending.rows] == [(name, "3", "1", "500", "3") for name in ("grpo", "other")]
    assert "seconds of a run" in page.text


def test_it_says_how_the_methods_did_while_they_trained(tmp_path: Path) -> None:
    """The single step of every run is less than the five that are compared, and then all of them."""
    gains = {"grpo": 0.0, "other": 0.0}
    report, page = write(tmp_path, gains, settings(*gains))
    assert not report.online and "While it trained" not in page.text
    records = [{"step": step, "reward/pass@1": 0.5, "reward/pass@K": 0.75, "policy/entropy": 1.0} for step in range(1, 6)]
    runs = tuple(trained_run(records, name=name, method=name, seed=0) for name in gains)
    report = write_report(Found(policies=found(gains).policies, runs=runs, num_expected=7), settings(*gains), tmp_path, failures={})
    assert report.page_values()["online"].rows[1] == ("other", "1", "0.50", "0.75", "1.00", "+0.00", "+0.00", "+0.00")
    assert "While it trained" in Text((tmp_path / "report.html").read_text()).text


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, {"grpo": 0.0, "other": 0.1}, settings("grpo", "other"))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"report.html", "report.json", "table.csv", "differences.csv", "seeds.csv"} <= set(files) and len(files) == 15
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


@pytest.mark.parametrize("num", [6, 16, 30])
def test_as_many_lines_as_there_are_methods_can_be_told_apart(num: int) -> None:
    assert len({(style.color, str(style.line), style.marker) for style in map(style_of, range(num))}) == num
