"""What all figures share: curves with bands over k on a doubling axis. A figure can be read in grey: its lines differ
in style and marker too."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from jobs.analysis.bootstrap import Curve

DPI = 150
LOWEST_RATIO = 1 / 16
COLUMNS = 3
"""The most panels beside each other."""
FONT: dict[Any, Any] = {
    **{"text.parse_math": False, "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11},
    **{"legend.fontsize": 10, "xtick.labelsize": 10, "ytick.labelsize": 10},
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a line looks."""

    color: str
    line: Any
    marker: str
    width: float = 1.1


STYLES = (
    Style(color="#0b3c78", line="-", marker="o", width=2.2),
    Style(color="#d1495b", line=(0, (6, 2)), marker="s", width=2.2),
    Style(color="#1b7f5c", line="-.", marker="^", width=2.2),
    Style(color="#8a5a00", line=(0, (1.5, 1.5)), marker="D", width=2.2),
    Style(color="#7a3e9d", line=(0, (4, 1, 1, 1, 1, 1)), marker="v", width=2.2),
    Style(color="#222222", line=(0, (8, 2, 2, 2)), marker="x", width=2.2),
)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure and the numbers that it draws."""

    png: bytes
    numbers: dict[str, Any]


def style_of(place: int) -> Style:
    """Return the style of a line by its place: six colors, each with another line and marker in every round of six."""
    again = place // len(STYLES)
    color, line, marker = (STYLES[(place + shift * again) % len(STYLES)] for shift in (0, 1, 2))
    return Style(color=color.color, line=line.line, marker=marker.marker, width=color.width)


def draw_line(axes: Axes, curve: Curve, style: Style, label: str, listed: Sequence[int]) -> None:
    """Draw `curve`, with markers at the `listed` k, whose numbers the tables have."""
    marked = [place for place, k in enumerate(curve.ks) if k in listed or len(curve.ks) == 1]
    line: dict[str, Any] = {"color": style.color, "linestyle": style.line, "linewidth": style.width, "label": label}
    face = "white" if style.marker in "^vD" else style.color
    marker: dict[str, Any] = {"marker": style.marker, "markevery": marked, "markersize": 6.5, "markerfacecolor": face}
    axes.plot(curve.ks, curve.value, **line, **marker, clip_on=False, zorder=2 + style.width)


def draw_band(axes: Axes, curve: Curve | None, style: Style) -> None:
    """Fill the interval of `curve`, where it has one."""
    if curve is not None and curve.low is not None and curve.high is not None:
        axes.fill_between(curve.ks, curve.low, curve.high, color=style.color, alpha=0.16, linewidth=0)
        for end in (curve.low, curve.high):
            axes.plot(curve.ks, end, color=style.color, linestyle=style.line, linewidth=0.6, alpha=0.7)


def log2_k(axes: Axes, max_k: int) -> None:
    """Make the horizontal axis one of k, doubling from 1 to `max_k`."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.93, max_k * 1.08)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(whole))
    axes.xaxis.minorticks_off()
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def grid(num: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `num` panels, each `height` inches high."""
    columns, rows = min(num, COLUMNS), -(-num // COLUMNS)
    figure = Figure(figsize=(0.6 + max(4.7 * columns, 6.4), height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in panels[num:]:
        unused.set_visible(False)
    return figure, panels[:num]


def k_axis(axes: Axes, curves: Sequence[Curve], name: str = "k") -> None:
    """Make the horizontal axis one of k that holds `curves`."""
    log2_k(axes, max([curve.ks[-1] for curve in curves], default=1))
    axes.set_xlabel(f"{name}, responses")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def legend(figure: Figure) -> None:
    """Explain the lines of all panels below them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False, handlelength=3.6)


def whole(value: float, _: int | None) -> str:
    """Format a tick."""
    return f"{value:g}"


def room(curves: Iterable[Curve]) -> tuple[float, float]:
    """Return the ends of a vertical axis that holds `curves` from 0 on."""
    highest = max(max(curve.high or curve.value) for curve in curves)
    return -0.02 * max(highest, 0.05), 1.06 * max(highest, 0.05)


def log2_ratio(axes: Axes, curves: Sequence[Curve]) -> None:
    """Make the vertical axis one of ratios around 1. A ratio below 1/16, 0 above all, stands on its lower edge."""
    values = np.concatenate([np.concatenate([c.value, c.low or c.value, c.high or c.value]) for c in curves])
    smallest = max(LOWEST_RATIO, values.min())
    axes.set_yscale("log", base=2)
    axes.set_ylim(2.0 ** (np.floor(np.log2(min(0.5, smallest)))), 2.0 ** (np.log2(max(2.0, values.max())) + 0.15))
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(_fraction))
    axes.yaxis.minorticks_off()


def _fraction(value: float, _: int | None) -> str:
    if value >= 1:
        return f"{value:g}"
    return f"{'≤ ' if value <= LOWEST_RATIO else ''}1/{1 / value:g}"


def draw_ratios(axes: Axes, lines: Sequence[tuple[str, Curve, Style]], listed: Sequence[int], *, scale: Sequence[Curve]) -> None:
    """Draw curves of ratios with their bands and a line at 1, on an axis that holds all of `scale`."""
    log2_ratio(axes, scale)
    axes.axhline(1.0, color="#222222", linewidth=1.2)
    for label, curve, style in lines:
        drawn = raised(curve, axes.get_ylim()[0])
        draw_band(axes, drawn, style)
        draw_line(axes, drawn, style, label, listed)


def raised(curve: Curve, floor: float) -> Curve:
    """Return `curve` with values below `floor`, which a logarithmic axis cannot show, raised to it."""
    ends = {name: tuple(max(floor, v) for v in values) for name in ("value", "low", "high") if (values := getattr(curve, name))}
    return replace(curve, **ends)


def numbers_of(curve: Curve) -> dict[str, Any]:
    """Return the numbers of `curve` for the JSON beside a figure."""
    return {"ks": curve.ks, "value": curve.value, "low": curve.low, "high": curve.high}


def png_of(figure: Figure) -> bytes:
    """Return `figure` as a PNG, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
