"""The handle of a Ray actor: see `jobs.processes.handles`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import psutil
import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.processes.handles import ActorDied, DataLost, Deadline, Handle

C = TypeVar("C")

GONE = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, RuntimeEnvSetupError)
"""What Ray raises for an actor that is dead: the class depends on what it died of."""


class RayHandle(Handle[C]):
    """A Ray actor of class `C`."""

    def __init__(self, actor: Any, name: str, *, needs: str = "its resources", group: PlacementGroup | None = None) -> None:
        """`needs`: the node that it waits for, in words. `group`: what is removed when it is killed."""
        self.actor = actor
        self.name = name
        self.needs = needs
        self._group = group
        self._has_answered = False

    async def call_named(self, method: str, args: tuple[Any, ...], *, timeout_s: float, waiting_for: str, returns: int) -> Any:
        remote = getattr(self.actor, method).options(num_returns=returns).remote(*args)
        bulk, small = ((), remote) if returns == 1 else (tuple(remote[:-1]), remote[-1])
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                value = await small
        except GONE as error:
            raise ActorDied(_death(error, self.name, f"while the run waited for {waiting_for}")) from error
        except ActorUnschedulableError as error:
            raise self._has_no_place() from error
        except ObjectLostError as error:
            raise self._data_lost(method, waiting_for) from error
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise self._data_lost(method, waiting_for) from error
            raise
        except TimeoutError:
            if not deadline.expired():  # the actor's own
                raise
            so_far = "" if self._has_answered else f"; its process has not answered yet, and needs {self.needs}"
            raise Deadline(f"{self.name}.{method} took over {timeout_s:g} s: waited for {waiting_for}{so_far}") from None
        self._has_answered = True
        return (*bulk, value) if bulk else value

    def _has_no_place(self) -> ActorDied:
        return ActorDied(f"the {self.name} process can never be placed: it needs {self.needs}")

    def _data_lost(self, method: str, waiting_for: str) -> DataLost:
        return DataLost(f"data that {self.name}.{method} needs was lost while the run waited for {waiting_for}")

    async def placed(self) -> str | None:
        try:
            node_id: str = await self.actor.__ray_call__.remote(_node_id)
            self._has_answered = True
            return node_id
        except GONE as error:
            raise ActorDied(_death(error, self.name, "while it was started")) from error
        except ActorUnschedulableError as error:
            raise self._has_no_place() from error

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        try:
            async with asyncio.timeout(timeout_s):
                rss: int = await self.actor.__ray_call__.remote(_rss_bytes)
                return rss
        except (*GONE, TimeoutError):
            return None

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)
        if self._group is not None:
            remove_placement_group(self._group)


def require_actor_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of an actor that Ray does not take. Starts nothing."""
    ray.remote(**options)(RayHandle)


def _death(error: RayError, name: str, when: str) -> str:
    """What went wrong in its constructor, or before, says more than that it is gone."""
    if "raised in its creation task" in (text := str(error).strip()) or isinstance(error, RuntimeEnvSetupError):
        return f"the {name} could not be made: {text.splitlines()[-1]}"
    if isinstance(error, OutOfMemoryError):
        return f"the {name} process was ended by Ray {when}, because the memory of its node was nearly full"
    return f"the {name} process died {when}"


def _node_id(_: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def _rss_bytes(_: Any) -> int:
    return int(psutil.Process().memory_info().rss)
