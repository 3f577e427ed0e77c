from __future__ import annotations

import pytest

from buffers.records import VerdictStatus
from tasks.mathematics.verify import final_math, is_readable, last_box, math_verdict, stated_answer


@pytest.mark.parametrize(
    ("response", "stated"),
    [
        (r"a \boxed{5} b \boxed{ 6 } c", " 6 "),
        (r"\boxed{x=\boxed{5}}", "5"),
        (r"\boxed{} or \boxed{7", None),
        (r"\boxed{1} and \boxed{7", "1"),
        (r"\boxed{2} \text{ and } \boxed{-2}", "2, -2"),
        (r"$x=\boxed{2}$, or $x=\boxed{3}$", "2, 3"),
        (r"first \boxed{1}, then so \boxed{7}.", "7"),
        (r"\boxed 5", "5"),
        (r"\fbox{\frac{1}{2}}", r"\frac{1}{2}"),
        ("#### 72\nQuestion: ", "72"),
        ("The answer is $x = 2$ or $x = -2$.", "x = 2, x = -2"),
        ("The answer is (C) 12. Is it?", "(C) 12"),
        ("Answer:\n**Evelyn**", "Evelyn"),
        ("5 of 7\nSo it is \\(\\frac57\\) of them.", r"\frac57"),
        ("$5$", "5"),
        ("7 apples", "7 apples"),
        ("We find that she has 72 clips, and no more", "72"),
        ("I am not able to tell", None),
        ("", None),
    ],
)
def test_stated_answer(response: str, stated: str | None) -> None:
    assert stated_answer(response) == stated


def test_last_box_alone_is_where_published_solutions_have_their_answer() -> None:
    assert last_box(r"\boxed{28} is \boxed{28_9}.") == "28_9"
    assert last_box("28") is None


@pytest.mark.parametrize(
    ("response", "status", "answer"),
    [
        (r"\boxed{\dfrac{2}{4}}", VerdictStatus.CORRECT, "1/2"),
        (r"\boxed{0.25}", VerdictStatus.INCORRECT, "1/4"),
        ("I am not able to tell", VerdictStatus.NO_ANSWER, None),
        (r"\boxed{0.5", VerdictStatus.MALFORMED, None),
        (r"\boxed{0.5 +}", VerdictStatus.MALFORMED, "0.5 +"),
        (r"\boxed{9^{9^9}}", VerdictStatus.MALFORMED, "9^{9^{9}}"),
    ],
)
def test_verdict(response: str, status: VerdictStatus, answer: str | None) -> None:
    verdict = math_verdict(response, "0.5")
    assert (verdict.status, verdict.answer) == (status, answer)
    assert verdict.reward == float(status is VerdictStatus.CORRECT)


def test_detail_says_what_decided_or_what_is_wrong() -> None:
    assert math_verdict(r"\boxed{5}", "5").detail == "spelling"
    assert math_verdict(r"\boxed{5}", "6").detail == "value"
    assert math_verdict(r"\boxed{1+x}", "x+1").detail == "symbolic"
    assert math_verdict(r"\boxed{(5}", "5").detail == "a bracket is not closed at the end"


def test_long_answers_are_recorded_short() -> None:
    verdict = math_verdict(r"\boxed{" + "1+" * 300 + "x}", "5")
    assert len(verdict.answer or "") == 64


def test_right_answer_beyond_the_grammar_is_compared_by_spelling() -> None:
    gold = r"\sum_{k=1}^n k"
    assert not is_readable(gold)
    assert math_verdict(r"$\boxed{\sum_{k=1}^n  k}$", gold).status is VerdictStatus.CORRECT
    assert math_verdict(r"\boxed{5}", gold).status is VerdictStatus.INCORRECT


def test_final_answer_is_one_spelling_a_value_and_never_raises() -> None:
    assert final_math(r"\boxed{0.50}") == final_math(r"so \boxed{x = \frac12}") == "1/2"
    assert final_math(r"\boxed{\int x}") == r"\intx"
    assert final_math("no idea what it could be") is None
