"""How a command refuses: one line for the person who typed it, and exit code 2.

    def main(arguments: Sequence[str] | None = None) -> int:
        return answering(lambda: _main(parse_arguments(arguments)))

Importing this module pulls in neither torch nor Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from buffers.extensions import ExtensionError
from jobs.configuration.characters import spelled_out
from learners.models import ModelError
from tasks.base import TaskError

EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 130


class UserError(Exception):
    """The command cannot be carried out. The message is one line that says why and what to do."""


REFUSALS = (UserError, ExtensionError, ModelError, TaskError)
"""What a command refuses with. Once a job has begun, it treats all of these but UserError as failures of the job."""


def answering(command: Callable[[], int]) -> int:
    """Return the exit code of `command`: 2 and one line where it is refused, or cannot use a file or directory; 1 where
    its output cannot be written; 130 where it is interrupted."""
    try:
        try:
            return command()
        finally:
            print(end="", flush=True)  # so that a failure to write is found here, not while the process ends
    except REFUSALS as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_REFUSED
    except OSError as error:
        if error.filename is None and _output_is_lost():
            if not isinstance(error, BrokenPipeError):  # of `| head` nothing need be said
                print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
            return EXIT_FAILED
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {one_line(str(error.filename))} cannot be used: {error.strerror}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _output_is_lost() -> bool:
    """Return whether standard output takes nothing more. What is left to write is then dropped."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def one_line(message: str) -> str:
    """Return all lines of a message as one: which of them says what to do, only its author knows. No character of it
    steers the terminal."""
    return spelled_out(" ".join(line.strip() for line in message.splitlines() if line.strip()))


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` of the block into UserErrors with the same message."""
    try:
        yield
    except errors as error:
        raise UserError(str(error)) from None
