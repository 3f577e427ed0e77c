"""The handle of a Ray actor: see `jobs.handles`."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError

from jobs.handles import Deadline


class ActorDied(RuntimeError):
    """The process of an actor is gone; the message names it and what was waited for."""


class RayHandle:
    """A Ray actor."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor = actor
        self.name = name

    async def call(self, method: str, *args: Any, timeout_s: float, waiting_for: str, returns: int = 1) -> Any:
        remote = getattr(self.actor, method).options(num_returns=returns).remote(*args)
        bulk, small = ((), remote) if returns == 1 else (tuple(remote[:-1]), remote[-1])
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                value = await small
        except RayActorError as error:
            raise ActorDied(f"the {self.name} process died while the run waited for {waiting_for}") from error
        except TimeoutError:
            if not deadline.expired():  # the actor's own
                raise
            raise Deadline(f"{self.name}.{method} took over {timeout_s:g} s: waited for {waiting_for}") from None
        return (*bulk, value) if bulk else value
