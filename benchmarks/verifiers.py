"""How fast verdicts come, which rung of the ladder gives them, and how often they are wrong.

    python -m benchmarks.verifiers                              # verdicts a second through a pool of two processes
    python -m benchmarks.verifiers --rates --data DIR           # error rates over the right answers of MATH and GSM8K
    python -m benchmarks.verifiers --run runs/quickstart        # the share of a run's steps that verification took

DIR is the directory of data sets (by default, what REPEXP_DATA names). Missing data sets are skipped and reported.

Throughput is measured on groups of 8 responses to one problem, half of them right in some form and half wrong, each
after about 1000 characters of reasoning, from as many threads as there are processes. For the rates, a right answer in
one of the forms of `benchmarks.answer_variants` that is not verified is a false negative, and a perturbed answer that
is verified is a false positive. The output is one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

from actors.config import VerifierConfig
from actors.verifier import VerifierPool
from benchmarks.answer_variants import equivalents, perturbations
from jobs.directory.metrics import read_metrics
from tasks.base import NeedsWarmUp, Problem, Task, TaskError, VerdictStatus
from tasks.config import TaskConfig
from tasks.registry import make_task

GROUP_SIZE = 8
STEP_S = 8.0
RESPONSES_PER_STEP = 64
"""Both are those of the quick start (docs/measurements.md)."""
_REASONING = "We write down what is given, and go on from there step by step until the answer is found. " * 11
SPLITS = {"gsm8k": ("test_full",), "math": ("train", "dev")}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Groups of responses to the problems of one task."""

    task: TaskConfig
    groups: Sequence[tuple[Problem, list[str]]]


def boxed_workload(name: str, split: str, num_problems: int) -> Workload:
    """Make responses that state, in a box, the right answer in some form or a wrong one near it."""
    config = TaskConfig.model_validate({"name": name})
    problems = list(islice(make_task(config).problems(split), num_problems))
    rng = random.Random(0)
    return Workload(task=config, groups=[(problem, _responses(problem.answer, rng)) for problem in problems])


def _responses(answer: str, rng: random.Random) -> list[str]:
    right = [answer, *equivalents(answer).values()]
    wrong = [*perturbations(answer).values(), "0.12", "\\frac{17}{23}"]
    stated = [rng.choice(right if number % 2 else wrong) for number in range(GROUP_SIZE)]
    return [f"{_REASONING}So the answer is $\\boxed{{{text}}}$." for text in stated]


