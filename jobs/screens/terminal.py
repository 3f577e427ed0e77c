"""What every command prints with. Text from outside (answers, paths, messages of other programs) is shown as it is: no
bracket is markup, no `:name:` an emoji, and no character steers the terminal.

    console = terminal()
    say(console, "warning: only 1 GiB is free [/dev/shm]")
    table.add_row(plain(answer), plain(path))               # every cell with text from outside"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.text import Text

from jobs.configuration.characters import spelled_out


def terminal(**options: Any) -> Console:
    """Return a console of standard output that reads no markup. A character that the output cannot encode is spelled
    out. `options` are those of rich's Console."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(markup=False, emoji=False, highlight=False, **options)


def wide_terminal() -> Console:
    """Return a console as wide as the terminal, or wide enough for any table where there is none."""
    console = terminal()
    return console if console.is_terminal else terminal(width=200)


def plain(text: str, style: str = "") -> Text:
    """Return `text` as something to print. No console reads markup in it, whatever its settings."""
    return Text(spelled_out(text), style=style)


def say(console: Console, text: str) -> None:
    """Print a line as it is, however narrow the terminal."""
    console.print(plain(text), soft_wrap=True)
