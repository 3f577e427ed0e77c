"""A component in a process of its own, without Ray.

    handle = ProcessHandle("learner-1", LearnerRank, 1, model, config, device="cpu")
    handle.signal(signal.SIGKILL)
    ProcessHandle.end_all()

Processes are forked from one that has imported what takes seconds to import (`tests.learners.rank_processes`).
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

from jobs.processes.description import Component
from jobs.processes.handles import ActorDied, Deadline, Handle
from tests.learners.rank_processes import CONTEXT


class ProcessHandle(Handle[Any]):
    all: ClassVar[list[ProcessHandle]] = []

    def __init__(self, name: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.name = name
        self.when_asked: Callable[[str, tuple[Any, ...]], None] = lambda method, args: None
        """Called, in a thread, once the process has been asked and has not answered."""
        self._ours, theirs = CONTEXT.Pipe()
        self.process: BaseProcess = CONTEXT.Process(target=_serve, args=(theirs, make, args, kwargs), name=name, daemon=True)
        self.process.start()
        theirs.close()
        self.all.append(self)

    @classmethod
    def launch(cls, component: Component[Any]) -> ProcessHandle:
        """Start a component as Ray would."""
        return cls(component.name, component.cls, *component.args, **component.kwargs, **component.across_processes)

    async def call_named(self, method: str, args: tuple[Any, ...], *, timeout_s: float, waiting_for: str, returns: int) -> Any:
        try:
            went_well, value = await asyncio.to_thread(self._exchange, method, args, timeout_s)
        except (EOFError, ConnectionError):
            raise ActorDied(f"the {self.name} process died while the run waited for {waiting_for}") from None
        except TimeoutError:
            raise Deadline(f"{self.name}.{method} took over {timeout_s:g} s: waited for {waiting_for}") from None
        if not went_well:
            raise value
        return value

    def _exchange(self, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        self._ours.send_bytes(pickle.dumps((method, args)))
        self.when_asked(method, args)
        if not self._ours.poll(timeout_s):
            raise TimeoutError
        return pickle.loads(self._ours.recv_bytes())

    async def placed(self) -> str | None:
        return None

    async def rss_bytes(self, *, timeout_s: float) -> int | None:
        return None

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    @classmethod
    def end_all(cls) -> None:
        """Every process there ever was."""
        while cls.all:
            handle = cls.all.pop()
            handle.kill()
            handle.process.join(5)
            assert not handle.process.is_alive()


def _serve(connection: Connection, make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    component = make(*args, **kwargs)
    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = True, getattr(component, method)(*arguments)
        except Exception as error:
            answer = False, error
        connection.send_bytes(pickle.dumps(answer))
