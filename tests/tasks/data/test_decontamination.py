from __future__ import annotations

from tasks.data.decontamination import contaminated, normalised_question
from tasks.data.splits import MATH_500, question_digest

QUESTION = r"Find the number of real solutions of $x^{2}+\frac{1}{2} x \le 3$ in the interval $\left[0, 10\right]$."


def test_spelling_of_latex_and_blanks_do_not_matter() -> None:
    others = [
        "Find the number of real solutions of \\(x^2 + \\dfrac{1}{2}x \\leq 3\\)  in the interval\n\\([0,10]\\)",
        r"find the number of \textbf{real} solutions of $$x² + \tfrac12 x \leqslant 3$$ in the interval $[0,\,10]$",
    ]
    assert {normalised_question(text) for text in others} == {normalised_question(QUESTION)}


def test_other_questions_stay_apart() -> None:
    assert normalised_question(QUESTION) != normalised_question(QUESTION.replace("3", "4"))
    assert normalised_question("What is $x_1$?") != normalised_question("What is $x_2$?")


def test_contaminated_rows_are_those_that_are_or_begin_with_a_question_of_the_references() -> None:
    questions = [
        "Something else entirely.",
        QUESTION.replace("Find the number", "FIND THE number"),
        f"{QUESTION} The answer is in the form m/n. Please give the value of m + n.",
        f"Please answer. {QUESTION}",
        "What is 2 + 2?",
        "What is 2 + 2 and what follows from it for the rest of this long sentence?",
    ]
    assert contaminated(questions, [QUESTION, "What is $2+2$?"]) == {1, 2, 4}
    assert contaminated(questions, []) == frozenset()
    assert contaminated(["", "?!"], ["", "?!"]) == frozenset(), "what has neither letters nor digits is no question"


def test_recorded_rows_of_math_500_never_change() -> None:
    from hashlib import sha256

    rows = ",".join(map(str, sorted(MATH_500.values())))
    assert len(MATH_500) == 500 and rows.startswith("4,6,15,18,34,")
    assert sha256(rows.encode()).hexdigest() == "b9b8119d849551e6d7bb2489ca358594e92037a25a707ef0c9c19b39f9f2ed9c"


def test_digest_of_a_question_never_changes() -> None:
    """It is what MATH-500 is recognised by in any file."""
    assert question_digest("If $2^8=4^x$, what is the value of $x$?") in MATH_500
    assert MATH_500[question_digest("If \\(2^{8} = 4^{x}\\), what is the value of \\(x\\)?")] == 4
