"""The page of a pool report: see `jobs.reports.page`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Template

from jobs.analysis.candidate_table import FEATURED, RANDOM, label_of
from jobs.analysis.picks import FIRST_PICKS
from jobs.reports.explore.examples import EXAMPLES_OF_A_KIND, FIRST, HELPED, HURT
from jobs.reports.explore.template import PAGE
from jobs.reports.page import page_template, render_page
from jobs.reports.plots import Drawing

KINDS = {
    HELPED: "Where it saved most verifications",
    HURT: "Where it cost most verifications",
    FIRST: "The first prompts of the table",
}


def render_html(record: Mapping[str, Any], figures: Mapping[str, Drawing]) -> str:
    """The page of a report: `record` is its `to_json`, `figures` by name."""
    return render_page(
        _template(),
        figures,
        title="Exploration report",
        report=record,
        featured=FEATURED,
        random=RANDOM,
        kinds=KINDS,
        examples_of_a_kind=EXAMPLES_OF_A_KIND,
        first_picks=FIRST_PICKS,
        captions=CAPTIONS,
    )


@cache
def _template() -> Template:
    return page_template(PAGE, label=label_of)


CAPTIONS = {
    "passk": "Share of prompts for which the first k candidates of an order hold a correct one. Bands are 95 % intervals over prompts. "
    "Random choice is exact, not drawn. All orders end together: the whole pool is then verified.",
    "first_correct": "A circle is a prompt that has a correct candidate, a larger one several that coincide. In the shaded half the order "
    "needs fewer verifications than random choice is expected to need.",
    "efficiency": "How many candidates random choice must verify to solve as many prompts as the first k of the order, divided by k. Above "
    "1 the order saves verifications; 0 (nothing found yet) stands on the lower edge. The line ends where the order has solved every "
    "solvable prompt; near that end a few hard prompts decide, and intervals are too short.",
}
