"""`repexp COMMAND …`: all commands under one name. `python -m jobs COMMAND …` is the same, and so is `python -m
jobs.COMMAND …`.

Only the module of the command that is named is imported. So the help takes no time, and `repexp doctor` works in an
incomplete environment."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

from buffers.extensions import did_you_mean
from jobs import __version__

COMMANDS = {
    "train and measure": {
        "train": "train a policy with the exploration bonus",
        "submit": "train on a Ray cluster",
        "explore": "sample many answers, order them by novelty, verify few",
        "evaluate": "pass@k of models, and how they compare",
        "compare": "compare methods of training over several seeds",
    },
    "look after runs": {
        "list": "the runs of this machine or of a cluster",
        "status": "the state of a run on one screen",
        "follow": "the output of a run on a cluster, as it comes",
        "scale": "change how many workers a live run has",
        "stop": "write a checkpoint of a run and end it",
    },
    "use what a run left": {
        "report": "one page of a run: curves, timeline, every response",
        "answers": "read the answers of a run, best or worst first",
        "push": "put its policy on the Hugging Face hub",
    },
    "check this machine": {
        "doctor": "what it has, what is missing, how to fix it",
    },
}
"""What each command does, by headings. The command NAME is the function `main` of the module `jobs.NAME`."""
NAMES = [name for commands in COMMANDS.values() for name in commands]
PACKAGES = ("actors", "bonus", "buffers", "jobs", "learners", "tasks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command that `arguments` begin with, and return its exit code: 2 where there is no such command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("help", "-h", "--help"):
        print(help_text())
        return 0 if words else 2
    name, *rest = words
    if name == "--version":
        print(f"repexp {__version__}")
        return 0
    if name not in NAMES:
        return refused(f"there is no command {name!r}{did_you_mean(name, NAMES) or '; repexp --help lists them'}")
    return importlib.import_module(f"jobs.{name}").main(rest)


def help_text() -> str:
    """Return all commands with a line each; it fits a terminal of 24 lines."""
    width = max(map(len, NAMES))
    lines = ["usage: repexp COMMAND ...        repexp COMMAND --help says what it takes", ""]
    for heading, commands in COMMANDS.items():
        lines += [f"{heading}:", *(f"  {name:<{width}}  {text}" for name, text in commands.items())]
    return "\n".join([*lines, "", "repexp --version prints the version"])


def start() -> NoReturn:
    """Be the installed command `repexp`: become `python -m jobs`, which looks for modules in the current directory
    first, as Ray's workers do. There it finds methods of your own and, in another clone, the code of that clone."""
    path = [os.getcwd(), *sys.path[1:]]
    found = [Path(spec.origin) for name in PACKAGES if (spec := PathFinder.find_spec(name, path)) and spec.origin]
    foreign = [file for file in found if file.parents[file.name == "__init__.py"] != Path(__file__).parents[1]]
    if 0 < len(foreign) < len(PACKAGES):  # all of them are those of another clone
        sys.exit(refused(f"{foreign[0]} hides the part of repexp that has its name: run repexp in another directory"))
    os.execv(sys.executable, [sys.executable, "-m", "jobs", *sys.argv[1:]])


def refused(why: str) -> int:
    """Print one line and return the exit code of a refused command line."""
    print(f"error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
