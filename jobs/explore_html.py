"""The page of a pool report: one file, no scripts, no links, images inside.

Text of models and data sets is hostile. The template escapes everything (nothing is marked safe), and a content security policy allows
inline styles and embedded images alone.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from jobs.candidate_pools import FEATURED, RANDOM, label_of
from jobs.explore_examples import EXAMPLES_OF_A_KIND, FIRST, HELPED, HURT
from jobs.explore_template import PAGE, STYLE
from jobs.pool_picks import FIRST_PICKS

KINDS = {
    HELPED: "Where it saved most verifications",
    HURT: "Where it cost most verifications",
    FIRST: "The first prompts of the table",
}


def render_html(record: Mapping[str, Any], pngs: Mapping[str, bytes]) -> str:
    """The page of a report: `record` is its `to_json`, `pngs` its figures by name."""
    return _template().render(
        report=record,
        images={name: b64encode(png).decode() for name, png in pngs.items()},
        featured=FEATURED,
        random=RANDOM,
        kinds=KINDS,
        examples_of_a_kind=EXAMPLES_OF_A_KIND,
        first_picks=FIRST_PICKS,
        at=at,
        captions=CAPTIONS,
        style=STYLE,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval, "value": value, "label": label_of}
    return environment.from_string(PAGE)


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def interval(estimate: Mapping[str, float | None] | None, digits: int = 2, *, sign: bool = False) -> str:
    """`0.43 (0.30 to 0.56)`; the number alone without an interval, a dash without a number."""
    if estimate is None:
        return "–"
    value, low, high = (number(estimate[key], digits, sign=sign) for key in ("value", "low", "high"))
    return value if estimate["low"] is None else f"{value} ({low} to {high})"


def value(estimate: Mapping[str, float | None] | None, digits: int = 2) -> str:
    return number(None if estimate is None else estimate["value"], digits)


def at(curve: Mapping[str, Any] | None, k: int) -> dict[str, float | None] | None:
    """The estimate of a curve at k; None where it has none."""
    if curve is None or k not in curve["ks"]:
        return None
    place = curve["ks"].index(k)
    return {key: curve[key][place] if curve[key] is not None else None for key in ("value", "low", "high")}


CAPTIONS = {
    "passk": "Share of prompts for which the first k candidates of an order hold a correct one. Bands are 95 % intervals over prompts. "
    "Random choice is exact, not drawn. All orders end together: the whole pool is then verified.",
    "first_correct": "A circle is a prompt that has a correct candidate, a larger one several that coincide. In the shaded half the order "
    "needs fewer verifications than random choice is expected to need.",
    "efficiency": "How many candidates random choice must verify to solve as many prompts as the first k of the order, divided by k. Above "
    "1 the order saves verifications; 0 (nothing found yet) stands on the lower edge. The line ends where the order has solved every "
    "solvable prompt; near that end a few hard prompts decide, and intervals are too short.",
}
