from __future__ import annotations

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
