from __future__ import annotations

import random

import pytest

from tasks.mathematics.nodes import Node, latex, walk
from tasks.mathematics.syntax import MAX_CHARS, Unreadable, parse


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (r"$\dfrac12$", r"\frac{1}{2}"),
        (r"\frac{270}7", r"\frac{270}{7}"),
        ("6 1/6", r"6\frac{1}{6}"),
        (r"6\frac76", r"6\cdot \frac{7}{6}"),
        (r"x \in [0,\tfrac12)", r"x \in [0, \frac{1}{2})"),
        ("]0,1[", "(0, 1)"),
        (r"\left\{ 1, 2 \right\}", r"\{1, 2\}"),
        ("{1,2}", r"\{1, 2\}"),
        (r"1 \pm \sqrt 5", r"1+\sqrt{5}, 1-\sqrt{5}"),
        (r"a \pm b \mp c", "a+b-c, a-b+c"),
        ("2xyz", r"2\cdot x\cdot y\cdot z"),
        (r"\sin^2 5x \cos x", r"(\sin(5\cdot x))^{2}\cdot \cos(x)"),
        (r"\log_{2} 8", r"\log_{2}(8)"),
        (r"\tan^{-1} x", r"\arctan(x)"),
        ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}"),
        (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}"),
        (r"5\mbox{ cm}^2", r"5\text{ cm ^2}"),
        (r"8\!:\!34 \text{ p.m.}", r"8:34\text{ p.m.}"),
        (r"2516_{\text{eight}}", "2516_8"),
        (r"\$1,\!657", r"1657\text{ $}"),
        ("x is 5", "x = 5"),
        ("about 5", "5"),
        (r"\text{ four }", "4"),
        ("x²≥½", r"x^{2} \ge \frac{1}{2}"),
        ("5.", "5"),
        ("-2^2", r"-2^{2}"),
        ("-x-y", "-x-y"),
    ],
)
def test_answer_is_read_and_written_anew(text: str, written: str) -> None:
    assert latex(parse(text)) == written


@pytest.mark.parametrize(
    "text", ["(1,2)", r"\frac{x+1}{2}", "1, 2", r"x \le 3", r"\sqrt[3]{x}", r"\{1, 2\}", "a-(b-c)", r"n!", r"\binom{5}{2}", "x_{1}"]
)
def test_what_is_written_anew_reads_the_same(text: str) -> None:
    assert parse(latex(parse(text))) == parse(text)


def test_letters_side_by_side_are_factors_and_words_are_words() -> None:
    assert parse("xy") == Node("product", (Node("symbol", text="x"), Node("symbol", text="y")))
    assert parse("even") == Node("word", text="even")
    assert parse("5 apples") == Node("quantity", (Node("number", text="5"),), "apples")
    assert parse("5 m").head == "quantity" and parse("5m").head == "product"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("5 +", "a value is missing at the end"),
        ("(5", "a bracket is not closed at the end"),
        ("5)", r"cannot go on before '\)'"),
        (r"\frac{5}{", "a value is missing"),
        (r"\int_0^5 k", "an unknown command"),
        (r"\begin{cases} 1 \end{cases}", "an unknown environment 'cases'"),
        ("[1,2,3)", "brackets of two kinds"),
        ("x" * (MAX_CHARS + 1), f"{MAX_CHARS + 1} characters, more than {MAX_CHARS}"),
        ("9" * 1500, "a number of 1500 characters"),
        ("1," * 400, "tokens, more than"),
        ("(" * 30 + "1" + ")" * 30, "brackets in brackets"),
        ("-" * 100 + "1", "brackets in brackets"),
        ("5!!!!!!", "exponents upon exponents"),
        ("1/2/3/4/5/6/7", "cannot go on"),
    ],
)
def test_unreadable_text_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        parse(text)


COMMANDS = r"""
\frac
\sqrt
\text{
\left(
\right)
\{
\}
\pm
\cup
\in
\sin
\log
\\
\circ
\begin{pmatrix}
\end{pmatrix}
^{
and
cm
²
½
\overline
\boxed{
"""


def test_parser_never_fails_otherwise_and_keeps_trees_small() -> None:
    """Random text of the signs that matter: a node of bounded depth, or Unreadable."""
    pieces = [*"0123456789xyzab+-*/^_(){}[]|!%,;:.=<>'&$ ", *map(str.strip, COMMANDS.splitlines())]
    rng = random.Random(0)
    num_read = 0
    for _ in range(6000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 40)))
        try:
            node = parse(text)
        except Unreadable:
            continue
        num_read += 1
        assert latex(node) is not None and len(list(walk(node))) < 500
    assert num_read > 100
