"""Failures of a run, and the functions that a run calls with what happens in it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.directory.events import EventKind
from jobs.processes.failures import kind_of, reason

KEPT_FAULTS = 10


def _ignore(*arguments: Any, **fields: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Functions that a run calls: the console, the metrics and the event log of a session."""

    stepped: Callable[[int, dict[str, float]], None]
    """stepped(step, metrics), after every step."""
    evaluated: Callable[[int, dict[str, float]], None] = _ignore
    """evaluated(step, metrics), after every evaluation of the policy of `step`."""
    warn: Callable[[str], None] = _ignore
    """warn(text), with what the person who started the run should know."""
    note: Callable[..., None] = _ignore
    """note(kind, **fields), with every event (`jobs.directory.events`)."""
    replaced: Callable[[str, Exception], None] = _ignore
    """replaced(name, error), when a process is lost."""


class Faults:
    """Counts failures by kind, and keeps the newest for the status screen."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.newest: deque[str] = deque(maxlen=KEPT_FAULTS)
        self.counts: Counter[str] = Counter()
        self._unusable_in_a_row = 0

    def note(self, role: str, name: str, error: Exception) -> None:
        """Count a failure and write it down."""
        kind = kind_of(error)
        self.counts[kind] += 1
        self.newest.append(f"{time.strftime('%H:%M:%S')} {name}: {reason(error)}")
        self._listener.note(EventKind.FAULT, role=role, name=name, kind=kind.value, error=reason(error))

    def unusable(self, group_id: int, error: Exception, *, at_most: int) -> None:
        """Note that the problem of a group cannot be used. Raises `error` after more than `at_most` in a row."""
        self.note("group", str(group_id), error)
        self._unusable_in_a_row += 1
        if self._unusable_in_a_row > at_most:
            raise error

    def usable(self) -> None:
        """Note that a group was sampled."""
        self._unusable_in_a_row = 0

    def process_lost(self, name: str, error: Exception) -> None:
        """Note the loss of a process, such as "encoder-1"."""
        self.note(name.partition("-")[0], name, error)
        self._listener.replaced(name, error)

    def trouble(self, what: str, error: Exception) -> None:
        """Note a failure that the run survives, and warn: a person can do something about it."""
        self.note(what, what, error)
        self._listener.warn(reason(error))

    def metrics(self) -> dict[str, float]:
        return {f"faults/{kind}": float(self.counts[kind]) for kind in ("infrastructure", "data")}
