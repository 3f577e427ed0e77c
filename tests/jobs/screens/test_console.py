import io
import math
import re

import pytest
from rich.console import Console

from jobs.screens.console import COLUMNS, SHOWN_STEPS, RunConsole, cell, split_columns

METRICS = {
    "reward/mean": 0.123,
    "reward/pass@1": 0.25,
    "reward/pass@K": 0.75,
    "groups/all_correct": 0.125,
    "groups/all_wrong": 0.5,
    "bonus/mean": 0.0625,
    "bonus/spread": 0.1,
    "policy/entropy": 1.5,
    "policy/lag_mean": 0.75,
    "mismatch/mean": 0.0123,
    "rollout/tokens_per_s": 456.7,
    "time/step_s": 7.89,
    "time/wait_for_batch_s": 3.21,
    "rollout/idle_s": 0.98,
}
FIGURES = "reward 0.12|pass@1 0.25|pass@K 0.75|all ok 12%|none ok 50%|bonus 0.062|spread 0.100|entropy 1.50|lag 0.8|mismatch 0.012"
FIGURES += "|tok/s 457|step s 7.9|learner waits 3.2|rollout waits 1.0"


def output_of(*, terminal: bool, steps: list[dict[str, float]], width: int = 220) -> str:
    file = io.StringIO()
    with RunConsole("repexp mine", 40, Console(file=file, force_terminal=terminal, width=width)) as console:
        console.status("starting the engine")
        for step, metrics in enumerate(steps, start=1):
            console.step(step, metrics)
        console.finish("mine", ["all is well", "a line " * 60 + "that is long"])
    return file.getvalue()


def test_without_a_terminal_a_step_is_one_line_with_all_figures():
    status, first, second, *summary = output_of(terminal=False, steps=[METRICS, METRICS]).splitlines()
    assert status == "starting the engine"
    assert first == "step 1/40  " + FIGURES.replace("|", "  ")
    assert second.startswith("step 2/40  ")
    assert summary[1:] == ["all is well", "a line " * 60 + "that is long"]  # below a rule, none of it cut
    assert len(FIGURES.split("|")) == len(COLUMNS)


def test_missing_figure_is_a_dash():
    without = {name: value for name, value in METRICS.items() if name != "policy/entropy"} | {"bonus/mean": math.nan}
    line = output_of(terminal=False, steps=[without]).splitlines()[1]
    assert "entropy -  lag 0.8" in line
    assert "bonus -  spread 0.100" in line
    assert cell({}, "x", ".2f") == "-"


def test_step_without_any_figure_is_a_line_of_dashes():
    line = output_of(terminal=False, steps=[{}]).splitlines()[1]
    assert line.count(" -") == len(COLUMNS)


def test_terminal_shows_the_newest_steps_as_a_table_and_the_summary_below():
    num_steps = SHOWN_STEPS + 3
    last_frame = output_of(terminal=True, steps=[METRICS] * num_steps).rpartition("repexp mine")[2]
    assert f"{num_steps}/40" in last_frame
    assert all(word in last_frame for heading, _, _ in COLUMNS for word in heading.split())
    rows = [line.split()[0] for line in last_frame.splitlines() if "457" in line]
    assert rows == [str(step) for step in range(4, num_steps + 1)]
    assert "all is well" in last_frame


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
def test_narrow_terminal_cuts_no_figure_and_says_the_rest_in_words(width):
    last_frame = output_of(terminal=True, steps=[METRICS], width=width).rpartition("repexp mine")[2]
    words = set(re.sub(r"\x1b\[[0-9;]*m|,", " ", last_frame).split())
    assert {cell(METRICS, name, form) for _, name, form in COLUMNS} <= words
    assert "…" not in last_frame
    shown, rest = split_columns(width)
    assert (*shown, *rest) == COLUMNS
    assert bool(rest) == (width < 120)


@pytest.mark.parametrize("terminal", [False, True])
def test_failure_ends_with_the_one_line_that_says_what_happened(terminal, capsys):
    with RunConsole("repexp mine", 40, Console(file=io.StringIO(), force_terminal=terminal)) as console:
        console.failed("Traceback: ...", "error: the run failed: no more memory")
    assert capsys.readouterr().err.splitlines() == ["Traceback: ...", "error: the run failed: no more memory"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_warning_stays_to_the_end(terminal):
    file = io.StringIO()
    with RunConsole("repexp mine", 40, Console(file=file, force_terminal=terminal, width=220)) as console:
        console.warn("the bonus carries no signal")
        console.step(1, METRICS)
        console.finish("mine", ["all is well"])
    shown = file.getvalue()
    assert "warning: the bonus carries no signal" in (shown.rpartition("0/40")[2] if terminal else shown)
