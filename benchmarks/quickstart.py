"""The quick start on several seeds: does the reward rise, where does the time go, do engine and learner agree?

    python -m benchmarks.quickstart --seeds 0,1,2 --out runs/bench    # trains, then reports (about 7 minutes a seed)
    python -m benchmarks.quickstart --report runs/bench/seed0 ...      # reports on runs that exist

The output is one JSON object a run: the reward of every step, the first three against the last three, seconds by kind
as means over the steps after the third that have them, and the mismatch of log-probs at lag 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from jobs.directory.metrics import read_metrics
from jobs.screens.summary import window_means

WARM_STEPS = 3
TIMES = (
    "time/step_s",
    "time/learn_s",
    "time/wait_for_batch_s",
    "time/encode_s",
    "time/generate_s",
    "time/plumbing_s",
    "time/checkpoint_s",
    "time/load_weights_s",
    "rollout/idle_s",
)
MISMATCH = ("mean", "p95", "max", "outside_band")


def train(seed: int, run_dir: Path, arguments: list[str]) -> dict[str, float]:
    """Run the quick start as a user would. Return its wall seconds and the peak memory of all its processes in GiB."""
    command = [sys.executable, "-m", "jobs.train", "configs/quickstart.toml", "--set", f"run_dir={run_dir}", "--set", f"seed={seed}"]
    started = time.monotonic()
    process = subprocess.Popen(command + arguments)
    peak = [0.0]
    watcher = threading.Thread(target=_watch_memory, args=(process.pid, peak), daemon=True)
    watcher.start()
    code = process.wait()
    if code != 0:
        raise SystemExit(f"seed {seed}: jobs.train exited with {code}")
    return {"wall_s": round(time.monotonic() - started, 1), "peak_gib": round(peak[0], 2)}


def _watch_memory(pid: int, peak: list[float]) -> None:
    """Note the proportional set size (shared pages counted once) of the process tree, twice a second."""
    while psutil.pid_exists(pid):
        total = 0
        try:
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total / 2**30)
        time.sleep(0.5)


def report(run_dir: Path) -> dict[str, object]:
    history = read_metrics(run_dir / "metrics.jsonl")
    means = window_means(history, "reward/mean")
    if means is None:
        raise SystemExit(f"{run_dir}: no response could be scored")
    before, after = means
    warm = history[WARM_STEPS:]

    def mean(name: str) -> float | None:
        values = [record[name] for record in warm if name in record]
        return round(sum(values) / len(values), 3) if values else None

    lag0 = [record for record in history if "mismatch_lag0/mean" in record]
    mismatch = {kind: round(max(r[f"mismatch_lag0/{kind}"] for r in lag0), 3) for kind in MISMATCH} if lag0 else None
    return {
        "run": str(run_dir),
        "steps": len(history),
        "reward": [round(record["reward/mean"], 2) for record in history if "reward/mean" in record],
        "first3": round(before, 3),
        "last3": round(after, 3),
        "gain": round(after - before, 3),
        "training_s": round(history[-1]["time"] - history[0]["time"] + history[0]["time/step_s"], 1),
        "mean_seconds_after_warmup": {name: mean(name) for name in TIMES if mean(name) is not None},
        "steps_with_lag0_tokens": len(lag0),
        "worst_mismatch_lag0": mismatch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--report", type=Path, nargs="*", help="only report on these run directories")
    parser.add_argument("rest", nargs="*", help="after --: arguments of jobs.train, for example --set max_policy_lag=0 --synchronous")
    options = parser.parse_args()
    if options.report:
        for run_dir in options.report:
            print(json.dumps(report(run_dir)))
        return
    for seed in map(int, options.seeds.split(",")):
        run_dir = options.out / f"seed{seed}"
        process = train(seed, run_dir, options.rest)
        print(json.dumps({**report(run_dir), **process}), flush=True)


if __name__ == "__main__":
    main()
