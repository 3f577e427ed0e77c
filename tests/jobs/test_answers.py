from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from buffers.records import GroupOutcome
from buffers.rollout_log import RolloutLog
from buffers.schema import SCHEMA_VERSION, with_outcome, with_scores
from jobs import answers
from tests.buffers.schema_1 import as_schema_1
from tests.learners.samples import ragged_groups


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Three steps of one group of four each; a fourth group went stale."""
    log = RolloutLog(fs.LocalFileSystem(), str(tmp_path / "rollouts"))
    for step, group in enumerate(ragged_groups(3), start=1):
        scored = with_scores(group, [0.1, 0.2, 0.3, 0.4], [step, -step, 10 * step, -10 * step])
        log.append(step, [with_outcome(scored, step, GroupOutcome.TRAINED)])
    stale = ragged_groups(4)[3]
    log.append(4, [with_outcome(stale, 4, GroupOutcome.STALE)])
    return tmp_path


def advantages(run_dir: Path, **settings: object) -> list[float]:
    rows = RolloutLog(fs.LocalFileSystem(), str(run_dir / "rollouts")).read()
    return answers.select_answers(rows, **{"sort_by": "advantage", "worst": False, "limit": 3, **settings})["advantage"].to_pylist()


def test_best_answers_come_first(run_dir: Path):
    assert advantages(run_dir) == [30, 20, 10]


def test_worst_answers_come_first_when_asked_for(run_dir: Path):
    assert advantages(run_dir, worst=True) == [-30, -20, -10]


def test_answers_that_were_not_trained_on_are_left_out(run_dir: Path):
    assert len(advantages(run_dir, limit=100)) == 12


def test_command_prints_the_steps_asked_for(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert answers.main([str(run_dir), "--steps", "2", "2"]) == 0
    shown = capsys.readouterr().out
    assert "20.000" in shown
    assert "30.000" not in shown


@pytest.mark.parametrize(
    ("where", "arguments", "message"), [("nowhere", [], "has no rollouts"), ("", ["--steps", "8", "9"], "steps 1 to 4")]
)
def test_nothing_to_show_is_one_line_and_exit_2(
    run_dir: Path, capsys: pytest.CaptureFixture[str], where: str, arguments: list[str], message: str
):
    assert answers.main([str(run_dir / where), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rows_of_an_older_schema_are_one_line_and_exit_2_and_newer_steps_are_shown(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    file = run_dir / "rollouts" / "step_000001.parquet"
    pq.write_table(as_schema_1(pq.read_table(file)), file)
    assert answers.main([str(run_dir)]) == 2
    error = capsys.readouterr().err
    assert f"step_000001.parquet: rollout schema 1.2 is older than this reader's {SCHEMA_VERSION}" in error and error.count("\n") == 1
    assert answers.main([str(run_dir), "--steps", "2", "4"]) == 0


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_one_line_that_names_it(run_dir: Path, capsys: pytest.CaptureFixture[str], left: float):
    file = run_dir / "rollouts" / "step_000002.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    assert answers.main([str(run_dir)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(file) in line and "--steps FIRST LAST leaves steps out" in line
    assert answers.main([str(run_dir), "--steps", "3", "4"]) == 0


@pytest.mark.parametrize("damage", [b"no Parquet at all" * 50, b"\0" * 400, b"PAR1" + b"\xff" * 400 + b"\x10\0\0\0PAR1"])
def test_a_file_of_something_else_is_one_line_too(run_dir: Path, capsys: pytest.CaptureFixture[str], damage: bytes):
    file = run_dir / "rollouts" / "step_000001.parquet"
    file.write_bytes(damage)
    assert answers.main([str(run_dir)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line


def test_a_damaged_page_is_one_line_too(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    file = run_dir / "rollouts" / "step_000001.parquet"
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 3] = b"\xa5" * (len(content) // 3 - 4)
    file.write_bytes(content)
    assert answers.main([str(run_dir)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n", "-3"]])
def test_a_number_that_shows_nothing_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert answers.main([str(run_dir), *arguments]) == 2
    assert "at least 1 answer" in capsys.readouterr().err


def test_rollouts_that_are_a_file_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rollouts").write_text("")
    assert answers.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_in_the_home_directory_is_found(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(run_dir.parent))
    assert answers.main([f"~/{run_dir.name}/"]) == 0


@pytest.mark.parametrize("num", ["12", "13", "99999999999999999999999"])
def test_more_answers_than_there_are_is_all_of_them(run_dir: Path, capsys: pytest.CaptureFixture[str], num: str) -> None:
    assert answers.main([str(run_dir), "-n", "12"]) == 0
    everything = capsys.readouterr().out
    assert answers.main([str(run_dir), "-n", num]) == 0
    assert capsys.readouterr().out == everything


def test_a_name_that_is_not_utf_8_among_the_rollouts_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "rollouts/caf\udce9").write_text("")
    assert answers.main([str(run_dir)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run_dir}/rollouts has a file whose name is not UTF-8" in line
