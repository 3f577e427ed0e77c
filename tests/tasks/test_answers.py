from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.answers import canonical_number, final_number, final_text, last_boxed, last_number, last_word, reference_number
from tasks.numerals import MINUS

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
        ("-$3", "-3"),
        ("10-$3", "3"),
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
def test_a_million_characters_are_read(unit: str, tail: str) -> None:
    """The size is the measurement: a reader that looks at each character once for every other one meets the suite's
    timeout."""
    text = unit * (NUM_CHARS // len(unit)) + tail
    for read in (last_number, last_word):
        answer = read(text)
        assert answer is None or len(answer) <= len(text)


def test_number_longer_than_the_conversion_limit_is_compared() -> None:
    digits = "1" + "0" * NUM_CHARS
    assert last_number("0" * NUM_CHARS + digits) == digits


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # a box comes first, the last one that is closed and not blank
        ("\\boxed{72}", "72"),
        ("\\boxed {72}", "72"),
        ("\\boxed{72} and 73", "72"),
        ("\\boxed{71}, no, \\boxed{72}", "72"),
        ("\\boxed{\\boxed{72}}", "72"),
        ("\\boxed{72} within \\boxed{}.", "72"),
        ("\\boxed{71}, then \\boxed{72", "71"),
        ("{ \\{ } } \\boxed{{72}}", "72"),
        ("\\boxed{none}, not 72", None),
        # what may stand in a box
        ("\\boxed{$72}", "72"),
        ("\\boxed{\\$72.00}", "72"),
        ("\\boxed{-\\$5}", "-5"),
        ("\\boxed{1,234}", "1234"),
        ("\\boxed{1{,}234}", "1234"),
        ("\\boxed{1\\,234}", "1234"),
        ("\\boxed{50\\%}", "50"),
        ("\\boxed{72\\text{ cm}^2}", "72"),
        ("\\boxed{72\\text{ km}^{2}}", "72"),
        ("\\boxed{72^\\circ}", "72"),
        ("\\boxed{72cm}", "72"),
        ("\\boxed{\\text{Ada: }72\\text{ apples}}", "72"),
        ("\\boxed{\\mathbf{72}}", "72"),
        ("\\boxed{x = 72}", "72"),
        ("\\boxed{12 \\times 6 = 72}", "72"),
        ("\\boxed{72 = x}", "72"),
        ("\\boxed{5, 7}", "5"),
        # fractions
        ("\\boxed{1/2}", "0.5"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{\\frac12}", "0.5"),
        ("\\boxed{-\\dfrac{3}{4}}", "-0.75"),
        ("\\boxed{\\tfrac{1,000}{3}}", "1000/3"),
        ("\\boxed{1\\frac{1}{2}}", "1.5"),
        ("\\boxed{-1 1/2}", "-1.5"),
        ("\\boxed{3\\times\\frac{1}{2}}", "3*1/2"),
        ("4/6", "2/3"),
        ("144 / 2", "72"),
        ("0.5/0.25", "2"),
        ("0/7", "0"),
        # what is not evaluated equals no number
        ("1/0", "1/0"),
        ("1/2/3", "1/2/3"),
        ("1.2.3/4", "1.2.3/4"),
        ("1 4/3", "1 4/3"),
        ("\\boxed{2^{10}}", "2^10"),
        ("\\boxed{2\\sqrt{3}}", "2√3"),
        ("\\boxed{\\sqrt{16}}", "√16"),
        ("\\boxed{2\\pi}", "2π"),
        ("\\boxed{1e3}", None),
        # then the mark of GSM8K
        ("3 + 4\n#### 72", "72"),
        ("####72\n\nQuestion: 5 + 6?", "72"),
        ("#### $1,234 dollars for 5 days", "1234"),
        ("#### 12 x 6 = 72", "72"),
        ("The answer is 71.\n#### 72", "72"),
        ("#### 72\n#### Remarks\nIt is 5 o'clock.", "72"),
        ("#### Step 3\nso 72", "72"),
        ("#### 3. The total\nso 72", "72"),
        # then the phrase
        ("The answer is 72. It took 5 steps.", "72"),
        ("The final answer is: **$72**", "72"),
        ("**Answer:** 72 of 100", "72"),
        ("**Answer**: 72 of 100", "72"),
        ("ANSWER = -72 or so 5", "-72"),
        ("Answer:\n\n72 apples for 5", "72"),
        ("The answer is \\(\\frac{1}{3}\\) of 9", "1/3"),
        ("The answer is $20 - $12 = $8.", "8"),
        ("The answer is 5 + 10 = 15 dollars for 3", "15"),
        ("The answer is 72 because 80 - 9 = 71", "72"),
        ("The answer is 12 x 6 = 72.", "72"),
        ("The answer is 71. Wait: the answer is 72. 5 stars!", "72"),
        ("Answer: 72. I hope the answer is right, of 5 tries.", "72"),
        ("Answer: he has 3 apples, gets 5, so 8.", "8"),
        # then the last number
        ("he has 3, gets 5, so 8 apples", "8"),
        ("46 bags weigh 322kg", "322"),
        ("72 for x2 on the 4th", "72"),
        ("72 is less than 2x", "72"),
        ("72 cm^2", "72"),
        ("72 cm^{2}", "72"),
        ("\\boxed{71 or 72", "72"),
        ("7.5", "7.5"),
        ("no number", None),
        ("", None),
    ],
)
def test_stated_number_is_read(text: str, number: str | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Answer: Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether.", "72"),
        ("**Answer:**\n\nShe sold half, which is 24 clips.\nSo she sold 48+24 = 72.", "72"),
        ("Answer: She has 72 clips.", "72"),
        ("Answer: 72 clips. Check: 48 + 24 = 72, in 2 months", "72"),
        ("The answer is that there are 72 clips. It took 3 steps.", "72"),
        ("Answer: . So it is 72", "72"),
    ],
)
def test_a_heading_before_a_solution_does_not_make_its_first_step_the_answer(text: str, number: str) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", "72"),
        ("$1,234.00", "1234"),
        ("72 = 72.0", "72"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("\\boxed{7}, of 8", "7"),
        ("- 5", "-5"),
        ("2½", "2.5"),
        ("3 + 4", None),
        ("2^10", None),  # no value that another spelling could equal
        ("2\\sqrt{3}", None),
        ("1/0", None),
        ("1.2.3", None),
        ("12:30", None),
        ("95 + (24 - 21)", None),
        ("none", None),
    ],
)
def test_right_answer_of_several_numbers_is_no_guess(text: str, number: str | None) -> None:
    assert reference_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### ½", "0.5"),
        ("#### 3⅛", "3.125"),
        ("#### -½", "-0.5"),
        ("#### 1⁄3", "1/3"),
        ("\\boxed{- 5}", "-5"),
        ("\\boxed{-\\,5}", "-5"),
        ("The answer is 3 - 8 = − 5.", "-5"),
        ("**Answer:** $- 5$", "-5"),
        ("- 5", "-5"),
        ("- 5 apples", "5"),  # an item of a list
        ("Answer:\n- 5 apples", "5"),
        ("Answer: 10 - 5", "10-5"),
        ("\\boxed{1+1}", "1+1"),
        ("\\boxed{1+\\sqrt{19}}", "1+√19"),
        ("#### 5 + 3 apples", "5+3"),
        ("#### 5 + 3 = 8", "8"),
        ("#### 50+", "50"),
        ("\\boxed{5 \\times 10^3}", "5*10^3"),
        ("#### 2 x 10⁶", "2x10^6"),
        ("#### 3 * 10 = 30", "30"),
        ("#### 7:30 PM", "7:30"),
        ("#### 7:00 PM", "7"),
        ("#### 3:1", "3:1"),
        ("#### ٧٠٬٠٠٠", "70000"),
        ("\\boxed{\\pi/2}", "π/2"),
        ("\\boxed{2 \\cdot \\sqrt{3}}", "2*√3"),
        ("It is 3 * π", "3*π"),
        ("3 x 4 = 12", "12"),
    ],
)
def test_signs_fractions_and_times_are_read_whole(text: str, number: str) -> None:
    assert final_number(text) == number


