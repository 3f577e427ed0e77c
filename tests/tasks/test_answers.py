from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.answers import canonical_number, last_number, last_word

NUM_CHARS = 1_000_000


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"),
        ("The answer is 7.", "7"),
        ("3 + 4 = 7", "7"),
        ("3+4=7", "7"),
        ("$7$", "7"),
        ("**7**", "7"),
        ("_7_", "7"),
        ("\\boxed{7}", "7"),
        ("7, because 3 and 4", "4"),
        ("7,", "7"),
        ("7.0", "7"),
        ("7.00.", "7"),
        ("007", "7"),
        ("+7", "7"),
        ("-0", "0"),
        ("0.0", "0"),
        ("7.5", "7.5"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("...5", "5"),
        ("1.2.3", "1.2.3"),
        ("is -3", "-3"),
        ("x=\u22123", "-3"),
        ("\uff0d3", "-3"),
        ("10-3", "3"),
        ("10 - 3", "3"),
        ("(4)-3", "3"),
        ("1,234", "1234"),
        ("-1,234,567.0", "-1234567"),
        ("1, 2, 3", "3"),
        ("12,3456", "3456"),
        ("1,234,5678", "5678"),
        ("\u7b54\u6848\u662f7\u3002", "7"),
        ("7 for x2", "7"),
        ("7 is the 4th", "7"),
        ("14/2", "2"),
        ("x2", None),
        ("7th", None),
        ("seven", None),
        ("", None),
    ],
)
def test_last_number_is_read(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "word"),
    [("tac", "tac"), ('The answer is "Tac".', "tac"), ("**TAC**!", "tac"), ("tac 3.", "tac"), ("'tac'_", "tac"), ("123", None), ("", None)],
)
def test_last_word_is_read(text: str, word: str | None) -> None:
    assert last_word(text) == word


@given(st.integers())
def test_every_integer_is_read_back_however_it_is_written(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"It is {value}.", f"{value}.0", f"**{value}**", f"{value}".replace("-", "\u2212")):
        assert last_number(text) == str(value)


@given(st.text(alphabet="0123456789.,+-\u2212 aZ)=", max_size=30))
def test_number_read_is_canonical(text: str) -> None:
    number = last_number(text)
    assert number is None or canonical_number(number) == number


UNITS = [
    "1",
    "1,",
    "1,111",
    "1,111,",
    ",111",
    "1.",
    ".1",
    "1,111.1",
    "1,11",
    "..1",
    "1 ",
    "-",
    "+-",
    "-1",
    "(1",
    "a",
    "a1",
    "1a",
    "0",
    "\u00e9",
]


@pytest.mark.parametrize("tail", ["", "a", ".a", "1", ".0"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_million_characters_are_read_in_linear_time(unit: str, tail: str) -> None:
    text = unit * (NUM_CHARS // len(unit)) + tail
    started = time.process_time()
    last_number(text)
    last_word(text)
    assert time.process_time() - started < 3.0  # 0.3 s measured; a quadratic reader takes hours


def test_number_longer_than_the_conversion_limit_is_compared() -> None:
    digits = "1" + "0" * NUM_CHARS
    assert last_number("0" * NUM_CHARS + digits) == digits
