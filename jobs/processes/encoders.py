"""The encoders of a run: stateless, so their number may change at any time.

pool = EncoderPool(make, 2)
batch, encode_s = await pool.encode(group_id, batch, timeout_s=900)
await pool.resize(3, timeout_s=300)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jobs.processes.handles import Deadline
from jobs.processes.supervised import Supervised


class EncoderPool:
    """Shares groups out among supervised encoders. One that leaves finishes what it has."""

    def __init__(self, make: Callable[[int], Supervised], size: int) -> None:
        """`make(number)` makes an encoder; numbers are never used twice."""
        self._make = make
        self._next_number = 0
        self.handles = [self._new() for _ in range(size)]
        self._busy: dict[str, int] = {}
        self._leaving: dict[str, Supervised] = {}
        self._idle = asyncio.Condition()

    def __len__(self) -> int:
        return len(self.handles)

    def groups_in(self, name: str) -> int:
        """Groups under way in one encoder."""
        return self._busy.get(name, 0)

    async def encode(self, group_id: int, batch: Any, *, timeout_s: float, max_tries: int | None = None) -> tuple[Any, float]:
        """The batch (a reference) with features, and the seconds it took. Raises CallGivenUp where `max_tries` encoders
        were lost with it."""
        encoder = self.handles[group_id % len(self.handles)]
        self._busy[encoder.name] = self.groups_in(encoder.name) + 1
        try:
            encoded: tuple[Any, float] = await encoder.call(
                "encode", batch, returns=2, timeout_s=timeout_s, waiting_for=f"features of group {group_id}", max_tries=max_tries
            )
            return encoded
        finally:
            self._busy[encoder.name] -= 1
            self._end_idle()
            async with self._idle:
                self._idle.notify_all()

    async def resize(self, size: int, *, timeout_s: float) -> None:
        """Grow once the new ones can serve; shrink, then wait until those that left are idle, upon which each is ended.

        Raises Deadline where they are not in time: they still end with the last group they have. New ones are ended
        where one of them cannot serve, and what it raised is raised."""
        new = [self._new() for _ in range(size - len(self.handles))]
        try:
            await asyncio.gather(*(encoder.ready(timeout_s=timeout_s) for encoder in new))
        except BaseException:
            for encoder in new:
                encoder.kill()
            raise
        self.handles += new
        leaving, self.handles = self.handles[size:], self.handles[:size]
        self._leaving |= {encoder.name: encoder for encoder in leaving}
        self._end_idle()
        try:
            async with self._idle, asyncio.timeout(timeout_s):
                await self._idle.wait_for(lambda: not self._leaving)
        except TimeoutError:
            busy = ", ".join(f"{name} has {self.groups_in(name)} groups" for name in self._leaving)
            raise Deadline(f"encoders that are to leave took over {timeout_s:g} s to finish: {busy}") from None

    def _end_idle(self) -> None:
        """End those that are to leave and have nothing more to do."""
        for name in [name for name in self._leaving if self.groups_in(name) == 0]:
            self._busy.pop(name, None)
            self._leaving.pop(name).kill()

    def _new(self) -> Supervised:
        number = self._next_number
        self._next_number += 1
        return self._make(number)
