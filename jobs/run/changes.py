"""What the loops of a run wait for: a condition that is looked at again after every change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from jobs.run.components import Run


class Changes:
    """Wakes the loops of one run.

    await changes.until(lambda: books.next_batch_is_in)     # in a loop
    books.inserted(request, result); await changes.notify() # in another
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._changed = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()
        self.stuck_after_s = run.config.rollout.group_timeout_s + 2 * run.config.wait_timeout_s

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`. Raise RuntimeError when nothing in the whole run has changed for longer than a group
        may take, with no call under way that has a deadline of its own.

        Not `asyncio.wait_for`: in Python 3.11 that loses a cancellation that meets a notification.
        """
        async with self._changed:
            changed_at = time.monotonic()
            while not condition():
                still_s = min(time.monotonic() - changed_at, self._run.waits.still_s())
                if still_s >= self.stuck_after_s:
                    raise RuntimeError(self._stuck())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.stuck_after_s - still_s):
                        await self._changed.wait()
                        changed_at = time.monotonic()

    def _stuck(self) -> str:
        books = self._run.books
        in_flight = ", ".join(f"{r.group_id} ({r.problem.problem_id})" for r in books.admission.in_flight[:5])
        return (
            f"nothing has moved for {self.stuck_after_s:g} s at step {self._run.step}: {len(books.held)} groups held, "
            f"{books.admission.free_slots} free slots, live version {books.admission.live_version}; "
            f"in flight: {in_flight or 'none'}"
        )

    async def notify(self) -> None:
        """Have every loop look at its condition again."""
        async with self._changed:
            self._changed.notify_all()

    def notify_soon(self) -> None:
        """Do the same from a function that cannot wait."""
        task = asyncio.ensure_future(self.notify())
        self._notes.add(task)  # held, so that it is not collected before it is done
        task.add_done_callback(self._notes.discard)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them has ended, and cancel the others. Raise what it raises."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
