"""A set of integers that mostly arrive in order, kept as ranges. A long run costs one pair per gap, not one entry per
id."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


class IdRanges:
    """The ids seen so far, as sorted half-open ranges that neither overlap nor touch.

    seen = IdRanges()
    if group_id not in seen:
        seen.add(group_id)
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        pairs = [(int(start), int(stop)) for start, stop in ranges]
        self._starts = [start for start, _ in pairs]
        self._stops = [stop for _, stop in pairs]
        self.check_valid()

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self._starts, self._stops, strict=True))

    def __contains__(self, value: int) -> bool:
        at = bisect_right(self._starts, value) - 1
        return at >= 0 and value < self._stops[at]

    def __len__(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def add(self, value: int) -> None:
        """Add one id, joining the ranges it touches. Adding an id again changes nothing."""
        if value in self:
            return
        at = bisect_right(self._starts, value)
        touches_left = at > 0 and self._stops[at - 1] == value
        touches_right = at < len(self._starts) and self._starts[at] == value + 1
        if touches_left and touches_right:
            self._stops[at - 1] = self._stops.pop(at)
            self._starts.pop(at)
        elif touches_left:
            self._stops[at - 1] = value + 1
        elif touches_right:
            self._starts[at] = value
        else:
            self._starts.insert(at, value)
            self._stops.insert(at, value + 1)

    def add_below(self, stop: int) -> None:
        """Add every id from 0 to `stop` - 1."""
        at = bisect_right(self._starts, stop)
        if stop > 0:
            self._starts[:at], self._stops[:at] = [0], [max([stop, *self._stops[:at]])]

    def check_valid(self) -> None:
        """Raise AssertionError unless the ranges are sorted, not empty, and apart."""
        for start, stop in self.ranges:
            assert start < stop, f"the range [{start}, {stop}) is empty"
        for stop, start in zip(self._stops, self._starts[1:], strict=False):
            assert stop < start, f"ranges touch or overlap at {stop}, {start}"
