"""How often Math-Verify alone misjudges, beside our verifier, over the same answers and with the same deadline.

    python -m benchmarks.math_verify_alone --data DIR                   # the corpus and the table of forms
    python -m benchmarks.math_verify_alone --data DIR --cases TESTS     # also the cases of Math-Verify's own tests

DIR is the directory of data sets, and TESTS the folder tests/ of Math-Verify's source distribution. A sample is judged
with `--share 0.1`. Each verdict is given in a process that is killed at the deadline; a killed one accepts nothing. The
rates over the table are those of `benchmarks/verifiers.py --rates`, with Wilson's interval of 95 %. The output is one
JSON object a line.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.config import VerifierConfig
from actors.verifier import VerifierPool
from benchmarks.verifiers import SPLITS, variants
from tasks.base import Problem, Task, Verdict, VerdictStatus, judge
from tasks.config import TaskConfig
from tasks.hendrycks_math import HendrycksMath, MathConfig
from tasks.mathematics.verify import stated_answer
from tasks.registry import make_task

CORPUS = Path(__file__).parents[1] / "tests" / "tasks" / "mathematics" / "corpus"
_DEADLINE_S = 5.0
_MAX_EXAMPLES = 40


class MathVerifyAlone(Task):
    """Math-Verify as its page shows it: `parse` and `verify`, with right answers in dollar signs."""

    name: str = "math-verify"
    deadline_s: float = _DEADLINE_S

    def problems(self, split: str) -> Iterator[Problem]:
        return iter(())

    def verify(self, problem: Problem, response: str) -> Verdict:
        from math_verify import parse, verify

        found = parse(response, parsing_timeout=None)
        is_right = bool(found) and verify(_gold(problem.answer), found, timeout_seconds=None)
        return judge(response if found else None, response if is_right else None)


def _ours() -> Task:
    return HendrycksMath(MathConfig())


@lru_cache(maxsize=64)
def _gold(answer: str) -> Any:
    from math_verify import parse

    return parse(answer if "$" in answer or "\\boxed" in answer else f"${answer}$", parsing_timeout=None)


JUDGES: dict[str, Callable[[], Task]] = {"ours": _ours, "math_verify": MathVerifyAlone}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Responses to one right answer: the set and the rule that each comes from, and whether it is right."""

    gold: str
    responses: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    right: tuple[bool, ...]


def corpus() -> Iterator[Case]:
    """Yield what the corpus calls right or wrong. Answers that it calls malformed say nothing about the comparison."""
    for file in sorted(CORPUS.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").split("\n"):
            case = json.loads(line) if line else {}
            ought = case.get("ought", case.get("verdict"))
            if ought in ("correct", "incorrect"):
                kind = f"corpus/{file.stem}", case["kind"]
                yield Case(gold=case["gold"], responses=(case["response"],), rules=(kind,), right=(ought == "correct",))


def table(share: float) -> Iterator[Case]:
    """Yield the right answers of MATH and GSM8K in other forms, and perturbed."""
    rng = random.Random(0)
    for name, splits in SPLITS.items():
        task = make_task(TaskConfig.model_validate({"name": name}))
        for problem in (problem for split in splits for problem in task.problems(split)):
            if rng.random() < share:
                found = list(variants(problem.answer))
                yield Case(
                    gold=problem.answer,
                    responses=tuple(f"\\boxed{{{text}}}" for _, _, text in found),
                    rules=tuple((f"{name}/{kind}", rule) for kind, rule, _ in found),
                    right=tuple(kind != "perturbed" for kind, _, _ in found),
                )


def own_cases(folder: Path) -> Iterator[Case]:
    """Yield the parametrized (gold, pred, expected) of Math-Verify's tests, which are read and not run."""
    for file in sorted(folder.glob("test_*.py")):
        for test in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for mark in test.decorator_list if isinstance(test, ast.FunctionDef) else ():
                names, rows = mark.args if isinstance(mark, ast.Call) and len(mark.args) == 2 else (None, None)
                columns = ast.literal_eval(names).replace(" ", "").split(",") if isinstance(names, ast.Constant) else []
                for row in rows.elts if columns[:2] == ["gold", "pred"] and isinstance(rows, ast.List) else ():
                    gold, pred, is_right = _literals(row)[:3]
                    if isinstance(gold, str) and isinstance(pred, str) and isinstance(is_right, bool | int):
                        yield Case(
                            gold=gold, responses=(pred,), rules=(("math-verify", f"{file.stem}/{test.name}"),), right=(bool(is_right),)
                        )


def _literals(row: ast.expr) -> tuple[Any, ...]:
    try:
        values = ast.literal_eval(row)
    except ValueError:
        return (None, None, None)
    return (*values, None, None, None)


def compare(cases: Sequence[Case], judge_name: str) -> dict[str, Any]:
    """Return the errors of one judge, by set."""
    counts: dict[str, Counter[str]] = {}
    by_rule: dict[str, Counter[str]] = {}
    examples: list[str] = []
    config = VerifierConfig(num_workers=1, timeout_s=_DEADLINE_S)
    with VerifierPool(TaskConfig(name="math"), config, task_factory=JUDGES[judge_name]) as pool:
        for case in cases:
            is_text = judge_name == "ours" and "\\boxed" in case.gold
            gold = (stated_answer(case.gold) if is_text else None) or case.gold
            problem = Problem(task="math", problem_id="0", question="?", answer=gold)
            for verdict, (kind, rule), is_right, response in zip(
                pool.verify(problem, case.responses), case.rules, case.right, case.responses, strict=True
            ):
                count = counts.setdefault(kind, Counter())
                side = "right" if is_right else "wrong"
                count[side] += 1
                count["killed"] += verdict.status is VerdictStatus.TIMEOUT
                if (verdict.status is VerdictStatus.CORRECT) is not is_right:
                    count[f"{side} misjudged"] += 1
                    by_rule.setdefault(kind, Counter())[rule] += 1
                    examples += [f"{rule}: {case.gold} / {response}"] if len(examples) < _MAX_EXAMPLES else []
    return {
        kind: {**count, **_intervals(count), "misjudged by rule": dict(by_rule.get(kind, Counter()).most_common())}
        for kind, count in sorted(counts.items())
    } | {"examples": examples}


def _intervals(count: Counter[str]) -> dict[str, list[float]]:
    return {f"{side} % (95 %)": interval(count[f"{side} misjudged"], count[side]) for side in ("right", "wrong") if count[side]}


def interval(errors: int, trials: int) -> list[float]:
    """Return the share of errors in percent, and Wilson's interval of 95 % around it."""
    z, share = 1.96, errors / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return [round(100 * value, 3) for value in (share, max(0.0, middle - half), middle + half)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.math_verify_alone", description="Error rates of Math-Verify and of ours.")
    parser.add_argument("--data", metavar="DIR", help="sets REPEXP_DATA; without it the table of forms is left out")
    parser.add_argument("--cases", metavar="TESTS", type=Path, help="the folder of Math-Verify's own tests")
    parser.add_argument("--share", type=float, default=1.0, help="share of the problems of the table")
    parser.add_argument("--judges", default=",".join(JUDGES))
    options = parser.parse_args(arguments)
    cases = [*corpus(), *(own_cases(options.cases) if options.cases else ())]
    if options.data:
        os.environ["REPEXP_DATA"] = options.data
        cases += table(options.share)
    for name in options.judges.split(","):
        print(json.dumps({"judge": name, **compare(cases, name)}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
