"""How the controller calls a component, whether it is a Ray actor or an object in this process.

    batch, usage = await worker.call("generate", request, messages, returns=2, timeout_s=60, waiting_for="group 7 on rollout-0")

The last of `returns` results is small and comes as a value; the ones before it are bulk and come as references, which
other calls take as arguments without the data passing through the controller. Every call has a deadline that says what
it waited for."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Protocol


class Deadline(RuntimeError):
    """A call took longer than it may; the message says what was waited for."""


class ActorDied(RuntimeError):
    """The process of a component is gone; the message names it and what was waited for."""


class DataLost(RuntimeError):
    """What a reference pointed to is gone, with the node that held it; who was called is well."""


class Handle(Protocol):
    name: str

    async def call(self, method: str, *args: Any, timeout_s: float, waiting_for: str, returns: int = 1) -> Any:
        """Raises the component's own exception, ActorDied, Deadline or DataLost."""
        ...

    async def placed(self) -> str | None:
        """Until the component has the resources it asks for, which is as long as a cluster takes to grow; then the id
        of its node."""
        ...

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        """Memory of its process; None where it does not say in time."""
        ...

    def kill(self) -> None:
        """End its process at once; calls under way raise ActorDied."""
        ...


class LocalHandle:
    """An object in this process: used by tests and wherever Ray would be in the way. References are the values
    themselves."""

    def __init__(self, target: Any, name: str) -> None:
        self._target = target
        self.name = name
        self._one_at_a_time = asyncio.Lock()
        self._killed = asyncio.Event()

    async def call(self, method: str, *args: Any, timeout_s: float, waiting_for: str, returns: int = 1) -> Any:
        if self._killed.is_set():  # the dead begin nothing
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
        async with self._one_at_a_time:
            return await asyncio.to_thread(function, *args)

    async def placed(self) -> str | None:
        return None

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        return None

    def kill(self) -> None:
        self._killed.set()
