"""Freed memory that the process keeps.

glibc gives the top of its heap back to the system whenever much of it is free, as after every backward pass. The system
then clears all pages again during the next step, which takes several percent of it on a CPU
(benchmarks/results/learner.md)."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""
LARGEST = 32 << 20


def keep_freed_memory() -> None:
    """Make the process keep its heap for the next step. Blocks of more than LARGEST bytes stay outside the heap and are
    given back at once. That is also where glibc stops when it adapts the bound itself, so the heap is no other than
    before. Threads other than the main one have heaps of their own, which are given back as before. Without glibc
    nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, -1)
