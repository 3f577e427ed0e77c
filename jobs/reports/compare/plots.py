"""The figures of a comparison, each with the numbers that it draws, or None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.analysis.bootstrap import Curve, Estimate
from jobs.analysis.methods import MethodDifference, MethodStatistics
from jobs.analysis.trained import TRAINING_METRICS, TrainedRun, mean_over_seeds
from jobs.reports.plots import FONT, Drawing, Style, draw_band, draw_line, grid, k_axis, legend, numbers_of, png_of, room, style_of

BASE_STYLE = Style(color="#8c9096", line="-", marker="x", width=1.6)
FEW_LINES = 4
"""Up to this many lines have bands in one panel."""
PANEL_TITLES = {
    "reward/pass@1": "Share of right responses",
    "policy/entropy": "Entropy, nats",
    "response/tokens_mean": "Tokens of a response",
}

Statistics = Mapping[str, Sequence[MethodStatistics]]
"""By method, the base model among them: its statistics by increasing step."""


def style_by_method(methods: Sequence[str], base: str) -> dict[str, Style]:
    """Return the style of every method, the same in all figures."""
    return {base: BASE_STYLE} | {name: style_of(place) for place, name in enumerate(name for name in methods if name != base)}


def overview_figure(last: Mapping[str, MethodStatistics], styles: Mapping[str, Style]) -> Drawing | None:
    """Draw pass@k of all methods against k."""
    if not last:
        return None
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(8.4, 5.4 + 0.2 * (len(last) // 3)), layout="constrained")
        axes = figure.add_subplot()
        _draw_passk(axes, last, styles, bands=len(last) <= FEW_LINES)
        axes.set_title("Any of k responses is right", loc="left")
        legend(figure)
        return Drawing(png=png_of(figure), numbers={name: numbers_of(one.pass_at_k) for name, one in last.items()})


def passk_figure(last: Mapping[str, MethodStatistics], base: str, baseline: str) -> Drawing | None:
    """Draw pass@k of each method beside that of the baseline and the base model, with bands: a panel for each."""
    methods = [name for name in last if name not in (base, baseline)]
    if not methods:
        return None
    with matplotlib.rc_context(FONT):
        figure, panels = grid(len(methods), height=3.9)
        for axes, method in zip(panels, methods, strict=True):
            shown = {name: last[name] for name in (base, baseline, method) if name in last}
            styles = {base: BASE_STYLE, baseline: style_of(0), method: style_of(1)}
            _draw_passk(axes, shown, styles, bands=True)
            axes.legend(loc="lower right", frameon=False, handlelength=2.8)
            axes.set_title(method, loc="left")
        return Drawing(png=png_of(figure), numbers={name: numbers_of(last[name].pass_at_k) for name in last})


def difference_figure(differences: Sequence[MethodDifference], styles: Mapping[str, Style]) -> Drawing | None:
    """Draw the tested differences to the baseline with their intervals: a panel for each test, a line for each method.
    A filled marker stands for a difference that survives the correction."""
    if not differences:
        return None
    tests = list(differences[0].tests)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.4 * len(tests), 1.5 + 0.42 * len(differences)), layout="constrained")
        panels = figure.subplots(1, len(tests), sharey=True, squeeze=False).flatten()
        for axes, name in zip(panels, tests, strict=True):
            axes.axvline(0.0, color="#222222", linewidth=1.2)
            for place, one in enumerate(differences):
                _draw_interval(axes, place, one.tests[name].difference, styles[one.method], filled=one.tests[name].survives)
            axes.set_yticks(range(len(differences)), [one.method for one in differences])
            axes.set_ylim(len(differences) - 0.5, -0.5)
            axes.set_title(f"{name}, less {differences[0].against}", loc="left")
            _plain(axes)
        numbers = {name: {one.method: _numbers(one.tests[name].difference) for one in differences} for name in tests}
        return Drawing(png=png_of(figure), numbers=numbers)


def learning_figure(statistics: Statistics, styles: Mapping[str, Style], base: str, ks: Sequence[int]) -> Drawing | None:
    """Draw pass@k against the step, for the first and the last of `ks`. All methods begin at the base model."""
    trained = [name for name in statistics if name != base]
    if not trained:
        return None
    panels = {f"pass@{k}": {name: _by_step(statistics, name, base, k) for name in trained} for k in dict.fromkeys((ks[0], ks[-1]))}
    with matplotlib.rc_context(FONT):
        figure, axes_of = grid(len(panels), height=4.6 + 0.2 * (len(trained) // 3))
        for axes, (title, curves) in zip(axes_of, panels.items(), strict=True):
            for name, curve in curves.items():
                draw_band(axes, curve if len(trained) < FEW_LINES else None, styles[name])
                draw_line(axes, curve, styles[name], name, curve.ks)
            axes.set_ylim(*room(curves.values()))
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
            axes.set_xticks(sorted({step for curve in curves.values() for step in curve.ks}))
            _plain(axes)
        legend(figure)
        numbers = {title: {name: numbers_of(curve) for name, curve in curves.items()} for title, curves in panels.items()}
        return Drawing(png=png_of(figure), numbers=numbers)


def training_figure(runs: Sequence[TrainedRun], styles: Mapping[str, Style]) -> Drawing | None:
    """Draw what the runs logged at every step: means over seeds."""
    methods = list(dict.fromkeys(run.method for run in runs))
    if not methods:
        return None
    curves = {
        metric: {one: mean_over_seeds([run for run in runs if run.method == one], metric) for one in methods} for metric in TRAINING_METRICS
    }
    with matplotlib.rc_context(FONT):
        figure, axes_of = grid(len(curves), height=3.9 + 0.2 * (len(methods) // 3))
        for axes, (metric, lines) in zip(axes_of, curves.items(), strict=True):
            for name, values in lines.items():
                style, known = styles[name], [float("nan") if value is None else value for value in values]
                axes.plot(range(1, len(known) + 1), known, color=style.color, linestyle=style.line, linewidth=1.4, label=name)
            axes.set_title(PANEL_TITLES[metric], loc="left")
            axes.set_xlabel("step")
            _plain(axes)
        legend(figure)
        return Drawing(png=png_of(figure), numbers=curves)


def _draw_passk(axes: Axes, shown: Mapping[str, MethodStatistics], styles: Mapping[str, Style], *, bands: bool) -> None:
    curves = {name: one.pass_at_k for name, one in shown.items()}
    for name, curve in curves.items():
        draw_band(axes, curve if bands else None, styles[name])
    for name, curve in curves.items():
        draw_line(axes, curve, styles[name], name, shown[name].ks)
    k_axis(axes, list(curves.values()))
    axes.set_ylim(*room(curves.values()))
    axes.set_ylabel("pass@k")


def _by_step(statistics: Statistics, name: str, base: str, k: int) -> Curve:
    """Return pass@k by step, in the form of a curve whose ks are the steps."""
    points = [(one.step, one.pass_at_k.at(k)) for one in (*statistics.get(base, ()), *statistics[name])]
    known = [(step, point) for step, point in points if point is not None]
    ends = [[getattr(point, end) for _, point in known] for end in ("low", "high")]
    low, high = (None if None in end else tuple(end) for end in ends)
    return Curve(ks=tuple(step for step, _ in known), value=tuple(point.value for _, point in known), low=low, high=high)


def _draw_interval(axes: Axes, place: int, one: Estimate, style: Style, *, filled: bool) -> None:
    if one.low is not None and one.high is not None:
        axes.plot([one.low, one.high], [place, place], color=style.color, linewidth=2.2, solid_capstyle="butt")
    face = style.color if filled else "white"
    axes.plot([one.value], [place], marker="o", markersize=7.5, color=style.color, markerfacecolor=face, markeredgewidth=1.8, zorder=5)


def _plain(axes: Axes) -> None:
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _numbers(one: Estimate) -> dict[str, Any]:
    return {"value": one.value, "low": one.low, "high": one.high}