@given(st.fractions(max_denominator=1000), st.integers(1, 50))
def test_equal_values_have_one_spelling(value: Fraction, factor: int) -> None:
    bare = f"{value.numerator * factor}/{value.denominator * factor}"
    latex = f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    readings = {
        final_number(text) for text in (bare, f"It is {bare}.", f"\\boxed{{{latex}}}", f"#### {bare} m", f"The answer is ${latex}$.")
    }
    assert len(readings) == 1
    assert Fraction(readings.pop() or "nothing") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=4))
def test_decimals_equal_the_fractions_of_their_value(value: Decimal) -> None:
    numerator, denominator = value.as_integer_ratio()
    assert final_number(f"{value:f}") == final_number(f"{numerator}/{denominator}")


NUMERIC = "0123456789.,+-\u2212 /^√πaxst$%={}\n*#_"
PIECES = [
    "\\boxed{",
    "\\frac",
    "\\text{",
    "\\sqrt",
    "\\",
    "####",
    "answer is ",
    "Answer:",
    "1",
    "2",
    "/",
    " ",
    ".",
    "{",
    "}",
    "=",
    "x",
    "-",
    "^",
]


COMPUTATION = re.compile(f"[0-9√π)][+*×·÷{re.escape(MINUS)}]")


@given(st.one_of(st.text(st.characters()), st.text(alphabet=NUMERIC), st.lists(st.sampled_from(PIECES)).map("".join)))
@example("####0x{0")
@example("#### 3 x 4")
def test_no_text_raises_and_what_is_read_reads_as_itself(text: str) -> None:
    """A computation, which is not evaluated, reads as itself in a box alone: without one its last number counts."""
    number = final_number(text)
    assert number is None or COMPUTATION.search(number) or final_number(number) == number
    assert number is None or final_number(f"so \\boxed{{{number}}}, of 5") == number
    answer = final_text(text)
    assert answer is None or answer == " ".join(answer.split())


