"""Commands to paste."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.cluster.runs import command_line, python_line


@pytest.fixture
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bin/ of an environment in the current directory, with this process's interpreter and no command."""
    directory = tmp_path / "my env" / "bin"
    directory.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    return directory


def install(directory: Path) -> None:
    (directory / "repexp").touch(mode=0o755)


def test_an_environment_with_the_command_is_named_by_its_path(bin_directory):
    install(bin_directory)
    assert command_line("status", "a b", "--watch") == "'my env/bin/repexp' status 'a b' --watch"


def test_a_command_on_the_path_needs_no_directory(bin_directory, monkeypatch):
    install(bin_directory)
    monkeypatch.setenv("PATH", str(bin_directory))
    assert command_line("status", "a b") == "repexp status 'a b'"


def test_the_command_of_another_environment_on_the_path_is_not_meant(bin_directory, monkeypatch, tmp_path):
    install(bin_directory)
    (tmp_path / "other").mkdir()
    install(tmp_path / "other")
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}:{bin_directory}")
    assert command_line("stop", "mine") == "'my env/bin/repexp' stop mine"


def test_an_environment_without_the_command_has_the_module(bin_directory):
    assert command_line("status", "mine") == "'my env/bin/python' -m jobs.status mine"
    assert python_line("tensorboard.main", "--logdir", "runs/a b") == "'my env/bin/python' -m tensorboard.main --logdir 'runs/a b'"
