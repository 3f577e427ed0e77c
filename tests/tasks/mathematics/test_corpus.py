"""The corpus: pairs of a right answer and a response, with the verdict that they must get. Its known errors are pinned
too. `as_written.jsonl` has forms in which people and models write answers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from buffers.records import VerdictStatus
from tasks.mathematics.verify import math_verdict

FILES = [Path(__file__).parent / "corpus" / name for name in ("math.jsonl", "as_written.jsonl")]
CASES = [json.loads(line) for file in FILES for line in file.read_text(encoding="utf-8").split("\n") if line]
BY_KIND = defaultdict(list)
for case in CASES:
    BY_KIND[case["kind"]].append(case)


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_verdict_of_every_case(kind: str) -> None:
    found = [(case, math_verdict(case["response"], case["gold"])) for case in BY_KIND[kind]]
    wrong = [f"{case['gold']!r} against {case['response']!r}: {verdict}" for case, verdict in found if verdict.status != case["verdict"]]
    assert wrong == []
    assert all(verdict.reward == float(verdict.status is VerdictStatus.CORRECT) for _, verdict in found)


def test_corpus_is_large_and_says_what_it_gets_wrong() -> None:
    assert len(CASES) >= 200 and len(BY_KIND) >= 15
    assert len({(case["gold"], case["response"]) for case in CASES}) == len(CASES)
    errors = [case for case in CASES if case.get("ought", case["verdict"]) != case["verdict"] and case["verdict"] != "malformed"]
    assert 0 < len(errors) < len(CASES) // 20
    assert all(case["verdict"] == "incorrect" for case in errors), "every known error is a right answer that is not accepted"


def test_what_no_computer_algebra_may_see_stays_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spelling and exact values decide nearly all of the corpus; what is malformed never comes as far as sympy."""

    def never(*_: object, **__: object) -> bool:
        raise AssertionError("sympy was asked")

    monkeypatch.setattr("tasks.mathematics.equality.same_value", never)
    monkeypatch.setattr("tasks.mathematics.equality.proportional", never)
    for case in BY_KIND["malformed"]:
        assert math_verdict(case["response"], case["gold"]).status is VerdictStatus.MALFORMED
