"""Right answers of the published data, in other forms and perturbed. The rates over all of them are
`benchmarks/verifiers.py --rates`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.answer_variants import equivalents, perturbations
from benchmarks.verifiers import rates
from buffers.records import Problem, VerdictStatus
from tasks.gsm8k import Gsm8k, Gsm8kConfig
from tasks.hendrycks_math import HendrycksMath, MathConfig


def problems_of(data: Path) -> tuple[HendrycksMath, list[Problem]]:
    task = HendrycksMath(MathConfig(path=str(data)))
    return task, [*task.problems("train"), *task.problems("dev")]


def test_every_right_answer_of_math_is_verified(math_data: Path) -> None:
    task, problems = problems_of(math_data)
    assert len(problems) == 7998
    wrong = [
        problem
        for problem in problems
        if task.verify(problem, f"so it is $\\boxed{{{problem.answer}}}$.").status is not VerdictStatus.CORRECT
    ]
    assert wrong == []


def test_variants_of_a_sample_are_judged_as_they_should_be(math_data: Path) -> None:
    task, problems = problems_of(math_data)
    found = rates(task, random.Random(0).sample(problems, 250))
    assert found["as published"] == {"answers": 250, "misjudged": 0}
    assert found["equivalent"]["answers"] > 1000 and found["perturbed"]["answers"] > 700
    assert found["false_negative_rate"] < 0.005, found["examples"]
    assert found["false_positive_rate"] == 0, found["examples"]


@pytest.mark.long
def test_variants_of_all_right_answers_are_judged_as_they_should_be(math_data: Path, gsm8k_data: Path) -> None:
    """The rule of numbers reads a sum by its first number, so 1 + 1 for 1 (docs/verifiers.md)."""
    gsm8k = Gsm8k(Gsm8kConfig(path=str(gsm8k_data)))
    for (task, problems), highest in ((problems_of(math_data), 0.0005), ((gsm8k, list(gsm8k.problems("test_full"))), 0.005)):
        found = rates(task, problems)
        assert found["as published"]["misjudged"] == 0
        assert found["false_negative_rate"] < 0.0005 and found["false_positive_rate"] < highest, found["examples"]


@pytest.mark.parametrize(
    ("answer", "rule", "other"),
    [
        (r"\frac{3}{4}", "plain fraction", "3/4"),
        ("12345", "thousands commas", "12,345"),
        ("1,3", "list in other order", "3, 1"),
        (r"\text{even}", "bare words", "even"),
    ],
)
def test_equivalents(answer: str, rule: str, other: str) -> None:
    assert equivalents(answer)[rule] == other


@pytest.mark.parametrize(
    ("answer", "rule", "other"),
    [
        (r"\frac{3}{4}", "inverted", r"\frac{4}{3}"),
        ("12", "digit", "13"),
        ("12", "sign", "-12"),
        ("(1,2)", "bracket", "[1,2)"),
        ("(1,2)", "last coordinate", "(1,2+1)"),
        ("1,3", "item missing", "1"),
        (r"\text{(C)}", "other option", r"\text{D}"),
    ],
)
def test_perturbations(answer: str, rule: str, other: str) -> None:
    assert perturbations(answer)[rule] == other


def test_rules_that_would_change_nothing_or_do_not_apply_give_nothing() -> None:
    assert "sign" not in perturbations("0") and "inverted" not in perturbations(r"\frac{2}{2}")
    assert not perturbations(r"\text{even}")
