from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.puzzles.exact_expression import MAX_CHARS, MAX_DEPTH, MAX_NUMBERS, ExpressionError, combined, number_term, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 - 3 - 2", 3),
        ("8 - (3 - 2)", 7),
        ("8 / 4 / 2", 1),
        ("8 / (4 / 2)", 4),
        ("8 / (3 - 8 / 3)", 24),
        ("1 / 3 + 1 / 6", Fraction(1, 2)),
        ("-3 + 5", 2),
        ("-(3 - 5) * 2", 4),
        ("2 * -3", -6),
        ("2 - -3", 5),
        ("--3", 3),
        ("+3", 3),
        ("0.1 + 0.2", Fraction(3, 10)),
        (".5 * 4", 2),
        ("007", 7),
        ("1 / 0", None),
        ("0 * (1 / (2 - 2))", None),
        ("10000000000000000000000 * 10000000000000000000000 - 10000000000000000000000 * 10000000000000000000000", 0),
    ],
)
def test_value_is_exact(text: str, value: Fraction | None) -> None:
    assert parse(text).value == value


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("(1+2)*3", "(1 + 2) * 3"),
        ("((1 + 2)) * (3)", "(1 + 2) * 3"),
        ("1 + (2 * 3)", "1 + 2 * 3"),
        ("1 + (2 + 3)", "1 + (2 + 3)"),
        ("3.0 + 04", "3 + 4"),
        ("6 × 4 ÷ 2 − 1", "6 * 4 / 2 - 1"),
        ("6·4⋅2 ／ 3", "6 * 4 * 2 / 3"),
        ("3 x 4 X 5", "3 * 4 * 5"),
        (r"3 \* 4", "3 * 4"),
        ("（1 ＋ 2）* [3 – {4 - 5}]", "(1 + 2) * (3 - (4 - 5))"),
        (r"\left( 1 + 2 \right) \times 3 \div 4 \cdot 5", "(1 + 2) * 3 / 4 * 5"),
        (r"\frac{8}{3 - \frac{8}{3}}", "8 / (3 - 8 / 3)"),
        (r"\dfrac {1 + 2} {3}\,+\;4", "(1 + 2) / 3 + 4"),
        (r"2 - \tfrac{1}{2} * 4", "2 - 1 / 2 * 4"),
        (r"\{1 + 2\} * 3", "(1 + 2) * 3"),
        ("- (2 * 3)", "-(2 * 3)"),
    ],
)
def test_spellings_of_one_expression_are_one(text: str, spelling: str) -> None:
    assert parse(text).text == spelling
    assert parse(spelling) == parse(text)


def test_numbers_are_the_literals_from_left_to_right() -> None:
    assert parse(r"\frac{95 × 2}{24 − 21.50} - -24").numbers == (95, 2, 24, Fraction(43, 2), 24)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no number"),
        ("  ", "no number"),
        ("()", "'\\)' where a number is due"),
        ("+", "no number"),
        ("1 +", "it ends where a number is due"),
        ("* 2", "'\\*' where a number is due"),
        ("1 + * 2", "'\\*' where a number is due"),
        ("2 3", "no sign between two terms"),
        ("2(3 + 4)", "no sign between two terms"),
        ("(1)(2)", "no sign between two terms"),
        (r"2\frac{1}{2}", "no sign between two terms"),
        ("(1 + 2", "a bracket is not closed"),
        ("1 + 2)", "'\\)' closes no bracket"),
        ("(1 + 2]", "'\\]' closes no bracket"),
        (r"\frac{1}", "a bracket is not closed"),
        (r"\frac{1} 2", "a fraction without {denominator}"),
        (r"\frac 1 2", "a fraction without {numerator}"),
        ("2 ** 3", "'\\*' where a number is due"),
        ("2 ^ 3", "'\\^' is no part"),
        ("3!", "'!' is no part"),
        ("sqrt(9)", "'s' is no part"),
        ("1.2.3", "is no part"),
        ("1,000", "',' is no part"),
        ("1e3", "is no part"),
        ("2x", "is no part"),
        ("x + 1", "'x' is no part"),
        ("1 = 1", "'=' is no part"),
        ("٣ + 1", "is no part"),
        ("1 // 2", "'/' where a number is due"),
        ("1 if 1 else 2", "'i' is no part"),
        ("9" * 25, "more than 24 digits"),
        ("+".join("1" * (MAX_NUMBERS + 1)), "more than 64 numbers"),
        ("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "nested more than 64 deep"),
        ("-" * (MAX_DEPTH + 1) + "1", "nested more than 64 deep"),
        (" " * MAX_CHARS + "1", "longer than 2000 characters"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    "text", ["+".join("1" * MAX_NUMBERS), "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, "9" * 24, "1" + " " * (MAX_CHARS - 1)]
)
def test_limits_may_be_reached(text: str) -> None:
    assert parse(text).value is not None


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9^9^9^9",
        "((9!)!)!",
        "1" * 100_000,
        "(" * 100_000,
        "(" * 50_000 + "1" + ")" * 50_000,
        "-" * 100_000 + "1",
        "1+" * 50_000 + "1",
        "1/" * 50_000 + "1",
        r"\frac{1}{" * 10_000,
        "x " * 50_000,
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "lambda: 0",
        "1 .__class__",
        "\x00",
        "\ud800",
        "1" + "\u202e" + "2",
        "*".join(["9" * 24] * 64) + "**9",
        "1/(" + "*".join(["9" * 24] * 63) + ")!",
    ],
)
def test_hostile_text_is_refused_at_once(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ExpressionError):
        parse(text)
    assert time.perf_counter() - started < 1.0


