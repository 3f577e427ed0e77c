from __future__ import annotations

import pytest
import torch

from learners import precision
from learners.forward import load_causal_lm


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Return a function that sets what Linux says about the CPU."""

    def say(text: str) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
        precision._cpuinfo.cache_clear()

    yield say
    monkeypatch.undo()
    precision._cpuinfo.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", "bfloat16"),
        ("flags\t\t: fpu amx_bf16\n", "bfloat16"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx512_bf16\n", "bfloat16"),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16\n", "float32"),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16 amx_bf16\n", "bfloat16"),
        ("Features\t: fp asimd bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx512f sse\nbugs\t\t: bf16\n", "float32"),
        ("", "float32"),
    ],
)
def test_auto_is_what_the_cpu_is_fast_in(cpu, cpuinfo, dtype):
    cpu(cpuinfo)
    assert precision.resolve_dtype("auto") == dtype
    assert precision.resolve_dtype("auto", on_gpu=True) == "bfloat16"


def test_a_machine_that_does_not_tell_computes_in_float32(cpu, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "none")
    precision._cpuinfo.cache_clear()
    assert precision.resolve_dtype("auto") == "float32"


def test_a_dtype_that_is_named_stands(cpu):
    cpu("flags : avx512_bf16\n")
    assert precision.resolve_dtype("float32", on_gpu=True) == "float32"
    cpu("flags : sse\n")
    assert precision.resolve_dtype("bfloat16") == "bfloat16"


def test_models_are_loaded_in_it(cpu, tiny_model):
    cpu("flags : sse\n")
    assert load_causal_lm(tiny_model, dtype="auto").dtype is torch.float32
    cpu("flags : amx_bf16\n")
    assert load_causal_lm(tiny_model, dtype="auto").dtype is torch.bfloat16
