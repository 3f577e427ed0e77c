"""No anonymous wait: what every loop of the controller waits for, since when, and whether that is longer than usual.

A call that ends by itself, such as one with a deadline, is no standstill however long it takes: `Waits.still_s` counts
from its end.

A loop waits for several kinds of things, each with a usual time of its own. A kind is a loop and a text without its
numbers, so "verdicts of group 7" and "verdicts of group 8" are one kind. Texts of one kind must differ in nothing else.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.directory.run_state import Waiting

FIRST_WAIT_S = 60.0
"""How long the first wait of a loop usually takes; `Waits` allows three times that."""
SHORT_WAIT_S = 30.0
"""A shorter wait is never called unusual."""

_HISTORY = 64  # durations that a usual time is taken from
_QUANTILE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Overdue:
    """A wait that takes longer than its kind usually does. `usual_s` is None where that is not known yet."""

    loop: str
    waiting_for: str
    waited_s: float
    usual_s: float | None

    def __str__(self) -> str:
        usually = "" if self.usual_s is None else f", usually up to {self.usual_s:.1f} s"
        return f"{self.loop} has waited {self.waited_s:.0f} s for {self.waiting_for}{usually}"


@dataclass(eq=False, slots=True)
class _Wait:
    """One wait under way. It is named once it has taken `name_after_s`."""

    loop: str
    waiting_for: str
    expected_s: float | None
    started: float
    started_unix: float
    name_after_s: float | None = None

    @property
    def kind(self) -> tuple[str, str]:
        return _kind(self.loop, self.waiting_for)


class Waits:
    """The waits of all loops; many of one loop may be under way at once.

        waits = Waits()
        with waits.waiting("learn", "8 groups in replay"):     # around every wait
            await ...
        for overdue in waits.overdue(): log.warning(str(overdue))   # every second or so
        waits.current()                                         # for the status screen

    The usual time of a kind is the 0.95 quantile of its last 64 waits that came to an end. A wait that was cancelled or
    that raised does not say how long it would have taken. A wait is overdue after `factor` times the usual time, and
    not before `floor_s`."""

    def __init__(
        self,
        *,
        floor_s: float = 10.0,
        factor: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._floor_s = floor_s
        self._factor = factor
        self._clock = clock
        self._unix_clock = unix_clock
        self._waits: dict[_Wait, None] = {}  # in order of their start
        self._durations: dict[tuple[str, str], deque[float]] = {}
        self._num_ending = 0
        self._last_end = clock()

    @contextmanager
    def waiting(self, loop: str, waiting_for: str, *, usual_s: float | None = None) -> Iterator[None]:
        """Name a wait. `usual_s`: what to expect as long as no wait of the kind has come to an end."""
        wait = _Wait(loop, waiting_for, usual_s, self._clock(), self._unix_clock())
        self._waits[wait] = None
        try:
            yield
            self._durations.setdefault(wait.kind, deque(maxlen=_HISTORY)).append(self._clock() - wait.started)
        finally:
            del self._waits[wait]

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Mark a call that ends by itself, well or by a deadline of its own."""
        self._num_ending += 1
        try:
            yield
        finally:
            self._num_ending -= 1
            self._last_end = self._clock()

    def progressed(self) -> None:
        """Note that something has moved."""
        self._last_end = self._clock()

    def still_s(self) -> float:
        """Return the seconds since something moved, or a call that ends by itself was under way; 0 while one is."""
        return 0.0 if self._num_ending else self._clock() - self._last_end

    def usual_s(self, loop: str, waiting_for: str) -> float | None:
        """Return the seconds that all but the longest recent waits of this kind took; None before the first has
        ended."""
        durations = sorted(self._durations.get(_kind(loop, waiting_for), ()))
        return durations[math.ceil(_QUANTILE * len(durations)) - 1] if durations else None

    def current(self) -> list[Waiting]:
        """Return every wait under way, the longest first."""
        return [Waiting(loop=wait.loop, waiting_for=wait.waiting_for, since=wait.started_unix) for wait in self._waits]

    def overdue(self, now: float | None = None) -> list[Overdue]:
        """Return the waits to be named at `now` (a time of the clock). A wait is named when it is overdue, and again
        each time it has doubled since."""
        now = self._clock() if now is None else now
        found = []
        for wait in self._waits:
            waited_s = now - wait.started
            if waited_s <= self._floor_s or (wait.name_after_s is not None and waited_s < wait.name_after_s):
                continue
            learnt_s = self.usual_s(wait.loop, wait.waiting_for)
            usual_s = wait.expected_s if learnt_s is None else learnt_s
            if wait.name_after_s is None and waited_s <= self._factor * (usual_s or 0.0):
                continue
            wait.name_after_s = 2 * waited_s
            found.append(Overdue(loop=wait.loop, waiting_for=wait.waiting_for, waited_s=waited_s, usual_s=usual_s))
        return found


def _kind(loop: str, waiting_for: str) -> tuple[str, str]:
    return loop, re.sub(r"\d+", "#", waiting_for)
