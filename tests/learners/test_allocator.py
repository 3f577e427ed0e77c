from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from learners.allocator import keep_freed_memory
if sys.argv[1] == "keeping":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault is then a page of 4 KiB, whatever the machine's setting
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(4 << 20) for _ in range(40)]
    for block in blocks:
        ctypes.memset(block, 1, 4 << 20)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 40 * (4 << 20) // 4096


def faults(how: str) -> int:
    """Return the page faults of blocks of 160 MiB in all, when as many were freed before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back at once")
def test_new_blocks_take_the_place_of_freed_ones() -> None:
    assert faults("as ever") > 0.9 * PAGES
    assert faults("keeping") < 0.1 * PAGES
