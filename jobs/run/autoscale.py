"""How many rollout workers a run should have, judged by which side waits for the other.

    meter = Meter()
    with meter.learner_waits(): batch = await ...            # around the learner's wait for groups
    meter.workers_idle(0.25)                                 # every second: the share of lanes without a group
    if meter.elapsed_s >= config.interval_s:
        desired = decide(meter.take(), desired, config, last_change_s=seconds_since_the_last_change)

If the learner waits and the workers do not, there are too few workers. If workers wait and the learner does not, there
are too many. If both wait, something else holds the run up: engines that start, a weight load, verification. If neither
waits, all is well. In the last two cases nothing changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.config import AutoscaleConfig

_HARDLY = 0.5  # of waiting_share: a learner that waits no longer than this can do with a worker less


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """An interval of `interval_s` seconds: the share of it that the learner waited for groups, and the mean share of
    the workers' lanes that had no group."""

    learner_wait_share: float
    worker_wait_share: float
    interval_s: float


def decide(signals: Signals, current: int, config: AutoscaleConfig, *, last_change_s: float | None) -> int:
    """Return how many workers there should be; `current` are wanted now. `last_change_s`: seconds since that number
    changed, None if it never did.

    The number changes by one at a time. The learner's waiting asks for current / (1 − learner_wait_share) workers, an
    estimate that holds only if it waits for nothing else. A step of one is never far wrong, and the next interval
    measures it. For the same reason, ask only when all that are wanted serve: workers that still start would be asked
    for again.

    One worker leaves only if the idle lanes amount to a whole worker (worker_wait_share · current ≥ 1). The rest can
    then do the work, and the next interval does not ask for it back. Without this rule, work for 1.4 workers alternates
    between 1 and 2.

    Under a constant load of x workers the number settles between (1 − waiting_share)·x and x / (1 − waiting_share), or
    within one of x where that is wider. It is always within the bounds of `config`, at once where `current` is not.
    """
    bounded = min(max(current, config.min_workers), config.max_workers)
    is_too_early = signals.interval_s < config.interval_s or (last_change_s is not None and last_change_s < config.interval_s)
    if bounded != current or is_too_early:
        return bounded
    workers_wait = signals.worker_wait_share > config.waiting_share
    if signals.learner_wait_share > config.waiting_share and not workers_wait:
        return min(current + 1, config.max_workers)
    can_spare_one = signals.worker_wait_share * current >= 1.0
    if workers_wait and can_spare_one and signals.learner_wait_share <= _HARDLY * config.waiting_share:
        return max(current - 1, config.min_workers)
    return current


class Meter:
    """Turns waits from moment to moment into the shares of an interval. A wait that is still under way counts up to
    now."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._now = clock()
        self._num_waiting = 0
        self._idle_share = 0.0
        self._learner_waited_s = 0.0
        self._idle_s = 0.0

    @contextmanager
    def learner_waits(self) -> Iterator[None]:
        self._advance()
        self._num_waiting += 1
        try:
            yield
        finally:
            self._advance()
            self._num_waiting -= 1

    def workers_idle(self, share: float) -> None:
        """Note that `share` of all lanes have no group to sample from now until the next call. Raise ValueError for a
        number outside 0 to 1."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{share} is not a share of the workers' lanes")
        self._advance()
        self._idle_share = share

    @property
    def elapsed_s(self) -> float:
        """The seconds since the interval began."""
        return self._clock() - self._since

    def take(self) -> Signals:
        """Return the interval that ends now, and begin the next one."""
        self._advance()
        interval_s = self._now - self._since
        waited_s, idle_s = self._learner_waited_s, self._idle_s
        self._since, self._learner_waited_s, self._idle_s = self._now, 0.0, 0.0
        return Signals(
            learner_wait_share=waited_s / interval_s if interval_s else 0.0,
            worker_wait_share=idle_s / interval_s if interval_s else 0.0,
            interval_s=interval_s,
        )

    def _advance(self) -> None:
        now = self._clock()
        elapsed_s, self._now = now - self._now, now
        self._learner_waited_s += elapsed_s if self._num_waiting else 0.0
        self._idle_s += elapsed_s * self._idle_share
