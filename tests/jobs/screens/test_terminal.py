"""Text from outside is shown as it is by everything that prints."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from pyarrow import fs
from rich.console import Console

from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from buffers.schema import with_outcome, with_scores
from jobs import answers
from jobs import list as listing
from jobs import status as status_command
from jobs.config import RunConfig
from jobs.configuration.characters import spelled_out
from jobs.directory.run_state import Waiting, WorkerStatus
from jobs.reports.report import Report, TextTable
from jobs.screens.console import RunConsole, show_plan
from jobs.screens.terminal import plain, say, terminal, wide_terminal
from tests.jobs.runs_fixture import NOW, run_directory, status
from tests.learners.samples import ragged_groups

REPOSITORY = Path(__file__).resolve().parents[3]
MARKUP = [
    "[x for x in xs]",
    "[/INST]",
    "only 1 GiB is free [/dev/shm]",
    "[bold]not bold[/bold] [/]",
    "[link=http://x]there[/link]",
    ":smile: :warning:",
    r"\[a] \\[b]",
    "[red",
    "f[i][j] = [1, 2][/2]",
    "[@click=app.bell]x[/]",
]
STEERING = ["\x1b[2Jgone", "a\x08b", "\x1b]0;title\x07", "\u202eright to left", "\udce9 of no encoding", "\x9b31m"]


@pytest.fixture(params=[terminal, Console], ids=["ours", "rich's own"])
def console(request: pytest.FixtureRequest) -> Callable[..., Console]:
    """What makes a console: whatever its settings, it reads no markup in our text."""
    return request.param


def printed(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


@pytest.mark.parametrize("text", MARKUP)
def test_a_line_is_printed_as_it_is(console, text):
    file = io.StringIO()
    say(console(file=file, width=20), text)
    assert file.getvalue() == f"{text}\n"


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_screen_is_spelled_out(console, text):
    file = io.StringIO()
    say(console(file=file, force_terminal=True), text)
    assert not [char for char in file.getvalue().rstrip("\n") if unicodedata.category(char) in ("Cc", "Cs") or char == "\u202e"]
    assert re.search(r"\\u\{[0-9a-f]+\}", file.getvalue())


def test_ordinary_text_of_any_script_stays():
    text = "tab\tline\nnaïve ≤ 数 עברית 🙂 e\u0301"
    assert spelled_out(text) == text
    assert plain(text).plain == text


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("text", MARKUP)
def test_a_run_says_what_it_is_told(console, text, is_terminal):
    file = io.StringIO()
    with RunConsole(text, 40, console(file=file, force_terminal=is_terminal, width=200)) as shown:
        shown.status(text)
        shown.warn(text)
        shown.note(text)
        shown.step(1, {})
        shown.finish(text, [text])
    lines = [line.strip() for line in printed(file).splitlines()]
    assert {text, f"{'warning: ' if is_terminal else ''}{text}"} <= set(lines)
    assert any(line.startswith(f"{text} ") and "1/40" in line for line in lines) is is_terminal


@pytest.mark.parametrize("text", MARKUP)
def test_the_state_of_a_run_is_shown_as_it_is(console, text):
    file = io.StringIO()
    record = status(
        run_id=text,
        phase="failed",
        detail=text,
        host=text,
        faults=(text,),
        workers=(WorkerStatus(name=text, role="rollout", state="dead", since=NOW, detail=text),),
        waits=(Waiting(loop=text, waiting_for=text, since=NOW),),
        queues={text: 1},
    )
    look = status_command.Look(status=record, is_alive=True, job=text)
    status_command.show(iter([look]), console(file=file, width=400), as_json=False, watch=False)
    assert file.getvalue().count(text) == 10
    unspoken = status_command.Look(status=None, is_alive=True, job=text)
    for watch in (False, True):
        status_command.show(iter([unspoken]), console(file=file, width=400), as_json=False, watch=watch)
    assert file.getvalue().count(text) == 12


NAMES = ["a[0]", "[bold]b[", ":smile:", "[INST]"]


def test_runs_are_listed_by_their_names(tmp_path, monkeypatch, capsys):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        run_directory(tmp_path / "runs", name)
    assert listing.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out and f"runs/{name}" in out for name in NAMES)


@pytest.mark.parametrize("text", MARKUP)
def test_answers_are_shown_as_they_are(tmp_path, monkeypatch, capsys, text):
    import pyarrow as pa

    monkeypatch.setenv("COLUMNS", "400")
    (group,) = ragged_groups(1)
    scored = with_outcome(with_scores(group, [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]), 1, GroupOutcome.TRAINED)
    for name in ("question", "response_text", "reference_answer"):
        values = pa.array([text] * scored.num_rows, scored.schema.field(name).type)
        scored = scored.set_column(scored.schema.get_field_index(name), scored.schema.field(name), values)
    RolloutLog(fs.LocalFileSystem(), str(tmp_path / "rollouts")).append(1, [scored])
    assert answers.main([str(tmp_path), "-n", "2"]) == 0
    assert capsys.readouterr().out.count(text) == 6


@pytest.mark.parametrize("text", [text for text in MARKUP if "\\" not in text])
def test_a_plan_is_shown_as_it_is(capsys, text):
    assert show_plan(RunConfig(model=text, run_dir=text), [f"model: {text}"]) == 0
    out = capsys.readouterr().out
    assert f'"model": "{text}"' in out and f"model: {text}\n" in out


@pytest.mark.parametrize("text", ["a\x9b31mb", "\u202ea", "a\x7f", "naïve ≤ 数"])
def test_no_character_of_a_plan_steers_the_terminal(capsys, text):
    assert show_plan(RunConfig(run_dir=text), []) == 0
    out = capsys.readouterr().out
    assert spelled_out(out) == out and (text in out) is (spelled_out(text) == text)
    assert json.loads(out)["run_dir"] == text


class Numbers(Report):
    template: ClassVar[str] = ""
    title: ClassVar[str] = ""
    captions: ClassVar = {}

    def table(self) -> TextTable:
        return TextTable(headings=["model", *self.settings], rows=[[*self.settings, "1"]])


@pytest.mark.parametrize("text", MARKUP)
def test_a_report_is_shown_as_it_is(console, text):
    file = io.StringIO()
    Numbers(summary=(text,), notes=(text,), settings={text: ""}).print(console(file=file, width=200))
    assert file.getvalue().count(text) == 4


@dataclass
class Encoded:
    """Standard output in an encoding that lacks most characters."""

    raw: io.BytesIO
    text: io.TextIOWrapper


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_output_cannot_encode_ends_no_run(monkeypatch, encoding):
    out = Encoded(raw := io.BytesIO(), io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stdout", out.text)
    with RunConsole("mine", 2) as shown:
        shown.warn("x ≤ 3 数 \udce9")
    wide_terminal().print("…")
    out.text.flush()
    written = out.raw.getvalue().decode(encoding)
    assert ("x ≤ 3 数" in written) is (encoding == "utf-8") and r"\u{dce9}" in written


def test_no_command_has_a_console_of_its_own():
    """Every console is made by `terminal`, so that a cell that somebody forgot to make plain reads no markup either."""
    made = [path for path in (REPOSITORY / "jobs").rglob("*.py") if re.search(r"\bConsole\(|from_markup|Text\(", path.read_text())]
    assert [path.name for path in made if path.name != "config_keys.py"] == ["terminal.py"]
