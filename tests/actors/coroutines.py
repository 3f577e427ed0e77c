"""Coroutines in tests, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_S = 30


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, WAIT_S))


async def begin(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task and run it up to its first wait, so that its call to an engine is queued."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task
