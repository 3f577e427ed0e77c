"""How a run calls a component, whether it is a Ray actor or an object in this process.

    batch, usage = await worker.call(RolloutWorker.generate, request, messages, returns=2, timeout_s=60, waiting_for="")

The method is named by the function itself, so that editors and type checkers follow the call: a wrong argument is a
type error. Only its name travels. The last of `returns` results is small and arrives as a value. The results before it
are bulk and arrive as references, which other calls take as arguments without the data passing through this process.
Types do not tell a reference from its value. Every call has a deadline that says what it waited for."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, TypeVarTuple, overload

C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


CLOSE_TIMEOUT_S = 20.0
"""How long a component may take to end what it owns, engines and processes, before it is killed."""


class Deadline(RuntimeError):
    """A call took longer than it may; the message says what was waited for."""


class ActorDied(RuntimeError):
    """The process of a component is gone; the message names it and what was waited for."""


class DataLost(RuntimeError):
    """The data behind a reference is gone, with the node that held it. The component that was called is well."""


class Handle(ABC, Generic[C_co]):
    """A component of class `C_co` somewhere: in a Ray actor, in this process, or in several processes at once."""

    name: str
    needs: str = "its resources"
    """What it waits for until it has a place, in words."""

    @overload
    async def call(
        self, method: Callable[[C_co, *Ts], Coroutine[Any, Any, R]], *args: *Ts, timeout_s: float, waiting_for: str, returns: int = 1
    ) -> R: ...
    @overload
    async def call(self, method: Callable[[C_co, *Ts], R], *args: *Ts, timeout_s: float, waiting_for: str, returns: int = 1) -> R: ...
    async def call(self, method: Callable[[C_co, *Ts], Any], *args: *Ts, timeout_s: float, waiting_for: str, returns: int = 1) -> Any:
        """Call a method of the component. Raise the component's own exception, ActorDied, Deadline or DataLost."""
        return await self.call_named(method.__name__, args, timeout_s=timeout_s, waiting_for=waiting_for, returns=returns)

    @abstractmethod
    async def call_named(self, method: str, args: tuple[Any, ...], *, timeout_s: float, waiting_for: str, returns: int) -> Any:
        """Do what `call` says, for the method of this name. Only handles call this."""

    @abstractmethod
    async def placed(self) -> str | None:
        """Wait until the component has its resources, as long as a cluster takes to grow; return the id of its node."""

    @abstractmethod
    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        """Return the memory of its process in bytes, or None where it does not answer in time."""

    @abstractmethod
    def kill(self) -> None:
        """End its process at once; calls under way raise ActorDied."""


class LocalHandle(Handle[C]):
    """An object in this process, where Ray would be in the way. References are the values themselves."""

    def __init__(self, target: C, name: str, *, max_concurrency: int | None = None) -> None:
        """`max_concurrency`: the calls of functions that run at once, each in a thread. None: one after the other."""
        self._target = target
        self.name = name
        self._free_threads = asyncio.Semaphore(max_concurrency or 1)
        self._killed = asyncio.Event()

    async def call_named(self, method: str, args: tuple[Any, ...], *, timeout_s: float, waiting_for: str, returns: int) -> Any:
        if self._killed.is_set():  # a dead process begins nothing
            raise self._died(waiting_for)
        calling = asyncio.ensure_future(self._call(method, args))
        killed = asyncio.ensure_future(self._killed.wait())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait((calling, killed), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            calling.cancel()
            raise Deadline(f"{self.name}.{method} took over {timeout_s:g} s: waited for {waiting_for}") from None
        except asyncio.CancelledError:
            calling.cancel()
            raise
        finally:
            killed.cancel()
        if self._killed.is_set():
            calling.cancel()
            raise self._died(waiting_for)
        return calling.result()

    def _died(self, waiting_for: str) -> ActorDied:
        return ActorDied(f"the {self.name} process died while the run waited for {waiting_for}")

    async def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        function = getattr(self._target, method)
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        async with self._free_threads:
            return await asyncio.to_thread(function, *args)

    async def placed(self) -> str | None:
        return None

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        return None

    def kill(self) -> None:
        self._killed.set()
