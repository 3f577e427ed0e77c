"""Does a change leave every result as it was? The same deterministic runs with two checkouts, compared bit for bit.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.unchanged --before /tmp/before          # four minutes on two cores

Each run trains the tiny model of the tests through `python -m jobs.train` with the reference engine. The command
compares parameters, optimiser state, the memory of the bonus, metrics (but for times and memory) and the rollout log.
Metrics and columns that only the new checkout has are no difference. One more run begins with the old checkout and
continues, from its checkpoint, with the new one. The exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parents[1]
STEPS, HALF = 6, 3
COMMON = f"""
model = "MODEL"
steps = {STEPS}
prompts_per_step = 2
responses_per_prompt = 4
wait_timeout_s = 120
checkpoint.every = {HALF}
sampling.max_response_tokens = 6
rollout = {{ engine = "transformers", dtype = "float32" }}
encoder.dtype = "float32"
"""
RUNS = {
    "asynchronous": """
max_policy_lag = 1
deterministic = true
bonus = { dim = 8, memory = "run", gate = "always", ridge = "auto", cut_off = "keep" }
learner = { dtype = "float32", lr = 1e-3, mini_batches = 2, advantage.combine = "advantage", advantage.beta = 0.5 }
""",
    "published": """
max_policy_lag = 0
deterministic = true
bonus = { dim = 8, memory = "prompt", gate = "always", ridge = 0.01, cut_off = "keep" }
learner.dtype = "float32"
learner.lr = 1e-3
learner.advantage = { combine = "reward", beta = 0.5 }
learner.loss = { surrogate = "gspo", kl = { where = "loss", coefficient = 0.01 } }
""",
    "without-bonus": """
max_policy_lag = 1
deterministic = true
bonus.enabled = false
learner = { dtype = "float32", lr = 1e-3, advantage.normalise = "batch", loss.correction = "trust_region_mask" }
""",
}
VARYING_METRICS = (
    "time",
    "memory/",
    "rollout/",
    "learner/tokens_per_s",
    "publication/",
    "replay/",
    "tokens/generated",
    "tokens/in_flight",
    "tokens/wasted_lost",
)
"""They depend on when something happened, also in a deterministic run."""
VARYING_COLUMNS = ("worker_id", "run_id")
DETAIL = ("leverage", "group_spread", "group_saturation_distance", "group_effective_rank", "group_length_correlation")
"""What the elliptical bonus says of each row."""
VARYING_TENSORS = ("rng",)
"""The generator of the learner's process, which nothing in these runs draws from."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the commit to compare with")
    parser.add_argument("--out", type=Path, default=Path("/tmp/unchanged"), help="where the runs go; removed first")
    parser.add_argument("--keep", action="store_true", help="do not run again what is in --out already")
    arguments = parser.parse_args()
    if not arguments.keep:
        shutil.rmtree(arguments.out, ignore_errors=True)
    model = _model(arguments.out / "model")
    differences: list[str] = []
    for name, settings in RUNS.items():
        config = arguments.out / f"{name}.toml"
        config.write_text(COMMON.replace("MODEL", model) + settings)
        before, after, resumed = (arguments.out / name / side for side in ("before", "after", "resumed"))
        _train(arguments.before, config, before)
        _train(arguments.before, config, resumed, steps=HALF)
        _train(HERE, config, after)
        _train(HERE, config, resumed)
        for side in (after, resumed):
            found = differences_of(before, side)
            print(f"{name}: {side.name}: {'the same' if not found else f'{len(found)} differences'}")
            differences += [f"{name}, {side.name}: {text}" for text in found]
    print("\n".join(differences[:50]))
    return 1 if differences else 0


def _model(directory: Path) -> str:
    sys.path.insert(0, str(HERE))
    from tests.tiny_model import make_tiny_model

    directory.mkdir(parents=True, exist_ok=True)
    return make_tiny_model(directory)


def _train(checkout: Path, config: Path, run_dir: Path, *, steps: int = STEPS) -> None:
    command = [sys.executable, "-m", "jobs.train", str(config), "--set", f"run_dir={run_dir}", "--set", f"steps={steps}"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {checkout} exited with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def differences_of(one: Path, other: Path) -> list[str]:
    """What differs between two run directories, in words."""
    found: list[str] = []
    for step in (HALF, STEPS):
        found += _tensors(one / f"checkpoints/step_{step:06d}", other / f"checkpoints/step_{step:06d}", f"checkpoint {step}")
    found += _tensors(one / "policy", other / "policy", "policy")
    found += _metrics(one, other)
    return found + _rollouts(one, other)


def _tensors(one: Path, other: Path, what: str) -> list[str]:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files, f"no tensors in {one}"
    found: list[str] = []
    for file in files:
        if not (other / file).is_file():
            found.append(f"{what}: {file} is missing")
            continue
        old, new = load_file(one / file), load_file(other / file)
        shared = old.keys() & new.keys() - set(VARYING_TENSORS)
        if old.keys() != new.keys():
            found.append(f"{what}: {file} has other tensors: {sorted(old.keys() ^ new.keys())[:5]}")
        found += [f"{what}: {file}: {name}" for name in shared if old[name].dtype != new[name].dtype or not old[name].equal(new[name])]
    return found


def _metrics(one: Path, other: Path) -> list[str]:
    old, new = ([json.loads(line) for line in (side / "metrics.jsonl").read_text().splitlines()] for side in (one, other))
    found = [] if len(old) == len(new) else [f"metrics: {len(old)} and {len(new)} steps"]
    for before, after in zip(old, new, strict=False):
        names = [name for name in sorted(before) if not name.startswith(VARYING_METRICS)]
        found += [
            f"metrics of step {before['step']}: {name} {before.get(name)} -> {after.get(name)}"
            for name in names
            if before.get(name) != after.get(name)
        ]
    return found


def _rollouts(one: Path, other: Path) -> list[str]:
    old, new = _logged(one), _logged(other)
    if len(old) != len(new):
        return [f"rollouts: {len(old)} and {len(new)} rows"]
    shared = [name for name in old[0] if name in new[0] and name not in VARYING_COLUMNS and not name.endswith("_s")]
    return [
        f"rollouts: step {a['step']}, group {a['group_id']}, column {name}"
        for a, b in zip(old, new, strict=True)
        for name in shared
        if str(a[name]) != str(b[name])
    ]


def _logged(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a rollout log, whose files may be of several schema versions, in the order of their places.

    What the elliptical bonus says of a row stands under one name each: columns before schema 2, a map since."""
    rows = [row for file in sorted((run_dir / "rollouts").iterdir()) for row in pq.read_table(file).to_pylist()]
    for row in rows:
        detail = dict(row.pop("bonus_detail", None) or ())
        row |= {name: row.get(name, detail.get(name)) for name in DETAIL}
    return sorted(rows, key=lambda row: (row["step"], row["group_id"], row["index"]))


if __name__ == "__main__":
    raise SystemExit(main())
