"""What isolation costs a program, and how many programs of MBPP+ are judged a second.

    python -m benchmarks.sandbox                       # an empty program: bare interpreter, sandbox, limits only
    python -m benchmarks.sandbox --mbpp --data DIR     # verdicts a second through a pool of 1 and of 2 processes

DIR is the directory of data sets (by default, what REPEXP_DATA names). The empty programs run in turn, so that all ways
meet the same machine. MBPP+ comes in groups of 8 responses to problems drawn with a seed: half are the published
program, half are wrong in the last test. The output is one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from benchmarks.verifiers import GROUP_SIZE, Workload, throughput
from tasks.base import Problem
from tasks.config import TaskConfig
from tasks.programs.program_tests import read_tests
from tasks.programs.sandbox import Isolation, Limits, run
from tasks.registry import make_task

_BARE = [sys.executable, "-I", "-S", "-c", "pass"]
_WRONG_LAST = """
{reference}

_right, _left, _is_inside = {name}, {num_calls}, False
def {name}(*args):
    global _left, _is_inside
    if _is_inside: return _right(*args)
    _is_inside = True
    value = _right(*args)
    _is_inside = False
    _left -= 1
    return value if _left else "wrong"
"""


def starts(num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Measure the median milliseconds from asking for an empty program to its end, for each way to run it in turn."""
    ways: dict[str, Callable[[], Any]] = {
        "bare interpreter": lambda: subprocess.run(_BARE, check=True, stdin=subprocess.DEVNULL),
        "namespaces": lambda: run("", Limits()),
        "rlimits": lambda: run("", Limits(), isolation=Isolation.RLIMITS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in range(num_rounds):
            for name, way in ways.items():
                seconds[name] += threads.map(lambda _, way=way: _timed(way), range(num_threads))
    medians = {name: median(each[num_threads:]) for name, each in seconds.items()}  # the first round starts the launchers
    return {
        "threads": num_threads,
        "programs": num_rounds * num_threads,
        "ms": {name: round(1000 * each, 2) for name, each in medians.items()},
        "per_s": {name: round(num_threads / each, 1) for name, each in medians.items()},
        "of_a_bare_one": {name: round(each / medians["bare interpreter"], 2) for name, each in medians.items()},
    }


def _timed(way: Callable[[], Any]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def mbpp_workload(num_problems: int) -> Workload:
    config = TaskConfig(name="mbpp-plus")
    problems = list(make_task(config).problems("test"))
    chosen = random.Random(0).sample(problems, min(num_problems, len(problems)))
    return Workload(task=config, groups=[(problem, _responses(problem)) for problem in chosen])


def _responses(problem: Problem) -> list[str]:
    tests = read_tests(problem.answer)
    name = re.findall(r"(\w+)\(\*", tests.calls[0])[0]
    wrong = _WRONG_LAST.format(reference=tests.reference, name=name, num_calls=len(tests.calls))
    return [f"```python\n{program}\n```" for program in [tests.reference, wrong] * (GROUP_SIZE // 2)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description="What the sandbox costs.")
    parser.add_argument("--mbpp", action="store_true", help="MBPP+ through the verifier pool instead of empty programs")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--data", metavar="DIR", help="sets REPEXP_DATA")
    options = parser.parse_args(arguments)
    if options.data:
        os.environ["REPEXP_DATA"] = options.data
    if not options.mbpp:
        for num_threads in (1, 2):
            print(json.dumps(starts(options.rounds, num_threads)), flush=True)
        return
    workload = mbpp_workload(options.problems)
    for num_workers in (1, 2):
        print(json.dumps({"set": "mbpp-plus", **throughput(workload, num_workers)}), flush=True)


if __name__ == "__main__":
    main()
