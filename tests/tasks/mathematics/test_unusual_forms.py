"""Answers in forms that neither corpus has, found by trying to break the reader."""

from __future__ import annotations

import pytest

from tasks.mathematics.verify import math_verdict

RIGHT = [
    # units of several parts
    ("12", r"\boxed{12 km/h}"),
    ("9.8", r"\boxed{9.8 m/s^2}"),
    ("9.8", r"\boxed{9.8\,\mathrm{m}\cdot\mathrm{s}^{-2}}"),
    ("5", r"\boxed{5\frac{m}{s}}"),
    ("5", r"\boxed{5 kg/m^3}"),
    ("5", r"\boxed{5 kg·m/s²}"),
    (r"\frac{5m}{s}", r"\boxed{5m/s}"),
    (r"60\text{ mph}", r"\boxed{60 mi/h}"),
    ("12", r"\boxed{12 sq. units}"),
    ("3", r"\boxed{3 cu. in.}"),
    ("5", "Answer: 5 a.m."),
    (r"3\text{ p.m.}", r"\boxed{3 p.m.}"),
    # which value
    ("12", "Answer: $a + b$ is $12$."),
    (r"\frac12", r"Answer: $P(A)$ is $\frac12$."),
    ("5", "Final Answer: $f(2)$ is $5$"),
    ("a+b", "The answer is $a+b$, where $a$ is $3$."),
    ("3", "Answer: $3$ is $1$ more than $2$"),
    (r"\sqrt2", r"Answer: $\sqrt{2}$ is irrational"),
    ("17", r"\boxed{17}<eos>\boxed{18}"),
    ("3,5", "So $x = 3$ or $x = 5$."),
    ("3,5,7", "The roots are $3$, $5$, and $7$."),
    ("3", "With $a = 1$ and $b = 2$, $a + b = 3$."),
    ("2", "Then $a = 1$ and $b = 2$."),
    ("17", "*17*"),
    ("5", r"\boxed{5 Hz}"),
    # labels and names
    ("3,5", r"(a) $\boxed{3}$ (b) $\boxed{5}$"),
    ("3,5", "(a) $\\boxed{3}$\n\n(b) $\\boxed{5}$"),
    ("3,5", r"**\boxed{3}**, **\boxed{5}**"),
    ("5", r"(a) $\boxed{3}$ (b) $\boxed{5}$"),
    (r"\frac{x}{2}", r"\boxed{f^{-1}(x) = \frac{x}{2}}"),
]
WRONG = [
    ("6", r"\boxed{5 m/s}"),
    ("3", r"\boxed{3ms}"),
    ("3", r"\boxed{3x/s}"),
    ("1", r"\boxed{m/s}"),
    (r"60\text{ mph}", r"\boxed{60 km/h}"),
    (r"60\text{ mph}", r"\boxed{60\text{ km / h}}"),
    (r"3\text{ a.m.}", r"\boxed{3 p.m.}"),
    ("3", r"(a) $\boxed{3}$ (b) $\boxed{5}$"),
    ("a+b", "Answer: $a + b$ is $12$."),
    ("5", "So $x = 3$ or $x = 5$."),
    ("2x", r"\boxed{f^{-1}(x) = \frac{x}{2}}"),
]


@pytest.mark.parametrize(("gold", "response"), RIGHT)
def test_right_answer_is_accepted(gold: str, response: str) -> None:
    assert math_verdict(response, gold).reward == 1.0


@pytest.mark.parametrize(("gold", "response"), WRONG)
def test_wrong_answer_is_refused(gold: str, response: str) -> None:
    assert math_verdict(response, gold).reward == 0.0
