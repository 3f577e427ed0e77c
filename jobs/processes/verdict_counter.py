"""Ends a run whose verifier breaks: it would train on nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from buffers.records import Verdict


class VerifierFailure(RuntimeError):
    """Too many responses could not be scored: training on would be training on nothing."""


@dataclass
class VerdictCounter:
    """Ends the run when too large a share of the newest responses has no score. A verifier that breaks late in a run is
    found as soon as one that breaks early."""

    max_error_rate: float
    num_verdicts: int = 0
    """Verdicts since the start of the run."""
    MIN_VERDICTS = 50
    NEWEST = 1000

    def __post_init__(self) -> None:
        self._is_unscored: deque[bool] = deque(maxlen=self.NEWEST)

    def add(self, verdicts: list[Verdict]) -> None:
        """Count the verdicts of a group. Raise VerifierFailure where the rate exceeds `max_error_rate`."""
        unscored = [verdict for verdict in verdicts if not verdict.status.is_scored]
        self.num_verdicts += len(verdicts)
        self._is_unscored.extend(not verdict.status.is_scored for verdict in verdicts)
        num_newest, num_unscored = len(self._is_unscored), sum(self._is_unscored)
        if unscored and num_newest >= self.MIN_VERDICTS and num_unscored > self.max_error_rate * num_newest:
            raise VerifierFailure(
                f"{num_unscored} of {num_newest} responses could not be scored, more than verifier.max_error_rate = "
                f"{self.max_error_rate}; the last: {unscored[-1].status} ({unscored[-1].detail})"
            )
