"""One flow for every report: numbers, sentences, figures, a page.

    report = ExploreReport(...)                        # numbers and sentences: what report.json holds
    report.write(directory, figures)                   # report.json, report.html; NAME.png and NAME.json of a figure
    report.print(console)                              # the table and the sentences on one screen

A report of another kind subclasses `Report`, and puts a template `*.html.jinja` beside it that extends
`base.html.jinja`. Text of models and data sets is hostile: the templates escape everything, nothing is marked safe, and
a content security policy allows inline styles, embedded images and the page's own scripts alone."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from jobs.directory.atomic import replacing
from jobs.reports.text import at, interval, number, one_line, value
from jobs.screens.terminal import plain, say

if TYPE_CHECKING:
    from jobs.reports.plots import Drawing

FILTERS: Mapping[str, Callable[..., str]] = {"number": number, "interval": interval, "value": value}


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Numbers as text: a row of names first, then a name and its numbers in every row."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every report has."""

    template: ClassVar[str]
    """Path of the page's template in this package."""
    title: ClassVar[str]
    captions: ClassVar[Mapping[str, str]]
    """By the name of a figure, the text below it."""

    summary: tuple[str, ...]
    """Sentences: the result first, then what it was measured on."""
    notes: tuple[str, ...]
    """Sentences: what is missing, and what to be careful with."""
    settings: Mapping[str, str]

    @property
    def heading(self) -> str:
        """The page's headline."""
        return self.title

    def page_values(self) -> dict[str, Any]:
        """Return what the template uses besides `report`, this object."""
        return {}

    def table(self) -> TextTable | None:
        """Return the numbers that a terminal shows."""
        return None

    def sentences(self) -> tuple[str, ...]:
        """Return the sentences that a terminal shows."""
        return (*self.summary, *self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)

    def write(self, directory: Path, figures: Mapping[str, Drawing | None]) -> None:
        """Write every file of the report into `directory`, each whole or not at all. A figure that is None does not
        apply; files of an earlier report are then removed."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, drawing in figures.items():
            png, numbers = directory / f"{name}.png", directory / f"{name}.json"
            if drawing is None:
                png.unlink(missing_ok=True)
                numbers.unlink(missing_ok=True)
            else:
                _write(png, drawing.png)
                _write(numbers, _json_bytes(drawing.numbers))
        _write(directory / "report.json", _json_bytes(self.to_json()))
        _write(directory / "report.html", self.page(figures).encode())

    def page(self, figures: Mapping[str, Drawing | None]) -> str:
        """Return the page: one file that needs nothing else."""
        images = {name: b64encode(drawing.png).decode() for name, drawing in figures.items() if drawing is not None}
        template = _templates().get_template(self.template)
        return template.render(report=self, images=images, captions=self.captions, **self.page_values())

    def print(self, console: Console) -> None:
        """Print the table and the sentences."""
        if (numbers := self.table()) is not None:
            console.print(_screen_table(numbers), "")
        for sentence in self.sentences():
            say(console, one_line(sentence))


@cache
def _templates() -> Environment:
    loader = PackageLoader("jobs.reports", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS
    environment.globals |= {"at": at}
    return environment


def _screen_table(numbers: TextTable) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(numbers.headings):
        table.add_column(plain(one_line(heading)), justify="right" if place else "left")
    for row in numbers.rows:
        table.add_row(*(plain(one_line(cell)) for cell in row))
    return table


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as staging:
        staging.write_bytes(content)


def _json_bytes(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
