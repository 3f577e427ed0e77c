from __future__ import annotations

import os
import subprocess
import sys

import pytest

from buffers.extensions import ExtensionError
from jobs.configuration.user_error import EXIT_INTERRUPTED, EXIT_REFUSED, UserError, answering, refusing
from learners.models import ModelError
from tasks.base import TaskError


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize("kind", [UserError, ExtensionError, ModelError, TaskError])
def test_a_refusal_is_one_line_and_exit_code_2(kind, capsys):
    assert answering(raising(kind("set this to that"))) == EXIT_REFUSED == 2
    assert capsys.readouterr().err == "error: set this to that\n"


def test_an_interrupt_is_exit_code_130_and_what_is_a_bug_shows_itself():
    assert answering(raising(KeyboardInterrupt())) == EXIT_INTERRUPTED == 130
    assert answering(lambda: 7) == 7
    with pytest.raises(ValueError, match="a bug"):
        answering(raising(ValueError("a bug")))


def test_errors_of_a_block_become_refusals_with_the_same_message():
    with pytest.raises(UserError, match="no such model"), refusing(ModelError):
        raise ModelError("no such model")
    with pytest.raises(KeyError), refusing(ModelError):
        raise KeyError("other")


@pytest.mark.parametrize("name", ["train", "explore", "evaluate", "submit", "follow", "status", "scale", "stop", "list", "answers"])
def test_every_command_refuses_in_the_same_way(name):
    module = __import__(f"jobs.{name}", fromlist=["main"])
    assert module.answering is answering


def test_refusing_imports_neither_torch_nor_ray():
    code = "import jobs.configuration.user_error, sys; sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("message", ["two\nlines", " Ray says:\n\n  1. unset it, or\n  2. set it\n", "one"])
def test_all_lines_of_a_message_are_one_line(message, capsys):
    assert answering(raising(UserError(message))) == EXIT_REFUSED
    assert capsys.readouterr().err == f"error: {' '.join(message.split())}\n"


@pytest.mark.parametrize("name", ["nothing/a", "file/a", ""])
def test_a_file_or_directory_that_cannot_be_used_is_one_line(tmp_path, capsys, name):
    (tmp_path / "file").write_text("")
    assert answering(lambda: len((tmp_path / name).read_bytes())) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / name} cannot be used: ")
    with pytest.raises(OSError, match="of no file"):
        answering(raising(OSError("of no file")))


@pytest.mark.parametrize("arguments", [["jobs.train", "--help"], ["jobs.train", "--keys", "learner.loss"], ["jobs.list"]])
def test_an_output_that_cannot_be_written_is_one_line(arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "error: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("path", ["a\x1b[31mb", "a\x9b2Jb", "a\u202eb", "a\x07b", "a\x08b"])
def test_no_character_of_a_refusal_steers_the_terminal(path, capsys):
    assert answering(raising(UserError(f"{path} is no run"))) == EXIT_REFUSED
    assert answering(raising(FileNotFoundError(2, "not there", path))) == EXIT_REFUSED
    first, second = capsys.readouterr().err.splitlines()
    spelled = path.replace(path[1], f"\\u{{{ord(path[1]):x}}}")
    assert (first, second) == (f"error: {spelled} is no run", f"error: {spelled} cannot be used: not there")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--replay-from", ""]),
        ("train", ["--set", "run_dir="]),
        ("train", ["--set", "checkpoint.storage= "]),
        ("explore", ["--out", "", "--dry-run"]),
        ("explore", ["--task", "gsm8k", "--data", "", "--dry-run"]),
        ("explore", ["--from-pools", ""]),
        ("evaluate", ["--model", "", "--dry-run"]),
        ("answers", [""]),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_no_path(name, arguments, capsys, tmp_path):
    (tmp_path / "mine.toml").write_text("")
    module = __import__(f"jobs.{name}", fromlist=["main"])
    assert module.main([str(tmp_path / "mine.toml"), *arguments] if name == "train" else arguments) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "an empty text names no place" in line


@pytest.mark.parametrize("config", ["", "/proc/self/mem"])
def test_a_configuration_that_cannot_be_read_is_one_line(config, capsys):
    from jobs import train

    assert train.main([config, "--dry-run"]) == EXIT_REFUSED
    assert len(capsys.readouterr().err.splitlines()) == 1
