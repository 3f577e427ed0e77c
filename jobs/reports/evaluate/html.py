"""The page of an evaluation: see `jobs.reports.page`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Template

from jobs.reports.evaluate.summary import metric_rows, verdict_shares
from jobs.reports.evaluate.template import PAGE
from jobs.reports.explore.examples import visible_text
from jobs.reports.explore.summary import NAME_LIMIT
from jobs.reports.page import page_template, render_page
from jobs.reports.plots import Drawing

if TYPE_CHECKING:
    from jobs.reports.evaluate.report import EvaluateReport

SHOWN_PROBLEMS = 300


def render_html(report: EvaluateReport, figures: Mapping[str, Drawing]) -> str:
    """The page of a report."""
    first = next(iter(report.models.values()))
    rows = metric_rows(report.models, first.ks, [k for k in first.ks if k > 2])
    return render_page(
        _template(),
        figures,
        title="Evaluation report",
        captions=CAPTIONS,
        report=report.to_json(),
        problems=[(visible_text(line.problem_id, NAME_LIMIT), line) for line in report.problems[:SHOWN_PROBLEMS]],
        labels=[visible_text(label, NAME_LIMIT) for label in report.models],
        rows=[(row.name, row.cells()) for row in rows],
        verdicts=[verdict_shares(one) for one in report.models.values()],
        first=first,
        shown_problems=SHOWN_PROBLEMS,
    )


@cache
def _template() -> Template:
    return page_template(PAGE)


CAPTIONS = {
    "passk": "Means over problems; bands are 95 % intervals over problems. pass@k is the unbiased estimate from all samples, maj@k the "
    "exact expectation over all choices of k of them, ties broken at random.",
    "solve_rates": "Problems that are never solved or always solved leave training nothing to learn from.",
    "difference": "Both models on the same problems, resampled together. Where the band leaves out 0, the models differ.",
    "efficiency": "How many times fewer samples one model needs for what the other reaches with K: 2 is half as many. A line on the lower "
    "edge means that it does not reach it with all its samples.",
}