STATED_UNITS = [
    *("1/", "/1", "1/1,", " /1", "1 1/", "1 1/1 ", "1^", "1^1", "^-", "√", "√ ", "1√1", "π1", "1 π", "1st", "1aa", "1e1", "1e"),
    *("=", "1=", "=1a", "x ", "1 x ", "\n", " ", "$", "-$", "\\boxed{", "\\boxed{1", "\\boxed{}", "\\boxed{ ", "{", "}", "{}", "\\", "\\{"),
    *("\\frac", "\\frac{", "\\frac1", "\\frac{1}{", "\\frac{1}{1}", "\\frac{1,", "{,}", "1{,}111", "1\\,111", "\\text{", "\\text{a}"),
    *("####", "####\n", "#### a", "#### 1. a", "#### 1", "answer", "answer is", "answer is\n", "answer is a", "answer  ", "Answer:*"),
]


@pytest.mark.parametrize("unit", STATED_UNITS)
def test_long_texts_are_read_wherever_the_answer_may_stand(unit: str) -> None:
    """The size is the measurement, as above: a quadratic reader that was found this way would have taken ten
    minutes."""
    many = unit * (NUM_CHARS // 5 // len(unit))
    for text in (many + "a", f"\\boxed{{{many}}}"):
        number, answer = final_number(text), final_text(text)
        assert max(len(number or ""), len(answer or "")) <= len(text)


def test_fraction_of_long_numbers_is_compared_as_it_stands() -> None:
    """Evaluating it would take time that grows with the square of its length."""
    digits = "3" * NUM_CHARS
    assert final_number(f"{digits}/{digits}") == f"{digits}/{digits}"
    assert final_number(f"{'3' * 100}/{'3' * 100}") == "1"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "paris"),
        ("The capital:\n\n  New   York \n\n", "new york"),
        ("\\boxed{New York}, in the\nUSA", "new york"),
        ("\\boxed{\\text{New York}}", "new york"),
        ("\\boxed{f(x) = \\{1\\}}", "f(x) = \\{1\\}"),
        ("\\boxed{}\nParis", "paris"),
        (" \n\t", None),
        ("", None),
    ],
)
def test_final_text_is_read(text: str, answer: str | None) -> None:
    assert final_text(text) == answer


def test_content_of_the_last_box_is_kept_as_it_is() -> None:
    assert last_boxed("\\boxed{a} \\boxed{ {b} \\} c } d") == " {b} \\} c "
    assert last_boxed("no box") is None


def test_latex_groups_thousands_with_a_comma_and_a_negative_space() -> None:
    assert [final_number(f"\\boxed{{{text}}}") for text in ("50,\\!000", "\\$1,\\!200", "12{,}345", "12\\,345")] == [
        "50000",
        "1200",
        "12345",
        "12345",
    ]
