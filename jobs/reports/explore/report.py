"""The report on a pools table: numbers, figures, a page to read, lines for the terminal.

    report = write_report(table, settings, Path("runs/explore"))
    print(*console_lines(report), sep="\\n")

writes report.json (every number that is shown), report.html (one file, opens anywhere), and for each figure a PNG and a
JSON with what it draws: passk, first_correct, efficiency. Nothing is shown that the table cannot tell: with verdicts on
some candidates only, or on none, the report says so and shows the rest."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.analysis.bootstrap import Curve, Estimate
from jobs.analysis.candidate_table import FEATURED, RANDOM, CandidatePool, candidate_pools
from jobs.analysis.order_statistics import JudgedPool, Outcomes, PoolStatistics, judge, novelty_worse_than_random, pool_statistics
from jobs.analysis.picks import Picks, picks_of_order
from jobs.reports.explore.examples import ExploreExample, choose_examples
from jobs.reports.explore.html import render_html
from jobs.reports.explore.plots import efficiency_figure, first_correct_figure, pass_at_k_figure
from jobs.reports.explore.summary import Overview, flattened, notes, overview, summary_sentences
from jobs.reports.page import json_bytes, one_line, write_figure, write_file

RANDOM_DRAW = "random_draw"
WIDTH = 100
CONSOLE_KS = 7


@dataclass(frozen=True, kw_only=True)
class ExploreReport:
    """All that a report shows."""

    summary: tuple[str, ...]
    warning: str | None
    notes: tuple[str, ...]
    overview: Overview
    statistics: PoolStatistics | None
    """None without verdicts."""
    picks: Mapping[str, Picks]
    """By order, random choice first."""
    examples: tuple[ExploreExample, ...]
    settings: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_report(table: pa.Table, settings: Mapping[str, Any], directory: Path, *, seed: int = 0) -> ExploreReport:
    """Write the report on `table` into `directory`, each file whole or not at all; figures of an earlier report that no
    longer apply go.

    `settings` are shown; their `select`, if any, are the k of the tables. `seed` is of the bootstrap. Raises ValueError
    where the table is empty or not one of pools (`candidate_pools`)."""
    pools = candidate_pools(table)
    if not pools:
        raise ValueError("the pools table is empty: there is nothing to report on")
    outcomes, judged = _outcomes(pools)
    report = _report(pools, outcomes, judged, settings, seed)
    statistics = report.statistics
    figures = {
        "passk": pass_at_k_figure(statistics) if statistics and statistics.num_solvable else None,
        "first_correct": first_correct_figure(outcomes) if outcomes else None,
        "efficiency": efficiency_figure(statistics) if statistics else None,
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, drawing in figures.items():
        write_figure(directory / name, drawing)
    record = report.to_json()
    drawn = {name: drawing for name, drawing in figures.items() if drawing is not None}
    write_file(directory / "report.json", json_bytes(record))
    write_file(directory / "report.html", render_html(record, drawn).encode())
    return report


def console_lines(report: ExploreReport) -> list[str]:
    """The summary and a table of orders, plain text of at most 100 columns."""
    lines: list[str] = []
    for paragraph in (*report.summary, *([f"WARNING: {report.warning}"] if report.warning else []), *report.notes):
        lines += textwrap.wrap(one_line(paragraph), WIDTH, subsequent_indent="  ")
    return lines + (["", *_order_lines(report.statistics)] if report.statistics else [])


def _report(
    pools: Sequence[CandidatePool], outcomes: Outcomes | None, judged: Sequence[CandidatePool], settings: Mapping[str, Any], seed: int
) -> ExploreReport:
    ks = settings.get("select")
    statistics = pool_statistics(outcomes, ks=ks, seed=seed) if outcomes else None
    view, flat = overview(pools), flattened(settings)
    orders = tuple(pools[0].ranks)
    example_order = next((order for order in (*FEATURED, *orders) if order in orders), None)
    shown = judged if view.coverage == "all" else pools
    return ExploreReport(
        summary=summary_sentences(view, statistics, flat),
        warning=novelty_worse_than_random(outcomes, ks=ks, seed=seed) if outcomes else None,
        notes=notes(view, statistics, orders),
        overview=view,
        statistics=statistics,
        picks={RANDOM: picks_of_order(pools, None)} | {order: picks_of_order(pools, order) for order in orders if order != RANDOM},
        examples=choose_examples(shown, outcomes, example_order) if example_order else (),
        settings=flat,
    )


def _outcomes(pools: Sequence[CandidatePool]) -> tuple[Outcomes | None, list[CandidatePool]]:
    """Outcomes of the pools that have verdicts, and those pools. The drawn random order gives way to the exact one
    where that is known."""
    judged = [pool for pool in pools if pool.verified_N.any()]
    if not judged:
        return None, []
    complete = all(pool.verified_N.all() for pool in judged)
    return judge([_without_drawn_order(pool.judged(), complete) for pool in judged]), judged


def _without_drawn_order(pool: JudgedPool, complete: bool) -> JudgedPool:
    named = {RANDOM_DRAW if order == RANDOM else order: rank_N for order, rank_N in pool.ranks.items()}
    kept = {order: rank_N for order, rank_N in named.items() if not (complete and order == RANDOM_DRAW)}
    return JudgedPool(verified_N=pool.verified_N, correct_N=pool.correct_N, ranks=kept)


def _order_lines(statistics: PoolStatistics) -> list[str]:
    """A row an order: pass@k, mean verifications to the first correct answer, efficiency with its interval."""
    chosen = sorted({round(place) for place in np.linspace(0, len(statistics.ks) - 1, CONSOLE_KS)})
    ks = [statistics.ks[place] for place in chosen]
    lines = [f"{'pass@k, k =':<17}" + "".join(f"{k:>6}" for k in ks) + f"{'to first':>10}  efficiency (95 %)"]
    rows: list[tuple[str, Curve | None, Estimate | None, Estimate | None]] = []
    rows += [(RANDOM, statistics.random_pass_at_k, statistics.random_first_correct, None)] if statistics.random_pass_at_k else []
    rows += [(name, order.pass_at_k, order.first_correct, order.efficiency) for name, order in statistics.orders.items()]
    for name, curve, first, efficiency in rows:
        found = [curve.at(k) if curve else None for k in ks]
        cells = "".join(f"{'-':>6}" if estimate is None else f"{estimate.value:>6.2f}" for estimate in found)
        ratio = "" if efficiency is None else f"{efficiency.value:.2f}"
        if efficiency is not None and efficiency.low is not None:
            ratio += f" ({efficiency.low:.2f} to {efficiency.high:.2f})"
        lines.append(f"{one_line(name)[:16]:<17}{cells}{'-' if first is None else f'{first.value:.1f}':>10}  {ratio}".rstrip())
    return lines
