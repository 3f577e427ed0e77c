"""What reports have in common: a page that is one file, figures beside their numbers, files that are whole.

    template = page_template(PAGE)                 # once; everything is escaped
    write_file(directory / "report.html", render_page(template, figures, report=record, captions=CAPTIONS).encode())
    write_figure(directory / "passk", drawing)     # passk.png and passk.json, or neither

Text of models and data sets is hostile. The template escapes everything (nothing is marked safe), and a content
security policy allows inline styles and embedded images alone."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from jobs.directory.atomic import replacing
from jobs.reports.plots import Drawing

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1e21; --soft: #5b6169; --line: #d8dce0; --paper: #ffffff; --card: #f6f7f8; --warn: #9a3b00; --good: #14663f;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a4abb3; --line: #3a4047; --paper: #16181b; --card: #1f2226; --warn: #ffb27a; --good: #7fd6a7; }
}
body {
  margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; }
h3 { font-size: 1rem; margin-top: 1.6rem; }
p, li { max-width: 52rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.warning { border-left: .3rem solid var(--warn); padding: .4rem .8rem; background: var(--card); }
.warning strong { color: var(--warn); }
.correct { color: var(--good); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.settings td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
details { border: 1px solid var(--line); border-radius: 4px; margin: .6rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
.pick { border-top: 1px solid var(--line); margin-top: .8rem; padding-top: .6rem; }
.pick p { margin: .2rem 0; overflow-wrap: anywhere; }
pre {
  background: var(--card); padding: .6rem .8rem; margin: .3rem 0; border-radius: 4px; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto; unicode-bidi: isolate;
}
"""

HEAD = """\
{% macro figure(name, alternative) %}
{% if name in images %}
<figure>
<img src="data:image/png;base64,{{ images[name] }}" alt="{{ alternative }}">
<figcaption>{{ captions[name] }}</figcaption>
</figure>
{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
"""
"""Precedes every page, and gives it the macro `figure`."""


# ---- the page ----


def page_template(page: str, **filters: Callable[..., str]) -> Template:
    """`page` follows HEAD: it begins with the body. `filters` are those it has beside the common ones."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval, "value": value} | filters
    environment.globals |= {"at": at}
    return environment.from_string(HEAD + page)


def render_page(template: Template, figures: Mapping[str, Drawing], **values: Any) -> str:
    """`values` are what the page uses; `title` and `captions`, by the name of a figure, are among them."""
    images = {name: b64encode(drawing.png).decode() for name, drawing in figures.items()}
    return template.render(images=images, style=STYLE, **values)


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


# ---- files ----


def write_file(path: Path, content: bytes) -> None:
    with replacing(path) as staging:
        staging.write_bytes(content)


def write_figure(stem: Path, drawing: Drawing | None) -> None:
    """`stem`.png and `stem`.json; None removes those of an earlier report."""
    png, numbers = stem.with_suffix(".png"), stem.with_suffix(".json")
    if drawing is None:
        png.unlink(missing_ok=True)
        numbers.unlink(missing_ok=True)
    else:
        write_file(png, drawing.png)
        write_file(numbers, json_bytes(drawing.numbers))


def json_bytes(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def one_line(text: str) -> str:
    """Nothing of a table's own text (names of tasks) may steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
