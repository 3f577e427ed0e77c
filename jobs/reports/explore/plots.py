"""The three figures of an exploration report, each with the numbers that it draws, or None without anything to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jobs.analysis.bootstrap import Curve
from jobs.analysis.candidate_table import FEATURED, RANDOM, label_of
from jobs.analysis.order_statistics import ExploreStatistics, Outcomes, random_first_correct
from jobs.analysis.pass_at_k import FloatArray
from jobs.reports.plots import FONT, Drawing, Style, draw_band, draw_line, draw_ratios, log2_k, numbers_of, png_of, room, whole

LARGEST_CIRCLE = 420.0

STYLES: Mapping[str, Style] = {
    "repexp": Style(color="#0b3c78", line="-", marker="o", width=2.6),
    "quality": Style(color="#d1495b", line=(0, (6, 2)), marker="s", width=2.6),
    RANDOM: Style(color="#6b6b6b", line=(0, (1.5, 1.5)), marker="", width=2.6),
    "likeliest": Style(color="#1b7f5c", line="-", marker="^"),
    "unlikeliest": Style(color="#1b7f5c", line="--", marker="v"),
    "longest": Style(color="#8a5a00", line="-.", marker="D"),
    "kmeans": Style(color="#7a3e9d", line="-", marker="x"),
    "determinantal": Style(color="#7a3e9d", line="--", marker="+"),
    "distinct_answers": Style(color="#222222", line=":", marker="*"),
    "answers_by_novelty": Style(color="#0b3c78", line=":", marker="o"),
    "answers_by_likelihood": Style(color="#1b7f5c", line=":", marker="^"),
    "answers_by_votes": Style(color="#b8860b", line=":", marker="P"),
}
OTHER_STYLES = tuple(Style(color="#555555", line=line, marker=marker) for line in ("-", "--", "-.") for marker in ("1", "2", "3", "4"))


def style_of(order: str) -> Style:
    """Return the style of a known order, or else one of twelve, chosen by the name."""
    return STYLES.get(order) or OTHER_STYLES[sum(order.encode()) % len(OTHER_STYLES)]


def pass_at_k_figure(statistics: ExploreStatistics) -> Drawing | None:
    """Draw pass@k over k for every order, with bands for novelty, quality and random choice; None for pools of one."""
    curves = {name: order.pass_at_k for name, order in statistics.orders.items() if order.pass_at_k is not None}
    curves |= {RANDOM: statistics.random_pass_at_k} if statistics.random_pass_at_k is not None else {}
    if not curves or max(curve.ks[-1] for curve in curves.values()) < 2:
        return None
    ranked = sorted(curves, key=lambda name: -_mean_height(curves[name], statistics.ks))
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.6, 5.4), layout="constrained")
        axes = figure.add_subplot()
        for name in (RANDOM, *FEATURED):
            draw_band(axes, curves.get(name), style_of(name))
        for name in sorted(ranked, key=lambda name: style_of(name).width):
            draw_line(axes, curves[name], style_of(name), label_of(name), statistics.ks)
        log2_k(axes, max(curve.ks[-1] for curve in curves.values()))
        axes.set_ylim(*room(curves.values()))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        axes.set_ylabel("pass@k")
        axes.set_xlabel("k, candidates verified")
        axes.set_title(f"Share of {statistics.num_prompts} prompts solved by the first k candidates", loc="left")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        labels = [label_of(name) for name in ranked]
        look: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False, "handlelength": 3.6}
        legend = axes.legend([handles[label] for label in labels], labels, title="best on average first", labelspacing=0.75, **look)
        legend.set_alignment("left")
        numbers = {"order_of_legend": ranked, "curves": {name: numbers_of(curves[name]) for name in ranked}}
        return Drawing(png=png_of(figure), numbers=numbers)


def first_correct_figure(outcomes: Outcomes) -> Drawing | None:
    """Draw verifications to the first correct answer, of an order against what random choice is expected to need. A
    point is a solvable prompt. Return None without one."""
    names = [name for name in FEATURED if name in outcomes.first_correct]
    if outcomes.num_correct_P is None or not names or not outcomes.solvable_P.any():
        return None
    solvable_P = outcomes.solvable_P
    random_S = random_first_correct(outcomes.num_candidates_P[solvable_P], outcomes.num_correct_P[solvable_P])
    numbers: dict[str, Any] = {}
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(0.6 + 4.7 * len(names), 5.0), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            order_S = outcomes.first_correct[name][solvable_P]
            numbers[name] = _scatter(axes, name, random_S, order_S, limit=outcomes.max_k)
        return Drawing(png=png_of(figure), numbers=numbers)


def efficiency_figure(statistics: ExploreStatistics) -> Drawing | None:
    """Draw random choice's verifications for the same pass@k, over k, for novelty and quality; None where unknown."""
    found = {name: statistics.orders[name].efficiency_at_k for name in FEATURED if name in statistics.orders}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if not curves or max(curve.ks[-1] for curve in curves.values()) < 2:
        return None
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(0.6 + 4.7 * len(curves), 4.4), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axes, (name, curve) in zip(panels, curves.items(), strict=True):
            log2_k(axes, max(curve.ks[-1] for curve in curves.values()))
            draw_ratios(axes, [(label_of(name), curve, style_of(name))], statistics.ks, scale=list(curves.values()))
            axes.set_title(label_of(name), loc="left")
            axes.set_xlabel("k, candidates verified")
        panels[0].set_ylabel("verifications by random choice\nfor the same pass rate, over k")
        return Drawing(png=png_of(figure), numbers={name: numbers_of(curve) for name, curve in curves.items()})


def _scatter(axes: Axes, name: str, random_S: FloatArray, order_S: FloatArray, *, limit: int) -> dict[str, Any]:
    """Draw equal points as one circle, whose area grows with their number."""
    points = Counter(zip(random_S.round(6).tolist(), order_S.tolist(), strict=True))
    saved, cost = int((order_S < random_S).sum()), int((order_S > random_S).sum())
    ends = (0.8, max(2.0, limit) * 1.25)
    axes.fill_between(ends, (ends[0], ends[0]), ends, color="#000000", alpha=0.045, linewidth=0)
    axes.plot(ends, ends, color="#222222", linewidth=1.0)
    x, y = zip(*points, strict=True)
    color, area = style_of(name).color, min(34.0, LARGEST_CIRCLE / max(points.values()))
    areas = [area * count for count in points.values()]
    axes.scatter(x, y, s=areas, facecolors=f"{color}40", edgecolors=color, linewidths=1.3, zorder=3)
    axes.set_aspect("equal")
    for set_scale, set_limit, axis in ((axes.set_xscale, axes.set_xlim, axes.xaxis), (axes.set_yscale, axes.set_ylim, axes.yaxis)):
        set_scale("log", base=2)
        set_limit(*ends)
        axis.set_major_formatter(FuncFormatter(whole))
    title = f"{saved} prompts below, {cost} above, {len(order_S) - saved - cost} on the diagonal"
    axes.set_title(f"{label_of(name)}\n{title}", loc="left")
    axes.set_xlabel("random choice, expected verifications")
    axes.set_ylabel(f"{name}, verifications to the first correct")
    return {"random_expected": random_S.tolist(), "order": order_S.astype(int).tolist(), "below": saved, "above": cost}


def _mean_height(curve: Curve, listed: Sequence[int]) -> float:
    values = [value for k, value in zip(curve.ks, curve.value, strict=True) if k in listed]
    return float(np.mean(values)) if values else 0.0
