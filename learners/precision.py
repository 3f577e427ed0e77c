"""Which floating-point type a machine computes fast in. Imports no torch: plans are made without it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float32"]
"""auto: bfloat16 on a GPU and on a CPU whose instructions for it make it the faster one, else float32."""

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Of x86 (the first two) and of ARM, as Linux names them."""
SLOW_ON = {"avx512_bf16": "GenuineIntel"}
"""Whose bfloat16 products take longer than those in float32: about twice as long, measured (docs/measurements.md)."""


def resolve_dtype(dtype: Dtype, *, on_gpu: bool = False) -> Literal["bfloat16", "float32"]:
    """`dtype`, with "auto" decided for this machine. Emulated bfloat16 costs a factor of three to five
    (docs/measurements.md)."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_gpu or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether it is worth using."""
    return bool(bf16_instructions())


def bf16_instructions() -> list[str]:
    """Those of this CPU, sorted, that multiply faster in bfloat16 than it does in float32."""
    text = _cpuinfo()
    return sorted(
        flag for flag in BF16_FLAGS.intersection(_words("flags|Features", text)) if SLOW_ON.get(flag) not in _words("vendor_id", text)
    )


def _words(key: str, text: str) -> list[str]:
    found = re.search(rf"^(?:{key})\s*:(.*)$", text, re.MULTILINE)
    return found.group(1).split() if found else []


@functools.cache
def _cpuinfo() -> str:
    """What Linux says of the CPU; empty where it cannot be told."""
    try:
        return CPUINFO.read_text()
    except OSError:
        return ""
