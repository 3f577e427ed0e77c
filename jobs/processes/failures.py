"""Kinds of failures, what follows from each, and what a failed job says to the person who started it.

| kind           | example                                   | consequence                                             |
|----------------|-------------------------------------------|---------------------------------------------------------|
| infrastructure | a process died or hangs, an engine failed | it is replaced, its work is given out again             |
|                | weights were damaged on their way         | they are refused and published again                    |
| data           | a prompt is too long or cannot be made    | the group is dropped, then its problem (`max_attempts`) |
| bug            | anything else                             | the run ends at once with its own traceback             |

`supervision.max_failures` bounds the first two.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from enum import StrEnum

from ray.exceptions import RayError, RayTaskError

from actors.engine import EngineError, WeightMismatch
from actors.prompts import DataError
from actors.verifier import ResizeError, VerifierPoolError
from actors.weight_transfer import TransferUnavailable
from buffers.extensions import ExtensionError
from buffers.replay import ReplayTooSmall
from buffers.rollout_log import RolloutLogError
from jobs.processes.handles import ActorDied, DataLost, Deadline
from jobs.processes.supervised import CallGivenUp
from jobs.processes.verdict_counter import VerifierFailure
from learners.checkpoint import CheckpointError
from learners.layers import CompilerMissing
from learners.models import ModelError
from learners.supported import ModelUnsupported
from learners.weight_check import WeightsRefused
from tasks.base import TaskError


class PublicationFailed(RuntimeError):
    """A worker did not take any weights that it was handed, however often: what it samples would fall ever further
    behind."""


class StateLost(RuntimeError):
    """A component's state cannot be found again; the run can only be resumed from its checkpoint."""


_RAISED = re.compile(r"(?:\w+\.)*\w+(?:Error|Exception|Failure|Exit|Interrupt|Unsupported|Refused): \S")
"""The line of a traceback that names what was raised: it is not indented."""
_POINTER = re.compile(r"^\s*(?:(?:for|see|visit|more|further|information)\b.*)?https?://\S+\s*$", re.IGNORECASE)
"""A line that says only where to read on."""
_COUNT = re.compile(r"\b\d+ validation errors? for \w+$")
_INPUT = re.compile(r"\s*\[type=.*\]$")

NAMED_FAILURES = (
    *(ActorDied, Deadline, DataLost, VerifierFailure, VerifierPoolError, CheckpointError, RolloutLogError, TaskError, ExtensionError),
    *(WeightsRefused, PublicationFailed, TransferUnavailable, CompilerMissing, ModelUnsupported, CallGivenUp, ReplayTooSmall),
    *(DataError, ModelError, StateLost),
)
"""The messages of these say all there is to say; any other error is shown with its traceback."""


class FailureKind(StrEnum):
    """The kinds of the table above."""

    INFRASTRUCTURE = "infrastructure"
    DATA = "data"
    BUG = "bug"


def kind_of(error: BaseException) -> FailureKind:
    """Return the kind of an exception as the controller sees it. An engine that does not hold the weights it was given
    is a bug, not bad luck."""
    if isinstance(error, WeightMismatch):
        return FailureKind.BUG
    if isinstance(error, DataError):
        return FailureKind.DATA
    if isinstance(error, (ActorDied, Deadline, DataLost, EngineError, VerifierPoolError, ResizeError, WeightsRefused, CallGivenUp)):
        return FailureKind.INFRASTRUCTURE
    is_rays_own = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    return FailureKind.INFRASTRUCTURE if is_rays_own else FailureKind.BUG


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error that is not itself a group."""
    first = errors.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def details(error: Exception, *, named: tuple[type[Exception], ...] = NAMED_FAILURES) -> str:
    """Return what to read before the last line: the traceback of a surprise, or the cause of a named failure."""
    if isinstance(error, named):
        return str(error.__cause__ or "")
    return str(error) if isinstance(error, RayError) else traceback.format_exc()


def reason(error: BaseException) -> str:
    """Return in one line what failed. Ray puts a traceback before the error, which may itself have several lines."""
    lines = [line.rstrip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    at = _telling(error, lines) if isinstance(error, RayTaskError) else 0
    line = lines[at].strip()
    if _COUNT.search(line):  # pydantic counts the errors first, and tells each below
        below = [_INPUT.sub("", later.strip()) for later in lines[at + 1 :] if not _POINTER.search(later)]
        line = ": ".join([line, *below[:2]])
    return line


def _telling(error: RayTaskError, lines: Sequence[str]) -> int:
    """Return which line of a traceback says what failed: the last that names the error, else any error, else the last
    one that is more than an address."""
    name = type(error.cause).__name__ if error.cause is not None else ""
    named = [at for at, line in enumerate(lines) if name and line.strip().partition(":")[0].rpartition(".")[2] == name]
    raised = [at for at, line in enumerate(lines) if _RAISED.match(line)]
    others = [at for at, line in enumerate(lines) if not _POINTER.search(line)]
    return (named or raised or others or [len(lines) - 1])[-1]
