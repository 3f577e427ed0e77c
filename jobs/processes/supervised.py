"""A component whose process is replaced when it is lost, and the call that was under way made again.

    learner = Supervised("learner", create=factory.learner, restore=restore_learner, budget=LossBudget("learner", config), on_loss=note)
    report = await learner.call("step", batch, step, timeout_s=900, waiting_for="training step 7")

Every method called through it may be made twice: what a lost process had done of it is either gone with the process or
found again (`buffers.replay`, `actors.learner`), and `restore` brings the new process to where the run is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from actors.verifier import VerifierPoolError
from jobs.processes.handles import ActorDied, Deadline, Handle
from jobs.processes.restart_budget import RestartBudget

PROCESS_FAILURES = (ActorDied, Deadline, VerifierPoolError)
"""After these the process is of no use, even where it still lives."""

CLOSE_TIMEOUT_S = 20.0


class CallGivenUp(RuntimeError):
    """So many processes were lost with one call that it must be the call."""


OnFailure = Callable[[str, Exception], None]


class Supervised:
    """A Handle around a Handle."""

    def __init__(
        self,
        role: str,
        *,
        create: Callable[[], Handle],
        restore: Callable[[Handle], Awaitable[None]],
        budget: RestartBudget,
        on_failure: OnFailure,
    ) -> None:
        """`restore(handle)` waits until a new process can serve and gives it the state it must have by now."""
        self.name = role
        self._create = create
        self._restore = restore
        self._budget = budget
        self._on_failure = on_failure
        self._handle = create()
        self._replacing = asyncio.Lock()
        self._generation = 0

    async def ready(self, *, timeout_s: float) -> None:
        """Wait for the first process, which is not replaced: what it cannot do now it will never do."""
        await self._handle.call("ready", timeout_s=timeout_s, waiting_for=f"the {self.name} to load its model")

    async def call(
        self, method: str, *args: Any, timeout_s: float, waiting_for: str, returns: int = 1, max_tries: int | None = None
    ) -> Any:
        """Raises CallGivenUp where `max_tries` processes were lost with it; the last of them is replaced, too."""
        for tries in count(1):
            async with self._replacing:  # not while somebody restores it
                handle, generation = self._handle, self._generation
            try:
                result = await handle.call(method, *args, timeout_s=timeout_s, waiting_for=waiting_for, returns=returns)
            except PROCESS_FAILURES as error:
                await self._replace(generation, error)
                if tries == max_tries:
                    raise CallGivenUp(f"{tries} times a process was lost with {waiting_for}; the last time: {error}") from error
                continue
            self._budget.worked()
            return result

    async def close(self) -> None:
        """Have it end what it owns, where it still can."""
        await self._handle.call("close", timeout_s=CLOSE_TIMEOUT_S, waiting_for=f"the {self.name} to close")

    async def placed(self) -> str | None:
        return await self._handle.placed()

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        return await self._handle.rss_bytes(timeout_s=timeout_s)

    def kill(self) -> None:
        self._handle.kill()

    async def _replace(self, generation: int, error: Exception) -> None:
        """Make a new process and restore it, as often as the budget allows; raises the last error beyond."""
        async with self._replacing:
            if generation != self._generation:  # another call has seen to it
                return
            while True:
                self._on_failure(self.name, error)
                delay_s = self._budget.failed(error)
                self._handle.kill()
                await asyncio.sleep(delay_s)
                self._handle = self._create()
                try:
                    await self._restore(self._handle)
                except PROCESS_FAILURES as next_error:
                    error = next_error
                    continue
                self._generation += 1
                return
