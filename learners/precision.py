"""Which floating-point type a machine computes fast in. Imports no torch, because plans are made without it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float32"]
"""auto: bfloat16 on a GPU and on a CPU that is faster with it, else float32."""

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""The instructions' names in Linux, on x86 (the first two) and on ARM."""
SLOW_ON = {"avx512_bf16": "GenuineIntel"}
"""The vendor on whose CPUs bfloat16 products take about twice as long as float32 ones (docs/measurements.md)."""


def resolve_dtype(dtype: Dtype, *, on_gpu: bool = False) -> Literal["bfloat16", "float32"]:
    """Return `dtype`, or what "auto" is here: emulated bfloat16 takes 5 to 11 times longer (docs/measurements.md)."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_gpu or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies faster in bfloat16 than in float32."""
    return bool(bf16_instructions())


def bf16_instructions() -> list[str]:
    """Return the instructions, sorted, with which this CPU multiplies faster in bfloat16 than in float32."""
    text = _cpuinfo()
    flags, vendors = BF16_FLAGS.intersection(_words("flags|Features", text)), _words("vendor_id", text)
    return sorted(flag for flag in flags if SLOW_ON.get(flag) not in vendors)


def _words(key: str, text: str) -> list[str]:
    found = re.search(rf"^(?:{key})\s*:(.*)$", text, re.MULTILINE)
    return found.group(1).split() if found else []


@functools.cache
def _cpuinfo() -> str:
    """Return what Linux says about the CPU; an empty text if it cannot be read."""
    try:
        return CPUINFO.read_text()
    except OSError:
        return ""
