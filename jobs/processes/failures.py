"""Failures by what can be done about them, and what a failed job says to the person who started it.

| kind           | example                                       | what follows                                                        |
|----------------|-----------------------------------------------|---------------------------------------------------------------------|
| infrastructure | a process died or hangs, an engine failed     | replaced, its work given out again; `supervision.max_failures`       |
|                | weights that were damaged on their way        | refused, published again; `supervision.max_failures`                 |
| data           | a prompt that is too long                     | the group is dropped, then its problem; `max_attempts`               |
| bug            | anything else                                 | the run ends at once with its own traceback                          |
"""

from __future__ import annotations

import traceback
from enum import StrEnum

from ray.exceptions import RayError, RayTaskError

from actors.engine import EngineError, WeightMismatch
from actors.rollout import DataError
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
from learners.supported import ModelUnsupported
from learners.weight_check import WeightsRefused
from tasks.base import TaskError


class PublicationFailed(RuntimeError):
    """A worker did not take any weights that it was handed, however often: what it samples would fall ever further
    behind."""


NAMED_FAILURES = (
    *(ActorDied, Deadline, DataLost, VerifierFailure, VerifierPoolError, CheckpointError, RolloutLogError, TaskError, ExtensionError),
    *(WeightsRefused, PublicationFailed, TransferUnavailable, CompilerMissing, ModelUnsupported, CallGivenUp, ReplayTooSmall),
)
"""Their messages say all there is to say; anything else is shown with its traceback."""


class FailureKind(StrEnum):
    """See the table above."""

    INFRASTRUCTURE = "infrastructure"
    DATA = "data"
    BUG = "bug"


def kind_of(error: BaseException) -> FailureKind:
    """Of an exception as the controller sees it. An engine that does not hold the weights it was given is a bug, not
    bad luck."""
    if isinstance(error, WeightMismatch):
        return FailureKind.BUG
    if isinstance(error, DataError):
        return FailureKind.DATA
    if isinstance(error, (ActorDied, Deadline, DataLost, EngineError, VerifierPoolError, ResizeError, WeightsRefused, CallGivenUp)):
        return FailureKind.INFRASTRUCTURE
    is_rays_own = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    return FailureKind.INFRASTRUCTURE if is_rays_own else FailureKind.BUG


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that is not itself a group."""
    first = errors.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def details(error: Exception, *, named: tuple[type[Exception], ...] = NAMED_FAILURES) -> str:
    """What is worth reading before the last line: the traceback of a surprise, the cause of a failure with a name."""
    if isinstance(error, named):
        return str(error.__cause__ or "")
    return str(error) if isinstance(error, RayError) else traceback.format_exc()


def reason(error: BaseException) -> str:
    """One line: what failed."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if isinstance(error, RayTaskError) else lines[0]).strip()
