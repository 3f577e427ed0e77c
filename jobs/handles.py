"""How the controller calls a component, whether it is a Ray actor or an object in this process.

    batch, usage = await worker.call("generate", request, messages, returns=2, timeout_s=60, waiting_for="group 7 on rollout-0")

The last of `returns` results is small and comes as a value; the ones before it are bulk and come as references, which other
calls take as arguments without the data passing through the controller. Every call has a deadline that says what it waited for.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Protocol


class Deadline(RuntimeError):
    """A call took longer than it may; the message says what was waited for."""


class Handle(Protocol):
    name: str

    async def call(self, method: str, *args: Any, timeout_s: float, waiting_for: str, returns: int = 1) -> Any: ...


class LocalHandle:
    """An object in this process: used by tests and wherever Ray would be in the way. References are the values themselves."""

    def __init__(self, target: Any, name: str) -> None:
        self._target = target
        self.name = name
        self._one_at_a_time = asyncio.Lock()

    async def call(self, method: str, *args: Any, timeout_s: float, waiting_for: str, returns: int = 1) -> Any:
        function = getattr(self._target, method)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                if inspect.iscoroutinefunction(function):
                    return await function(*args)
                async with self._one_at_a_time:
                    return await asyncio.to_thread(function, *args)
        except TimeoutError:
            if not deadline.expired():  # the component's own
                raise
            raise Deadline(f"{self.name}.{method} took over {timeout_s:g} s: waited for {waiting_for}") from None
