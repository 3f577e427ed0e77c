"""The figures of an evaluation, each with the numbers that it draws, or None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.analysis.bootstrap import Curve
from jobs.analysis.comparison import Comparison
from jobs.analysis.evaluation import ModelStatistics
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.reports.plots import FONT, Drawing, draw_band, draw_line, draw_ratios, grid, k_axis, legend, numbers_of, png_of, room, style_of

HATCHES = ("", "//", "..", "xx", "\\\\", "++")
SOLVE_RATE_EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
SOLVE_RATE_NAMES = ("none", "to 10 %", "to 30 %", "to 50 %", "to 70 %", "to 90 %", "below all", "all")


def pass_at_k_figure(models: Mapping[str, ModelStatistics]) -> Drawing | None:
    """Draw pass@k and maj@k of every model against k, with bands."""
    panels = {
        "pass@k": {label: report.pass_at_k for label, report in models.items() if report.pass_at_k is not None},
        "maj@k": {label: report.majority_at_k for label, report in models.items() if report.majority_at_k is not None},
    }
    if not panels["pass@k"]:
        return None
    places = {label: place for place, label in enumerate(models)}
    listed = next(iter(models.values())).ks
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(10.4, 4.6), layout="constrained")
        for axes, (name, curves) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for label, curve in curves.items():
                draw_band(axes, curve, style_of(places[label]))
            for label, curve in curves.items():
                draw_line(axes, curve, style_of(places[label]), label, listed)
            k_axis(axes, list(curves.values()))
            axes.set_ylim(*room(curves.values()))
            axes.set_ylabel(name)
            axes.set_title({"pass@k": "Any of k responses is right", "maj@k": "Majority vote of k responses is right"}[name], loc="left")
        legend(figure)
        numbers = {name: {label: numbers_of(curve) for label, curve in curves.items()} for name, curves in panels.items()}
        return Drawing(png=png_of(figure), numbers=numbers)


def solve_rates_figure(outcomes: Mapping[str, ProblemOutcomes]) -> Drawing | None:
    """Draw how many problems have which share of correct responses: a group of bars for each class of shares."""
    counts = {label: solve_rate_counts(one) for label, one in outcomes.items() if one.scored_P.any()}
    if not counts:
        return None
    places = {label: place for place, label in enumerate(outcomes)}
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / len(counts)
        for number, (label, count_C) in enumerate(counts.items()):
            x_C = np.arange(len(count_C)) - 0.4 + (number + 0.5) * width
            style, hatch = style_of(places[label]), HATCHES[places[label] % len(HATCHES)]
            axes.bar(x_C, count_C, width * 0.92, color=f"{style.color}b0", edgecolor=style.color, hatch=hatch, label=label)
        axes.set_xticks(np.arange(len(SOLVE_RATE_NAMES)), SOLVE_RATE_NAMES)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(True, axis="y", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("problems")
        axes.set_xlabel("share of a problem's responses that are right")
        axes.set_title("Problems by how often they are solved", loc="left")
        legend(figure)
        numbers = {"classes": list(SOLVE_RATE_NAMES), "problems": {label: c.tolist() for label, c in counts.items()}}
        return Drawing(png=png_of(figure), numbers=numbers)


def solve_rate_counts(outcomes: ProblemOutcomes) -> np.ndarray:
    """Return (8,): the number of problems with a correct share of 0, in (0, 0.1], (0.1, 0.3] … (0.9, 1), and of 1."""
    n_S, c_S = outcomes.num_scored_P[outcomes.scored_P], outcomes.num_correct_P[outcomes.scored_P]
    some_S = (c_S > 0) & (c_S < n_S)
    inner = np.histogram(-(c_S / n_S)[some_S], bins=-np.array(SOLVE_RATE_EDGES[::-1]))[0][::-1]  # classes hold their upper end
    return np.array([(c_S == 0).sum(), *inner, (c_S == n_S).sum()])


def difference_figure(comparisons: Sequence[Comparison]) -> Drawing | None:
    """Draw pass@k of one model less that of the other, one panel for each pair."""
    if not comparisons:
        return None
    with matplotlib.rc_context(FONT):
        figure, panels = grid(len(comparisons), height=3.9)
        for axes, comparison in zip(panels, comparisons, strict=True):
            style = style_of(0)
            k_axis(axes, [comparison.difference])
            axes.axhline(0.0, color="#222222", linewidth=1.2)
            draw_band(axes, comparison.difference, style)
            draw_line(axes, comparison.difference, style, "", comparison.ks)
            axes.set_title(f"{comparison.model}\nless {comparison.against}", loc="left")
            axes.set_ylabel("difference in pass@k")
        return Drawing(png=png_of(figure), numbers={_pair(c): numbers_of(c.difference) for c in comparisons})


def efficiency_figure(comparisons: Sequence[Comparison]) -> Drawing | None:
    """Draw K over the samples needed for the other's pass@K: a panel for each pair, a line for each direction."""
    known = [comparison for comparison in comparisons if comparison.ks[-1] > 1 and _directions(comparison)]
    if not known:
        return None
    numbers: dict[str, Any] = {}
    with matplotlib.rc_context(FONT):
        figure, panels = grid(len(known), height=5.2)
        for axes, comparison in zip(panels, known, strict=True):
            curves = _directions(comparison)
            k_axis(axes, list(curves.values()), "K")
            lines = [(label, curve, style_of(place)) for place, (label, curve) in enumerate(curves.items())]
            draw_ratios(axes, lines, comparison.ks, scale=list(curves.values()))
            axes.set_ylabel("K over the samples needed")
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), frameon=False, handlelength=3.2)
            numbers[_pair(comparison)] = {label: numbers_of(curve) for label, curve in curves.items()}
        return Drawing(png=png_of(figure), numbers=numbers)


def _directions(comparison: Comparison) -> dict[str, Curve]:
    curves = {
        f"{comparison.model}, for pass@K of {comparison.against}": comparison.efficiency,
        f"{comparison.against}, for pass@K of {comparison.model}": comparison.reverse_efficiency,
    }
    return {label: curve for label, curve in curves.items() if curve is not None}


def _pair(comparison: Comparison) -> str:
    return f"{comparison.model} / {comparison.against}"
