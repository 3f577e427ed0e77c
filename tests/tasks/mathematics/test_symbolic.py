from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.mathematics.symbolic import Unparsable, proportional, refusal, same_value
from tasks.mathematics.syntax import parse


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sin^2 x", r"1-\cos^2 x"),
        (r"e^{ix}", r"\cos x + i\sin x"),
        (r"\ln x^2", r"2\ln x"),
        (r"\sqrt[3]{x^2}", "x^{2/3}"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
        ("2.5x", r"\frac{5x}{2}"),
        (r"50\%\cdot x", r"\frac{x}{2}"),
        (r"\tan 15^\circ", r"2-\sqrt3"),
    ],
)
def test_equal_functions_are_equal(first: str, second: str) -> None:
    assert same_value(parse(first), parse(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sqrt{x^2}", "x"),
        ("x+y", "x-y"),
        ("A+B", "a+b"),
        ("e^{-60}", "e^{-61}"),
        ("10^{-30}x", "10^{-40}x"),
        (r"1-\frac1e", r"1+\frac1e"),
        (r"\pi", "3.14159265358979323846"),
        ("I", "i"),
        ("2x+3", "2n+3"),
    ],
)
def test_other_functions_are_not(first: str, second: str) -> None:
    assert not same_value(parse(first), parse(second))


def test_equations_are_the_same_where_one_is_a_multiple_of_the_other() -> None:
    assert proportional(parse("2x+4y-3"), parse("y+x/2-3/4"))
    assert not proportional(parse("x-5"), parse("x-4"))
    assert not proportional(parse("x^2-4"), parse("x-2"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9^{9^9}", "exponent"),
        (r"2^{2^{x}}", "a power in an exponent"),
        ("x^{1000}", "an exponent beyond 100"),
        ("(x+1)^{13}", "an exponent beyond 12"),
        ("((9!)!)!", "a factorial in a factorial"),
        ("200!", "a factorial beyond 100"),
        (r"\binom{10^9}{5}", "a factorial beyond 100"),
        (r"\sqrt[1000]{x}", "a root"),
        ("1" * 50, "a number of 50 digits"),
        ("+".join(["x"] * 250), "parts"),
        (r"1+\infty", "has no value"),
        ("x'+1", "has no value"),
        (r"\overline{AB}", "a bar"),
        ("1,2", "a list is no expression"),
    ],
)
def test_what_could_be_large_is_refused(text: str, why: str) -> None:
    assert why in (refusal(parse(text)) or "")


def test_what_the_parser_of_math_verify_does_not_read_is_told() -> None:
    with pytest.raises(Unparsable, match="is not read as an expression"):
        same_value(parse("x"), parse(r"\max(x, \min(x, y))"))


def test_warm_up_imports_what_a_verdict_needs_and_nothing_else_does() -> None:
    code = (
        "import sys, tasks.mathematics.verify as v; before = 'sympy' in sys.modules; v.math_verdict('\\\\boxed{1/2}', '0.5'); "
        "cheap = 'sympy' in sys.modules; v.warm_up(); print(before, cheap, 'sympy' in sys.modules, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": str(root)}
    output = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.split() == ["False", "False", "True", "False"]
