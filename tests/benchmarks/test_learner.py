from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
WITHOUT = """
import runpy, sys
sys.modules["ray"] = sys.modules["vllm"] = None  # as if they were not installed: any import of them fails
sys.argv = ["learner", *sys.argv[1:]]
runpy.run_module("benchmarks.learner", run_name="__main__")
"""


def test_the_benchmark_of_the_learner_runs_with_neither_ray_nor_vllm() -> None:
    """On a model of no size, of which every figure but its speed means something."""
    command = [sys.executable, "-c", WITHOUT, "--device", "cpu", "--model", "qwen-tiny", "--dtype", "float32"]
    command += ["--shape", "quickstart", "--repeats", "1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [line["shape"] for line in found] == ["quickstart"]
    assert found[0]["tokens"] > 500 and found[0]["gradient_difference"] < 1e-4
    for key in ("tokens_per_s", "model_gflops", "share", "peak_gib", "matrix_share"):
        assert found[0][key].keys() == {"ours", "padded"} and all(value >= 0 for value in found[0][key].values()), key
    assert found[0]["machine"].keys() == {"square", "of_step", "of_step_s"} and all(value > 0 for value in found[0]["machine"].values())
