"""`repexp COMMAND`: one name for all commands."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs import __main__ as repexp
from jobs import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_help_fits_a_screen_with_one_line_for_each_command(capsys):
    assert repexp.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ")] == repexp.NAMES


def test_no_command_at_all_shows_the_help_and_is_refused(capsys):
    assert repexp.main([]) == 2
    assert "usage: repexp" in capsys.readouterr().out


def test_the_table_has_every_command_of_the_project():
    commands = {path.stem for path in (REPOSITORY / "jobs").glob("[a-z]*.py") if "\ndef main(" in path.read_text()}
    assert sorted(repexp.NAMES) == sorted(commands)


@pytest.mark.parametrize("name", repexp.NAMES)
def test_both_forms_of_help_are_those_of_the_command(name, capsys):
    said = []
    for words in ([name, "--help"], ["help", name]):
        with pytest.raises(SystemExit) as end:
            repexp.main(words)
        assert end.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith(f"usage: repexp {name} ")


def test_the_command_gets_the_words_after_its_name_and_gives_the_exit_code(monkeypatch):
    given = []
    monkeypatch.setattr(importlib.import_module("jobs.stop"), "main", lambda words: given.append(words) or 7)
    assert repexp.main(["stop", "runs/a b", "--wait"]) == 7
    assert given == [["runs/a b", "--wait"]]


@pytest.mark.parametrize(
    ("name", "advice"),
    [("trian", "did you mean 'train'?"), ("stats", "did you mean 'status'?"), ("xyz", "repexp --help"), ("--set", "repexp --help")],
)
def test_an_unknown_command_is_one_line_with_the_nearest_name(name, advice, capsys):
    assert repexp.main([name, "--help"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert repr(name) in said.err and advice in said.err


def test_version(capsys):
    assert repexp.main(["--version"]) == 0
    assert capsys.readouterr().out == f"repexp {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["trian"]])
def test_all_but_the_commands_need_the_standard_library_only(words):
    """`-S` leaves site-packages out."""
    done = subprocess.run([sys.executable, "-S", "-m", "jobs", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if words == ["trian"] else 0), done.stderr


def installed(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a directory; PYTHONPATH does here what the editable install does."""
    name, _, function = PYPROJECT["project"]["scripts"]["repexp"].partition(":")
    command = [sys.executable, "-c", f"from {name} import {function}; {function}()", *words]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


def test_the_installed_command_works_anywhere(tmp_path):
    (tmp_path / "jobs").mkdir()  # a folder without an __init__.py is no package and hides none
    done = installed(tmp_path, "stop", "nothing", "--wait")
    assert done.returncode == 2 and done.stderr.startswith("error: no run 'nothing'"), done.stderr


@pytest.mark.parametrize("file", ["tasks.py", "bonus/__init__.py"])
def test_a_file_that_hides_a_package_is_named(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    done = installed(tmp_path, "list")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / file) in done.stderr and "another directory" in done.stderr


def test_in_another_clone_the_code_of_that_clone_runs(tmp_path):
    for name in repexp.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "jobs/__main__.py").write_text("import sys; print('the other clone', sys.argv[1:])")
    assert installed(tmp_path, "train", "a.toml").stdout == "the other clone ['train', 'a.toml']\n"
