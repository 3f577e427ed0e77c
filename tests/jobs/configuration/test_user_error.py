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
