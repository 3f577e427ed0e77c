"""What a failed job says to the person who started it."""

from __future__ import annotations

import traceback

from ray.exceptions import RayError, RayTaskError

from jobs.handles import Deadline
from jobs.ray_handle import ActorDied
from jobs.run import VerifierFailure
from learners.checkpoint import CheckpointError
from tasks.base import TaskError

NAMED_FAILURES = (ActorDied, Deadline, VerifierFailure, CheckpointError, TaskError)
"""Their messages say all there is to say; anything else is shown with its traceback."""


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that is not itself a group."""
    first = errors.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def details(error: Exception, *, named: tuple[type[Exception], ...] = NAMED_FAILURES) -> str:
    """What is worth reading before the last line: the traceback of a surprise, the cause of a failure with a name."""
    if isinstance(error, named):
        return str(error.__cause__ or "")
    return str(error) if isinstance(error, RayError) else traceback.format_exc()


def reason(error: Exception) -> str:
    """One line: what failed."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if isinstance(error, RayTaskError) else lines[0]).strip()
