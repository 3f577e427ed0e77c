"""Text for pages and terminals: numbers as words, and text of models and data sets, which is hostile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.analysis.bootstrap import Curve, Estimate
from jobs.configuration.characters import spelled_out

NAME_LIMIT, TEXT_LIMIT, QUESTION_LIMIT = 80, 700, 1500
"""The most characters that a page shows of a name, of a response or an answer, and of a question."""
ROUGH_BELOW = 20
"""Intervals over fewer problems than this are rough."""


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return `value` with `digits` decimals; a dash for None."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def value(estimate: Estimate | None, digits: int = 2) -> str:
    """Return the number of `estimate` without its interval."""
    return number(None if estimate is None else estimate.value, digits)


def interval(estimate: Estimate | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return `0.43 (0.30 to 0.56)`; the number alone without an interval; a dash without a number."""
    if estimate is None or estimate.low is None:
        return number(None if estimate is None else estimate.value, digits, sign=sign)
    shown, low, high = (number(end, digits, sign=sign) for end in (estimate.value, estimate.low, estimate.high))
    return f"{shown} ({low} to {high})"


def interval_sentence(estimate: Estimate, digits: int = 2) -> str:
    """Return `1.80 (95 % interval 1.20 to 2.40)`, or the number alone."""
    return interval(estimate, digits).replace("(", "(95 % interval ")


def at(curve: Curve | None, k: int) -> Estimate | None:
    """Return the estimate of `curve` at `k`, or None where it has none."""
    return None if curve is None else curve.at(k)


def spread(ks: Sequence[int], num: int) -> list[int]:
    """Return at most `num` of `ks`, among them the first and the last."""
    places = sorted({round(place) for place in np.linspace(0, len(ks) - 1, num)}) if len(ks) > 1 else [0]
    return [ks[place] for place in places]


def count(num: int, noun: str) -> str:
    """Return `1 prompt` or `3 prompts`."""
    return f"{num} {noun}{'' if num == 1 else 's'}"


def notes_on_intervals(num: int, noun: str) -> list[str]:
    """Return what a reader must know about intervals over `num` prompts or problems."""
    if num == 1:
        return [f"One {noun} leaves no intervals: they are over {noun}s."]
    return [f"Intervals over {num} {noun}s are rough, and somewhat too short."] if num < ROUGH_BELOW else []


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted keys and text."""
    flat: dict[str, str] = {}
    for key, setting in settings.items():
        if isinstance(setting, Mapping):
            flat |= flattened(setting, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = visible_text(str(setting), TEXT_LIMIT)
    return flat


def visible_text(text: str, limit: int) -> str:
    """Return at most `limit` characters, with those that steer a screen spelled out; the templates escape HTML."""
    rest = len(text) - limit
    shown = spelled_out(text[:limit])
    return f"{shown} … ({rest} more characters)" if rest > 0 else shown


def one_line(text: str) -> str:
    """Return `text` without any character that could steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
