"""Seconds of a training step of 64 responses: this system against Hugging Face TRL's GRPOTrainer.

    python3 -m venv /tmp/trl && /tmp/trl/bin/pip install torch==2.13.0 trl==1.16.0           # an environment of its own
    python -m benchmarks.end_to_end --trl /tmp/trl/bin/python --steps 8 --rounds 2

Both train the embedded model on the same prompts of the quick start: 8 prompts x 8 responses of at most 20 tokens a
step, temperature 1, the same learning rate, no KL term, the same precision, two CPU threads in all (so run it on two
cores). Ours is the asynchronous quick start with its encoder and the exploration bonus, which TRL does not have. Its
time is from the end of one step to the end of the next. Steps before --warm-up do not count.

The runs take turns on one machine. The output is a line for each run, then medians and their ratio as one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.config import RunConfig, load_config
from jobs.directory.metrics import read_metrics
from learners.models import resolve_model
from learners.precision import resolve_dtype
from tasks.registry import make_task

CONFIG = "configs/quickstart.toml"


def ours(run_dir: Path, steps: int, *, arguments: list[str], checkout: str | None = None) -> list[float]:
    """Return the seconds of every step, by this tree or by the one at `checkout`."""
    command = [sys.executable, "-m", "jobs.train", CONFIG, "--set", f"run_dir={run_dir}", "--set", f"steps={steps}"]
    subprocess.run([*command, "--set", f"checkpoint.every={steps}", *arguments], check=True, stdout=subprocess.DEVNULL, cwd=checkout)
    return [record["time/step_s"] for record in read_metrics(run_dir / "metrics.jsonl")]


def trl(python: str, directory: Path, config: RunConfig, steps: int, *, rows_per_pass: int, threads: int) -> list[float]:
    """Return the seconds of every step of TRL's trainer."""
    task = make_task(config.task)
    problems = itertools.islice(task.problems("train"), steps * config.prompts_per_step)
    settings = {
        "model": resolve_model(config.model),
        "prompts": [{"prompt": task.prompt(problem), "answer": problem.answer} for problem in problems],
        "steps": steps,
        "prompts_per_step": config.prompts_per_step,
        "group_size": config.responses_per_prompt,
        "max_tokens": config.sampling.max_response_tokens,
        "lr": config.learner.lr,
        "dtype": resolve_dtype(config.learner.dtype),
        "threads": threads,
        "rows_per_pass": rows_per_pass,
    }
    file = directory / "settings.json"
    file.write_text(json.dumps(settings))
    script = str(Path(__file__).with_name("trl_grpo.py"))
    result = subprocess.run([python, script, str(file)], check=True, capture_output=True, text=True)
    step_s: list[float] = json.loads(result.stdout.strip().splitlines()[-1])["step_s"]
    return step_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True, metavar="PYTHON", help="the interpreter of an environment that has trl")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--trl-steps", type=int, help="steps of TRL's runs, if other than --steps")
    parser.add_argument("--before", metavar="DIR", help="another checkout of this project, timed beside this one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each run that are not counted")
    parser.add_argument("--rows-per-pass", type=int, default=16, help="TRL's per_device_train_batch_size; try 8 to 64")
    parser.add_argument("--threads", type=int, default=2, help="TRL's threads")
    parser.add_argument("rest", nargs="*", help="after --: arguments of jobs.train")
    options = parser.parse_args()
    config = load_config(CONFIG)
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            runs = {"ours": ours(directory / "run", options.steps, arguments=options.rest)}
            if options.before:
                runs["before"] = ours(directory / "before", options.steps, arguments=options.rest, checkout=options.before)
            steps = options.trl_steps or options.steps
            runs["trl"] = trl(options.trl, directory, config, steps, rows_per_pass=options.rows_per_pass, threads=options.threads)
        for who, step_s in runs.items():
            found.setdefault(who, []).extend(step_s[options.warm_up :])
            print(f"round {number}  {who:<6} {' '.join(f'{seconds:.1f}' for seconds in step_s)}", flush=True)
    medians = {who: statistics.median(step_s) for who, step_s in found.items()}
    ratios = {f"{who}_over_ours": median / medians["ours"] for who, median in medians.items() if who != "ours"}
    print(json.dumps({"median_step_s": medians, **ratios}))


if __name__ == "__main__":
    main()
