"""Which floating-point type a machine computes fast in. Imports no torch: plans are made without it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float32"]
"""auto: bfloat16 on a GPU and on a CPU with instructions for it, else float32."""

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Of x86 (the first two) and of ARM, as Linux names them."""


def resolve_dtype(dtype: Dtype, *, on_gpu: bool = False) -> Literal["bfloat16", "float32"]:
    """`dtype`, with "auto" decided for this machine. Emulated bfloat16 costs a factor of three to five (docs/measurements.md)."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_gpu or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    return not BF16_FLAGS.isdisjoint(cpu_flags())


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """What Linux says of the CPU's instructions; empty where it cannot be told."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return tuple(found.group(1).split()) if found else ()
