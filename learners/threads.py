"""CPU threads of a process that computes. Imports no torch, because plans are made without it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Threads = Annotated[int, Field(ge=1)] | Literal["auto"]
"""auto: the cores of this machine, shared evenly by the job's processes that compute on CPU; 1 beside a GPU."""


def resolve_threads(threads: Threads, *, cores: float = 1, sharing: int = 1, on_gpu: bool = False) -> int:
    """Return `threads`, or what "auto" is for one of `sharing` processes on so many cores: at least 1. An object that
    is made without its job is told no cores, so "auto" is 1 there."""
    if threads != "auto":
        return threads
    return 1 if on_gpu else max(1, int(cores / sharing))