def arithmetic_workload(num_problems: int) -> Workload:
    config = TaskConfig()
    problems = islice(make_task(config).problems("train"), num_problems)
    return Workload(task=config, groups=[(problem, [f"{problem.answer}.", "I think it is 3."] * (GROUP_SIZE // 2)) for problem in problems])


WORKLOADS: Mapping[str, Callable[[int], Workload]] = {
    "arithmetic": arithmetic_workload,
    "gsm8k": lambda num_problems: boxed_workload("gsm8k", "test_full", num_problems),
    "math500": lambda num_problems: boxed_workload("math", "dev", num_problems),
}
"""Makers of workloads by name. They take the number of problems and raise TaskError if their data are missing."""


def throughput(workload: Workload, num_workers: int) -> dict[str, Any]:
    """Measure a pool that has warmed up: verdicts a second, seconds inside the verifier, rungs and statuses."""
    with VerifierPool(workload.task, VerifierConfig(num_workers=num_workers)) as pool, ThreadPoolExecutor(num_workers) as threads:
        warm_up, timed = workload.groups[: 4 * num_workers], workload.groups[4 * num_workers :]  # of other problems: some cache these
        list(threads.map(lambda group: pool.verify(*group), warm_up))
        started = time.perf_counter()
        found = [verdict for verdicts in threads.map(lambda group: pool.verify(*group), timed) for verdict in verdicts]
        wall_s = time.perf_counter() - started
    seconds = sorted(verdict.elapsed_s for verdict in found)
    decided = Counter(verdict.detail for verdict in found if verdict.detail in ("spelling", "value", "symbolic"))
    return {
        "workers": num_workers,
        "verdicts": len(found),
        "per_s": round(len(found) / wall_s, 1),
        "verdict_ms": {"mean": _ms(mean(seconds)), "median": _ms(median(seconds)), "p99": _ms(seconds[int(0.99 * len(seconds))])},
        "rungs": {rung: round(count / len(found), 4) for rung, count in sorted(decided.items())},
        "statuses": dict(Counter(verdict.status.value for verdict in found)),
        "share_of_a_quickstart_step": round(RESPONSES_PER_STEP * wall_s / len(found) / STEP_S, 6),
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


# ---- false rates


def rates(task: Task, problems: Iterable[Problem]) -> dict[str, Any]:
    """Judge the right answers of all problems as they are, in other forms and perturbed.

    The judging runs in this process, because none of these answers hangs.
    """
    if isinstance(task, NeedsWarmUp):
        task.warm_up()
    counts: dict[str, Counter[str]] = {"as published": Counter(), "equivalent": Counter(), "perturbed": Counter()}
    by_rule: Counter[str] = Counter()
    examples: list[str] = []
    for problem in problems:
        for kind, rule, text in variants(problem.answer):
            is_correct = task.verify(problem, f"\\boxed{{{text}}}").status is VerdictStatus.CORRECT
            counts[kind]["all"] += 1
            if is_correct is (kind == "perturbed"):
                counts[kind]["wrong"] += 1
                by_rule[rule] += 1
                examples += [f"{rule}: {problem.answer} / {text}"] if len(examples) < 40 else []
    return {
        **{kind: {"answers": count["all"], "misjudged": count["wrong"]} for kind, count in counts.items()},
        "false_negative_rate": counts["equivalent"]["wrong"] / max(1, counts["equivalent"]["all"]),
        "false_positive_rate": counts["perturbed"]["wrong"] / max(1, counts["perturbed"]["all"]),
        "misjudged_by_rule": dict(by_rule),
        "examples": examples,
    }


def variants(answer: str) -> Iterator[tuple[str, str, str]]:
    yield "as published", "as published", answer
    yield from (("equivalent", rule, text) for rule, text in equivalents(answer).items())
    yield from (("perturbed", rule, text) for rule, text in perturbations(answer).items())


def share_of_steps(run_dir: str) -> dict[str, float]:
    """Return the seconds inside the verifiers of a run over the seconds of its steps."""
    records = [record for record in read_metrics(Path(run_dir) / "metrics.jsonl") if "time/verify_s" in record and "time/step_s" in record]
    verify_s, step_s = (sum(record[name] for record in records) for name in ("time/verify_s", "time/step_s"))
    return {"steps": len(records), "verify_s": verify_s, "step_s": step_s, "share": verify_s / step_s}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verifiers", description="Throughput and false rates of the verifiers.")
    parser.add_argument("--sets", default=",".join(WORKLOADS), help="workloads, separated by commas")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rates", action="store_true", help="false rates instead of throughput")
    parser.add_argument("--run", metavar="RUN_DIR", help="the share of a run's steps instead")
    parser.add_argument("--data", metavar="DIR", help="sets REPEXP_DATA")
    options = parser.parse_args(arguments)
    if options.data:
        os.environ["REPEXP_DATA"] = options.data
    if options.run:
        print(json.dumps(share_of_steps(options.run)))
    elif options.rates:
        for name, splits in SPLITS.items():
            _print(name, lambda name=name, splits=splits: _rates_of(name, splits))
    else:
        for name in options.sets.split(","):
            _print(name, lambda name=name: throughput(WORKLOADS[name](options.problems), options.workers))


def _rates_of(name: str, splits: Sequence[str]) -> dict[str, Any]:
    task = make_task(TaskConfig.model_validate({"name": name}))
    return rates(task, [problem for split in splits for problem in task.problems(split)])


def _print(name: str, measure: Callable[[], dict[str, Any]]) -> None:
    try:
        print(json.dumps({"set": name, **measure()}, ensure_ascii=False), flush=True)
    except TaskError as error:
        print(json.dumps({"set": name, "left_out": str(error)}), flush=True)


if __name__ == "__main__":
    main()
