from __future__ import annotations

import pytest

from tasks.numerals import with_ascii_digits, with_plain_digits, with_plain_powers, without_blank_groups


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("70 000", "70000"),
        ("It is 1 234 567.", "It is 1234567."),
        ("1\u202f234\u202f567", "1234567"),
        ("25\u00a0000 €", "25000 €"),
        ("5\u2009000.25", "5000.25"),
        ("1,00,000", "100000"),
        ("12,34,56,789.50", "123456789.50"),
        ("1.234,56", "1234.56"),
        ("1.234.567,891", "1234567.891"),
        ("12 345,67", "12345.67"),
        ("1.234.567", "1234567"),
        ("1'234'567.5", "1234567.5"),
        ("1’234", "1234"),
        ("1_000_000", "1000000"),
        ("７２．５", "72.5"),
        ("１，２３４", "1,234"),
        ("٧٢", "72"),
        ("७२", "72"),
        # what could be something else stays
        ("1,234", "1,234"),
        ("3,5", "3,5"),
        ("0,5", "0,5"),
        ("1 2 3", "1 2 3"),
        ("0 500", "0 500"),
        ("1,00,00", "1,00,00"),
        ("1.234", "1.234"),
        ("1.2.3", "1.2.3"),
        ("5 100/3", "5 100/3"),
        ("x1 234", "x1 234"),
        ("12 3456", "12 3456"),
        ("5'10", "5'10"),
    ],
)
def test_groups_are_joined_where_they_can_be_nothing_else(text: str, plain: str) -> None:
    assert with_plain_digits(text) == plain
    assert with_plain_digits(plain) == plain


def test_parts_of_the_rule_serve_other_readers() -> None:
    assert without_blank_groups("(70 000, 1,00,000)") == "(70000, 1,00,000)"
    assert with_ascii_digits("（１＋２）") == "（1+2）"
    assert with_plain_powers("m² and 10⁻³") == "m^2 and 10^-3"
    assert with_plain_powers("10⁻³", "{", "}") == "10^{-3}"


@pytest.mark.parametrize("unit", ["1 111", "1,11,", "1.111.", "1'111", "12 345,", "٣", "，５", "5²", "1_111 ", "1,00,000 "])
def test_long_texts_take_linear_time(unit: str) -> None:
    """The size is the measurement: a quadratic reader meets the suite's timeout."""
    assert len(with_plain_powers(with_plain_digits(unit * (10**6 // len(unit)) + "a"))) <= 3 * 10**6
