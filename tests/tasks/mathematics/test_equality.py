"""Most of what is equal is in the corpus; here is what it cannot say."""

from __future__ import annotations

import pytest

from tasks.mathematics.equality import Rung, canonical, compare, readings
from tasks.mathematics.syntax import Unreadable


def rung(gold: str, answer: str) -> Rung:
    return compare(readings(gold), readings(answer, is_answer=True)).rung


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (r"\frac12", r"\dfrac{1}{2}", Rung.SPELLING),
        ("1,2", "1, 2", Rung.SPELLING),
        (r"\frac12", "0.5", Rung.VALUE),
        ("5", "6", Rung.VALUE),
        ("5", "x", Rung.VALUE),
        ("5", "9^{9^9}", Rung.FILTER),
        ("x+1", "1+x", Rung.SYMBOLIC),
    ],
)
def test_ladder_is_climbed_down_only_as_far_as_needed(gold: str, answer: str, expected: Rung) -> None:
    assert rung(gold, answer) is expected


def test_refusal_says_what_kept_an_answer_from_being_judged() -> None:
    assert compare(readings("5"), readings("9^{9^9}")).refusal == "an exponent beyond 100"
    assert compare(readings("5"), readings("6")).refusal is None


@pytest.mark.parametrize(
    "spellings",
    [
        ("0.5", r"\frac12", "x = 1/2", r"\frac{2}{4}", r"0.5\text{ cm}"),
        (r"2\sqrt2", r"\sqrt8", r"\frac{4}{\sqrt2}"),
        ("1,2", "2, 1", r"x = 2 \text{ or } x=1", r"\{1,2\}"),
        ("(1,0.5)", r"\left(1, \tfrac12\right)"),
        (r"\text{(C)}", "C", r"\textbf{C}", "(C)"),
        (r"1 \pm \sqrt2", r"1-\sqrt2, 1+\sqrt2"),
    ],
)
def test_equal_answers_have_one_canonical_form(spellings: tuple[str, ...]) -> None:
    assert len({canonical(readings(text)[0]) for text in spellings}) == 1


def test_other_answers_have_other_canonical_forms() -> None:
    texts = [
        "1",
        "-1",
        "1/2",
        "1,2",
        "(1,2)",
        "(2,1)",
        "[1,2]",
        "[1,2)",
        "x",
        "x^2",
        r"\sqrt2",
        r"2\pi",
        "even",
        "A",
        "B",
        "1:2",
        r"x \ge 2",
    ]
    assert len({canonical(readings(text)[0]) for text in texts}) == len(texts)


def test_plain_commas_may_group_digits_or_separate_numbers() -> None:
    assert len(readings("1,234")) == 2 and len(readings("1, 234")) == 1 and len(readings("(1,234)")) == 1


def test_option_in_front_of_an_answer_is_read_with_and_without_it() -> None:
    assert [canonical(node) for node in readings(r"\textbf{(C)}\ 12", is_answer=True)][-2:] == ["C", "12"]
    assert len(readings(r"\textbf{(C)}\ 12")) == 1, "only of a response"


@pytest.mark.parametrize("answer", ["(A) or (B)", "(A) B", "A: B", "(A), (B)", r"(A) \text{ and } B"])
def test_two_options_are_none(answer: str) -> None:
    assert not any(compare(readings(gold), readings(answer, is_answer=True)).is_equal for gold in "AB")


@pytest.mark.parametrize(
    ("gold", "answer"), [("18", r"\text{18 dollars}"), (r"5\text{ cm}", r"\text{5 cm}"), ("1234", r"\text{1,234 people}")]
)
def test_a_number_with_its_unit_may_be_text(gold: str, answer: str) -> None:
    assert compare(readings(gold), readings(answer, is_answer=True)).is_equal


def test_list_of_many_items_is_refused() -> None:
    many = ",".join(map(str, range(100)))
    assert "100 items" in (compare(readings(many), readings(many + "+0")).refusal or "")


def test_unreadable_answer_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        readings("5 +")
