from __future__ import annotations

from fractions import Fraction
from time import perf_counter

import pytest

from tasks.mathematics.exact import exact_value, rational_value, spelling
from tasks.mathematics.syntax import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.125", "1/8"),
        (r"6\frac16", "37/6"),
        (r"0.1\overline{6}", "1/6"),
        (r"0.\overline{142857}", "1/7"),
        ("2^{10}", "1024"),
        ("8^{2/3}", "4"),
        ("4^{-1/2}", "1/2"),
        (r"\sqrt{98}", "7*sqrt(2)"),
        (r"\frac{1}{\sqrt2}", "1/2*sqrt(2)"),
        (r"\frac{1}{2+\sqrt3}", "-sqrt(3)+2"),
        (r"(1+\sqrt2)^2", "2*sqrt(2)+3"),
        (r"\sqrt{6}\sqrt{10}", "2*sqrt(15)"),
        (r"\sqrt{-4}", "2*i"),
        (r"i^3", "-i"),
        (r"\frac{6-3i}{2+i}", "9/5-12/5*i"),
        (r"\sqrt{-2}\sqrt{-3}", "-sqrt(6)"),
        (r"\frac{\pi^2}{2\pi}", "1/2*pi"),
        (r"\sqrt[3]{-27}", "-3"),
        (r"\binom{10}{3}", "120"),
        ("5!", "120"),
        ("|-3|", "3"),
        ("1-1", "0"),
    ],
)
def test_exact_value(text: str, value: str) -> None:
    found = exact_value(parse(text))
    assert found is not None and spelling(found) == value


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "e",
        r"\sin 1",
        "1/0",
        "0^0",
        "(-8)^{1/3}",
        r"\sqrt{2+\sqrt2}",
        r"\frac{1}{1+\sqrt2+\sqrt3}",
        "9^{9^9}",
        "((9!)!)!",
        r"\binom{10^9}{5}",
    ],
)
def test_no_value_is_said_so(text: str) -> None:
    assert exact_value(parse(text)) is None


def test_two_thousand_factorial_is_no_trouble() -> None:
    assert rational_value(parse(r"\frac{2006!}{2004!}")) == Fraction(2006 * 2005)


@pytest.mark.parametrize(
    "text",
    [
        r"999999937^{2999}\cdot 3^{2000}",
        r"\sqrt{" + "9" * 300 + "}",
        r"(1+\sqrt2+\sqrt3+\sqrt5+\sqrt7+\pi)^{30}",
        r"\sqrt{3000!}",
        r"\binom{3000}{1500}^{3}",
        r"3000!^{3000}",
        r"(((((2^{99})^{99})^{99})^{99})^{99})",
    ],
)
def test_large_values_are_given_up_at_once(text: str) -> None:
    started = perf_counter()
    exact_value(parse(text))
    assert perf_counter() - started < 2.0


def test_spelling_of_a_value_too_long_for_decimals() -> None:
    value = exact_value(parse("7^{9000}"))
    assert value is not None and spelling(value).startswith("0x")
