"""The templates of reports go wherever the code goes: into an installed package, and to a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuptools import Distribution

from jobs.cluster.package import select
from jobs.reports.compare.report import CompareReport
from jobs.reports.evaluate.report import EvaluateReport
from jobs.reports.explore.report import ExploreReport
from jobs.reports.report import Report, _templates
from jobs.reports.run.report import RunReport

REPOSITORY = Path(__file__).resolve().parents[3]
SUFFIXES = (".jinja", ".css", ".js")
TEMPLATES = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "jobs").rglob("*") if path.suffix in SUFFIXES}


@pytest.mark.parametrize("report", [ExploreReport, EvaluateReport, CompareReport, RunReport])
def test_every_report_has_a_template_that_compiles(report: type[Report]) -> None:
    assert f"jobs/reports/{report.template}" in TEMPLATES
    assert _templates().get_template(report.template).blocks.keys() >= {"body"}


def test_an_installed_package_holds_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    distribution = Distribution()
    distribution.parse_config_files()
    distribution.include_package_data = False  # what a MANIFEST lists does not count, and no egg-info is written here
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    installed = {f"{directory}/{file}" for _, directory, _, files in build.data_files for file in files}
    assert installed >= TEMPLATES and len(TEMPLATES) == 14


def test_a_submitted_package_holds_the_templates() -> None:
    assert select(REPOSITORY).sizes.keys() >= TEMPLATES
