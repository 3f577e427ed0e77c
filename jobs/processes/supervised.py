"""A component whose process is replaced when it is lost, while the call that was under way is made again.

    learner = Supervised("learner", create=make, restore=restore, budget=budget, on_failure=note)
    report = await learner.call(Learner.step, batch, step, timeout_s=900, waiting_for="training step 7")

Every method called through it may be made twice. What a lost process had done of it is either gone with the process or
found again (`buffers.replay`, `actors.learner`), and `restore` brings the new process to where the run is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Protocol, TypeVar

from actors.verifier import VerifierPoolError
from jobs.processes.handles import ActorDied, Deadline, Handle
from jobs.processes.restart_budget import RestartBudget

C = TypeVar("C")

PROCESS_FAILURES = (ActorDied, Deadline, VerifierPoolError)
"""After these the process is of no use, even where it still lives."""


class CallGivenUp(RuntimeError):
    """Too many processes were lost with one call: the call must be the reason."""


OnFailure = Callable[[str, Exception], None]
"""on_failure(role, error): a process is lost, and is replaced if the budget allows it."""


class Supervised(Handle[C]):
    """A Handle around the Handle of the process that is there now."""

    def __init__(
        self,
        role: str,
        *,
        create: Callable[[], Handle[C]],
        restore: Callable[[Handle[C]], Awaitable[None]],
        budget: RestartBudget,
        on_failure: OnFailure,
        max_tries: int | None = None,
    ) -> None:
        """`restore(handle)` waits until a new process can serve, and gives it the state that it must have by now. A
        call with which `max_tries` processes were lost is given up; None tries as often as the budget allows."""
        self.name = role
        self._create = create
        self._restore = restore
        self._budget = budget
        self._on_failure = on_failure
        self._max_tries = max_tries
        self._handle = create()
        self._replacing = asyncio.Lock()
        self._generation = 0

    @property
    def first(self) -> Handle[C]:
        """The process as it is now, for calls after which it is not replaced: what a new process cannot do, it never
        will."""
        return self._handle

    async def call_named(self, method: str, args: tuple[Any, ...], *, timeout_s: float, waiting_for: str, returns: int) -> Any:
        """Raise CallGivenUp where `max_tries` processes were lost with the call; the last of them is replaced, too."""
        for tries in count(1):
            async with self._replacing:  # not while another call restores it
                handle, generation = self._handle, self._generation
            try:
                result = await handle.call_named(method, args, timeout_s=timeout_s, waiting_for=waiting_for, returns=returns)
            except PROCESS_FAILURES as error:
                await self._replace(generation, error)
                if tries == self._max_tries:
                    raise CallGivenUp(f"{tries} times a process was lost with {waiting_for}; the last time: {error}") from error
                continue
            self._budget.worked()
            return result

    async def placed(self) -> str | None:
        return await self._handle.placed()

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        return await self._handle.rss_bytes(timeout_s=timeout_s)

    def kill(self) -> None:
        self._handle.kill()

    async def _replace(self, generation: int, error: Exception) -> None:
        """Make a new process and restore it, as often as the budget allows; raise the last error beyond."""
        async with self._replacing:
            if generation != self._generation:  # another call has replaced it
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
                except BaseException:  # cancelled, or it cannot be restored: nobody must be served by half of it
                    self._handle.kill()
                    raise
                self._generation += 1
                return


class Loads(Protocol):
    """A component that has something to load before it can serve."""

    def ready(self) -> Any: ...


async def wait_until_loaded(handle: Handle[Loads], *, timeout_s: float) -> None:
    """Wait until the process has loaded its model. Raise its own error."""
    await handle.call(Loads.ready, timeout_s=timeout_s, waiting_for=f"the {handle.name} to load its model")
