"""The report on a table of candidates. Its figures are passk, first_correct and efficiency. The report shows what the
table can tell: with verdicts on some candidates only, or on none, it says so and shows the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.analysis.candidate_table import FEATURED, RANDOM, Candidates, candidates_by_problem, label_of
from jobs.analysis.order_statistics import ExploreStatistics, Outcomes, explore_statistics, judge, novelty_worse_than_random
from jobs.analysis.picks import FIRST_PICKS, Picks, picks_of_order
from jobs.analysis.recommended_order import recommend
from jobs.reports.explore.examples import EXAMPLES_OF_A_KIND, KINDS, ExploreExample, choose_examples
from jobs.reports.explore.plots import efficiency_figure, first_correct_figure, pass_at_k_figure
from jobs.reports.explore.summary import Overview, notes, overview, summary_sentences
from jobs.reports.report import Report, TextTable
from jobs.reports.text import at, flattened, interval, spread, value

RANDOM_DRAW = "random_draw"
CONSOLE_KS, CONSOLE_NAME = 5, 16
CAPTIONS = {
    "passk": "Share of prompts for which the first k candidates of an order hold a correct one. Bands are 95 % intervals over prompts. "
    "Random choice is exact, not drawn. All orders end together: the whole pool is then verified.",
    "first_correct": "A circle is a prompt that has a correct candidate, a larger one several that coincide. In the shaded half the order "
    "needs fewer verifications than random choice is expected to need.",
    "efficiency": "How many candidates random choice must verify to solve as many prompts as the first k of the order, divided by k. Above "
    "1 the order saves verifications; 0 (nothing found yet) stands on the lower edge. The line ends where the order has solved every "
    "solvable prompt; near that end a few hard prompts decide, and intervals are too short.",
}


@dataclass(frozen=True, kw_only=True)
class ExploreReport(Report):
    """What the orders of the candidates are worth."""

    template = "explore/page.html.jinja"
    title = "Exploration report"
    captions = CAPTIONS

    warning: str | None
    overview: Overview
    statistics: ExploreStatistics | None
    """None without verdicts."""
    picks: Mapping[str, Picks]
    """By order, random choice first."""
    examples: tuple[ExploreExample, ...]

    def page_values(self) -> dict[str, Any]:
        """Return the tables of orders and what the page says of its examples."""
        return {
            "orders": None if self.statistics is None else order_table(self.statistics, self.statistics.ks, label_of),
            "featured": FEATURED,
            "label": label_of,
            "kinds": KINDS,
            "examples_of_a_kind": EXAMPLES_OF_A_KIND,
            "first_picks": FIRST_PICKS,
        }

    def table(self) -> TextTable | None:
        """Return one row for each order, under names that fit a terminal."""
        if self.statistics is None:
            return None
        return order_table(self.statistics, spread(self.statistics.ks, CONSOLE_KS), lambda name: name[:CONSOLE_NAME], heading="{}")

    def sentences(self) -> tuple[str, ...]:
        """Return the summary, the warning and the notes."""
        return (*self.summary, *(() if self.warning is None else (f"WARNING: {self.warning}",)), *self.notes)


def order_table(statistics: ExploreStatistics, ks: Sequence[int], name_of: Callable[[str], str], *, heading: str = "k = {}") -> TextTable:
    """Return pass@k, verifications to the first correct answer and efficiency of every order, random choice first."""
    rows: list[tuple[str, ...]] = []
    if statistics.random_pass_at_k is not None:
        cells = (value(at(statistics.random_pass_at_k, k)) for k in ks)
        rows.append((name_of(RANDOM), *cells, value(statistics.random_first_correct, 1), "1"))
    for name, order in statistics.orders.items():
        cells = (value(at(order.pass_at_k, k)) for k in ks)
        rows.append((name_of(name), *cells, value(order.first_correct, 1), interval(order.efficiency)))
    headings = ("pass@k", *(heading.format(k) for k in ks), "to first correct", "efficiency (95 % interval)")
    return TextTable(headings=headings, rows=rows)


def write_report(table: pa.Table, settings: Mapping[str, Any], directory: Path, *, seed: int = 0) -> ExploreReport:
    """Write the report on `table`. The page shows `settings`, whose `select` are the k of the tables; `seed` is the
    bootstrap's. Raises ValueError where the table is empty or lacks what `candidates_by_problem` needs."""
    problems = candidates_by_problem(table)
    if not problems:
        raise ValueError("the pools table is empty: there is nothing to report on")
    outcomes, judged = _outcomes(problems)
    ks = settings.get("select")
    statistics = explore_statistics(outcomes, ks=ks, seed=seed) if outcomes else None
    view, flat = overview(problems), flattened(settings)
    orders = tuple(problems[0].ranks)
    example_order = next((order for order in (*FEATURED, *orders) if order in orders), None)
    shown = judged if view.coverage == "all" else problems
    report = ExploreReport(
        summary=summary_sentences(view, statistics, recommend(outcomes, seed=seed) if outcomes else None, flat),
        warning=novelty_worse_than_random(outcomes, ks=ks, seed=seed) if outcomes else None,
        notes=notes(view, statistics, orders),
        overview=view,
        statistics=statistics,
        picks={RANDOM: picks_of_order(problems, None)} | {order: picks_of_order(problems, order) for order in orders if order != RANDOM},
        examples=choose_examples(shown, outcomes, example_order) if example_order else (),
        settings=flat,
    )
    figures = {
        "passk": pass_at_k_figure(statistics) if statistics and statistics.num_solvable else None,
        "first_correct": first_correct_figure(outcomes) if outcomes else None,
        "efficiency": efficiency_figure(statistics) if statistics else None,
    }
    report.write(directory, figures)
    return report


def _outcomes(problems: Sequence[Candidates]) -> tuple[Outcomes | None, list[Candidates]]:
    """Return the problems that have verdicts and their outcomes. Where all verdicts are known, random choice is exact
    and the random order that was drawn is left out."""
    judged = [candidates for candidates in problems if candidates.verified_N.any()]
    if not judged:
        return None, []
    left_out = (RANDOM, RANDOM_DRAW) if all(candidates.verified_N.all() for candidates in judged) else ()
    found = []
    for candidates in judged:
        ranks = {RANDOM_DRAW if name == RANDOM else name: rank_N for name, rank_N in candidates.ranks.items() if name not in left_out}
        found.append(replace(candidates.judged(), ranks=ranks))
    return judge(found), judged
