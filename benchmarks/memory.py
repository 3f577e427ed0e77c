"""Does any process of a run grow? The memory of each over the steps, from the run's own log.

    python -m benchmarks.memory --steps 500                # trains a tiny model with the reference engine, then reports
    python -m benchmarks.memory --report runs/quickstart   # reports on a run that exists

The output is a line for each process and one JSON object. A line has the resident MiB at the end of the warm-up and at
the end of the run, and the slope in MiB a step: the least-squares fit over the steps after the warm-up. The exit code
is 1 if a slope reaches --limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jobs.directory.metrics import read_metrics

FEWEST_POINTS = 20
"""A process that lived for fewer steps after the warm-up is left out."""
SETTINGS = """
prompts_per_step = 2
responses_per_prompt = 4
checkpoint.every = 50
sampling.max_response_tokens = 8
rollout = { engine = "transformers", dtype = "float32", progress_tokens = 4 }
encoder.dtype = "float32"
bonus = { dim = 8, gate = "always" }
learner.dtype = "float32"
"""
"""Many small steps with a gradient in each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """The growth of one process over the steps after the warm-up."""

    process: str
    num_steps: int
    first_mib: float
    last_mib: float
    slope_mib_per_step: float


def growth(records: Sequence[dict[str, float]], *, warm_up: int) -> list[Growth]:
    """Return the growth of every process, the steepest first."""
    names = sorted({name for record in records for name in record if name.startswith("memory/")})
    found = []
    for name in names:
        points = np.array([(record["step"], record[name]) for record in records if record["step"] > warm_up and name in record])
        if len(points) >= FEWEST_POINTS:
            steps, mib = points.T
            slope = float(np.polyfit(steps - steps[0], mib, 1)[0])
            process = name.removeprefix("memory/").removesuffix("_mib")
            found.append(
                Growth(
                    process=process,
                    num_steps=len(points),
                    first_mib=round(float(mib[0]), 1),
                    last_mib=round(float(mib[-1]), 1),
                    slope_mib_per_step=round(slope, 4),
                )
            )
    return sorted(found, key=lambda entry: -entry.slope_mib_per_step)


def train(directory: Path, *, steps: int, model: str | None, arguments: Sequence[str]) -> Path:
    """Train as a user would, and return the run's directory."""
    if model is None:
        from tests.tiny_model import make_tiny_model

        model = make_tiny_model(directory / "model")
    run_dir = directory / "run"
    config = directory / "memory.toml"
    config.write_text(f"model = {json.dumps(model)}\nrun_dir = {json.dumps(str(run_dir))}\nsteps = {steps}\n{SETTINGS}")
    code = subprocess.run([sys.executable, "-m", "jobs.train", str(config), *arguments], stdout=sys.stderr).returncode
    if code != 0:
        raise SystemExit(f"jobs.train exited with {code}")
    return run_dir


def report(run_dir: Path, *, warm_up: int, limit: float) -> bool:
    """Print every slope, and return whether all are below `limit` MiB a step."""
    records = read_metrics(run_dir / "metrics.jsonl")
    found = growth(records, warm_up=warm_up)
    if not found:
        raise SystemExit(f"{run_dir} has fewer than {FEWEST_POINTS} steps after a warm-up of {warm_up}")
    print(f"{'process':<12}{'first MiB':>12}{'last MiB':>12}{'MiB/step':>12}")
    for entry in found:
        print(f"{entry.process:<12}{entry.first_mib:>12.1f}{entry.last_mib:>12.1f}{entry.slope_mib_per_step:>12.4f}")
    is_flat = found[0].slope_mib_per_step < limit
    summary = {"steps": len(records), "warm_up": warm_up, "limit_mib_per_step": limit, "is_flat": is_flat}
    seconds = records[-1]["time"] - records[0]["time"]
    print(json.dumps({**summary, "seconds": round(seconds, 1), "processes": [asdict(entry) for entry in found]}))
    return is_flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--warm-up", type=int, default=100, help="steps that are left out: allocators and caches fill")
    parser.add_argument("--limit", type=float, default=1.0, help="MiB a step")
    parser.add_argument("--model", help="instead of the tiny one of the tests")
    parser.add_argument("--report", type=Path, help="only report on this run directory")
    parser.add_argument("rest", nargs="*", help="after --: arguments of jobs.train")
    options = parser.parse_args()
    if options.report:
        return int(not report(options.report, warm_up=options.warm_up, limit=options.limit))
    with tempfile.TemporaryDirectory() as directory:
        run_dir = train(Path(directory), steps=options.steps, model=options.model, arguments=options.rest)
        return int(not report(run_dir, warm_up=options.warm_up, limit=options.limit))


if __name__ == "__main__":
    sys.exit(main())
