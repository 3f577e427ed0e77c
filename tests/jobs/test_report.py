from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs import report
from tests.jobs.reports.page_text import Text
from tests.jobs.reports.run.run_fixture import HOSTILE, written_run
from tests.jobs.runs_fixture import run_directory, running


def test_a_run_becomes_one_page_in_its_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = written_run(tmp_path)
    before = {path for path in directory.rglob("*") if path.is_file()}
    assert report.main([str(directory)]) == 0
    assert {path for path in directory.rglob("*") if path.is_file()} - before == {directory / "report.html"}
    text = Text((directory / "report.html").read_text()).text
    assert "mine: training run" in text and "step 3 of 40" in text and "90.0% had a part in a loss" in text
    assert "encoder encoder-0: \\u{d800} It is 3." in text and "18 responses" in capsys.readouterr().out


def test_hostile_text_is_never_markup(tmp_path: Path) -> None:
    directory = written_run(tmp_path, texts=[HOSTILE, "3"])
    assert report.main([str(directory), "--out", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert "owned'</" not in html and "<img" not in html and "\u202e" not in html
    nonces = re.findall(r"nonce-?=?[\"']?([\w-]{16,})", html)
    assert html.count("<script") == 5 and len(nonces) == 2 and len(set(nonces)) == 1


def test_the_page_of_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, waits=[{"loop": "learn", "waiting_for": "8 groups in replay", "since": 1_799_999_999.0}])
    with running(directory):
        assert report.main([str(directory)]) == 0
    text = Text((directory / "report.html").read_text()).text
    assert "training: step 12 of 40" in text and "8 groups in replay" in text and "There are no metrics yet" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "no run 'nowhere'"),
        (["{tmp}/none"], "no run 'none'"),
        (["{tmp}/mine", "--out", "{tmp}/no/page.html"], "name a file in a directory that exists"),
        (["{tmp}/mine", "--out", "{tmp}"], "name a file in a directory that exists"),
        (["{tmp}/mine", "--max-mb", "0"], "give a size above 0"),
        (["{tmp}/mine", "--max-mb", "nan"], "give a size above 0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    run_directory(tmp_path)
    assert report.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_directory_of_another_job_is_no_training_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.lock").touch()
    assert report.main([str(tmp_path)]) == 2
    assert "holds no training run" in capsys.readouterr().err
