"""The encoders of a run: they have no state, so their number may change at any time.

pool = EncoderPool(make, 2)
batch, encode_s = await pool.encode(group_id, batch, timeout_s=900)
await pool.resize(3, timeout_s=300)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from actors.encoder import HiddenStateEncoder
from jobs.processes.handles import Deadline
from jobs.processes.supervised import Supervised, wait_until_loaded


class EncoderPool:
    """Shares out groups among supervised encoders. An encoder that leaves finishes the groups it has."""

    def __init__(self, make: Callable[[int], Supervised[HiddenStateEncoder]], size: int) -> None:
        """`make(number)` starts an encoder; no number is used twice."""
        self._make = make
        self._next_number = 0
        self.handles = [self._new() for _ in range(size)]
        self._busy: dict[str, int] = {}
        self._leaving: dict[str, Supervised[HiddenStateEncoder]] = {}
        self._idle = asyncio.Condition()

    def __len__(self) -> int:
        return len(self.handles)

    def groups_in(self, name: str) -> int:
        """Return how many groups are under way in one encoder."""
        return self._busy.get(name, 0)

    async def encode(self, group_id: int, batch: Any, *, timeout_s: float) -> tuple[Any, float]:
        """Return the batch (a reference) with features, and the seconds it took. Raise CallGivenUp where too many
        encoders were lost with it."""
        encoder = self.handles[group_id % len(self.handles)]
        self._busy[encoder.name] = self.groups_in(encoder.name) + 1
        try:
            return await encoder.call(
                HiddenStateEncoder.encode, batch, returns=2, timeout_s=timeout_s, waiting_for=f"features of group {group_id}"
            )
        finally:
            self._busy[encoder.name] -= 1
            self._end_idle()
            async with self._idle:
                self._idle.notify_all()

    async def resize(self, size: int, *, timeout_s: float) -> None:
        """Grow once the new encoders can serve; or shrink, and wait until those that leave are idle, which ends them.

        Raise Deadline where they are not idle in time: they still end after their last group. Where a new encoder
        cannot serve, all new ones are ended and its error is raised."""
        new = [self._new() for _ in range(size - len(self.handles))]
        try:
            await asyncio.gather(*(wait_until_loaded(encoder.first, timeout_s=timeout_s) for encoder in new))
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
        for name in [name for name in self._leaving if self.groups_in(name) == 0]:
            self._busy.pop(name, None)
            self._leaving.pop(name).kill()

    def _new(self) -> Supervised[HiddenStateEncoder]:
        number = self._next_number
        self._next_number += 1
        return self._make(number)
