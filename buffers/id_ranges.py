"""A set of integers that mostly arrive in order, kept as ranges: a long run costs a pair a gap, not an entry an id."""

from bisect import bisect_right
from collections.abc import Iterable


class IdRanges:
    """The ids seen so far, as sorted half-open ranges that neither overlap nor touch.

    seen = IdRanges()
    if group_id not in seen:
        seen.add(group_id)"""

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
        joins_left = at > 0 and self._stops[at - 1] == value
        joins_right = at < len(self._starts) and self._starts[at] == value + 1
        start = self._starts[at - 1] if joins_left else value
        stop = self._stops[at] if joins_right else value + 1
        joined = slice(at - joins_left, at + joins_right)
        self._starts[joined], self._stops[joined] = [start], [stop]

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