def test_largest_expression_is_evaluated_at_once() -> None:
    started = time.perf_counter()
    value = parse(" / ".join(["9" * 24] * 64)).value
    assert value == Fraction(10**24 - 1) ** -62
    assert time.perf_counter() - started < 1.0


@dataclass(frozen=True)
class Tree:
    """An expression as a tree; a leaf has a number only."""

    sign: str = ""
    left: Tree | None = None
    right: Tree | None = None
    number: int = 0


def trees(depth: int) -> st.SearchStrategy[Tree]:
    leaf = st.builds(Tree, number=st.integers(0, 120))
    if depth == 0:
        return leaf
    below = trees(depth - 1)
    pair = st.builds(Tree, sign=st.sampled_from("+-*/"), left=below, right=below)
    return st.one_of(leaf, pair, st.builds(Tree, sign=st.just("negative"), left=below))


def evaluate(tree: Tree) -> Fraction:
    """Straight from the definition, by recursion. Raises ZeroDivisionError."""
    if not tree.sign:
        return Fraction(tree.number)
    assert tree.left is not None
    left = evaluate(tree.left)
    if tree.sign == "negative":
        return -left
    assert tree.right is not None
    right = evaluate(tree.right)
    return {"+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right, "/": lambda: left / right}[tree.sign]()


def leaves(tree: Tree | None) -> list[int]:
    if tree is None:
        return []
    return leaves(tree.left) + leaves(tree.right) if tree.sign else [tree.number]


SPELLINGS = {"+": ["+", " + ", "＋"], "-": ["-", " − ", "–"], "*": ["*", "×", r" \times ", " x "], "/": ["/", " ÷ ", r"\div "]}


def write(tree: Tree, draw: st.DrawFn) -> str:
    """With a bracket around everything that has a sign, and chance brackets, signs and spaces besides."""
    if not tree.sign:
        text = str(tree.number)
    elif tree.sign == "negative":
        text = f"(-{write(tree.left, draw)})"  # type: ignore[arg-type]
    elif tree.sign == "/" and draw(st.booleans()):
        text = rf"\frac{{{write(tree.left, draw)}}}{{{write(tree.right, draw)}}}"  # type: ignore[arg-type]
    else:
        text = f"({write(tree.left, draw)}{draw(st.sampled_from(SPELLINGS[tree.sign]))}{write(tree.right, draw)})"  # type: ignore[arg-type]
    return draw(st.sampled_from(["{}", " {} ", "({})", "[{}]", r"\left({}\right)"])).replace("{}", text, 1)


@st.composite
def written_trees(draw: st.DrawFn) -> tuple[Tree, str]:
    tree = draw(trees(4))
    return tree, write(tree, draw)


@given(written_trees())
def test_value_and_numbers_are_those_of_the_tree_it_was_written_from(written: tuple[Tree, str]) -> None:
    tree, text = written
    expression = parse(text)
    try:
        expected: Fraction | None = evaluate(tree)
    except ZeroDivisionError:
        expected = None
    assert expression.value == expected
    assert list(expression.numbers) == leaves(tree)


@given(written_trees())
def test_what_is_printed_parses_to_the_same(written: tuple[Tree, str]) -> None:
    expression = parse(written[1])
    assert parse(expression.text) == expression
    assert parse(expression.text.replace(" ", "")) == expression


@given(st.text(st.sampled_from("0123456789.+-*/()[]{}xX ×÷−^!=\\ "), max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        expression = parse(text)
    except ExpressionError:
        return
    assert parse(expression.text) == expression


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with suppress(ExpressionError):
        parse(text)


def test_combined_terms_get_the_brackets_they_need() -> None:
    two, three, four = map(number_term, (2, 3, 4))
    total = combined(two, "+", three)
    assert combined(total, "*", four).text == "(2 + 3) * 4"
    assert combined(four, "-", total).text == "4 - (2 + 3)"
    assert combined(total, "-", four).text == "2 + 3 - 4"
    assert combined(four, "/", combined(two, "*", three)).text == "4 / (2 * 3)"
