from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.answers import canonical_text
from tasks.puzzles.exact_expression import ExpressionError
from tasks.puzzles.stated_expression import final_expression, last_tagged, read_expression, stated_expression


@pytest.mark.parametrize(
    ("reply", "expression"),
    [
        ("(1 + 2) * 8", "(1 + 2) * 8"),
        ("(1 + 2) * 8 = 24", "(1 + 2) * 8"),
        ("24 = (1 + 2) * 8", "(1 + 2) * 8"),
        ("(1 + 2) * 8 = 3 * 8 = 24", "(1 + 2) * 8"),
        ("x = 3 * 4", "3 * 4"),
        ("13 + 1 = 14.", "13 + 1"),
        ("The solution is **(1+2)*8**.", "(1 + 2) * 8"),
        ("`(1+2)*8`", "(1 + 2) * 8"),
        ("So it is $(1 + 2) \\times 8 = 24$.", "(1 + 2) * 8"),
        ("\\[ \\frac{8}{3 - 8/3} = 24 \\]", "8 / (3 - 8 / 3)"),
        ("\\( (1+2)*8 \\)", "(1 + 2) * 8"),
        ("- 3 + 5", "3 + 5"),
        ("1) 3 + 5", "3 + 5"),
        ("2. (3 + 5) * 3", "(3 + 5) * 3"),
        ("-3 + 5", "-3 + 5"),
        ("3 + 4 = 7 \\text{ dollars}", "3 + 4"),
        ("The well-known 3 + 4 = 7", "3 + 4"),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 14", "7 * 2"),
        ("3 * 4 = 12\n\nHope this helps!", "3 * 4"),
        ("3 * 4 = 12\nEach number is used once: 3, 4.", "3 * 4"),
        ("The answer is 24.", "24"),
        ("24 = 24", "24"),
        ("<answer>unclosed 3+4", "3 + 4"),
        ("<answer>3 + 4 \\\\</answer>", "3 + 4"),
        ("<answer>3 + 4;</answer>", "3 + 4"),
        ("3+4</answer>", "3 + 4"),
    ],
)
def test_last_expression_is_the_answer(reply: str, expression: str) -> None:
    assert final_expression(reply) == expression


@pytest.mark.parametrize(
    ("reply", "expression"),
    [
        ("<answer>(1 + 2) / 3</answer> and not 4 + 5", "(1 + 2) / 3"),
        ("<answer> (1 + 2) / 3 = 1 </answer>", "(1 + 2) / 3"),
        ("<answer>1 + 2</answer> no: <ANSWER>\n3 + 4\n</ANSWER >", "3 + 4"),
        ("<answer>1 + 2</answer><answer> </answer><answer>", "1 + 2"),
        ("<answer>\\boxed{1 + 2}</answer>", "1 + 2"),
        ("<answer>$$1 + 2$$</answer>", "1 + 2"),
        ("\\boxed{1 + 2 = 3}, or else 5 + 6", "1 + 2"),
        ("\\boxed{\\frac{1 + 2}{3}}", "(1 + 2) / 3"),
        ("\\boxed{}, \\boxed{1 + 2}, \\boxed{3", "1 + 2"),
        ("<answer>1 + 2</answer> \\boxed{3 + 4}", "1 + 2"),
        ("Answer: (3 + 4) * 2\nThat is 7 * 2.", "(3 + 4) * 2"),
        ("**Answer:** 13 + 1 = 14, since 3 + 1 = 4", "13 + 1"),
        ("The answer is\n\n(3 + 4) * 2\n\nas 7 * 2 is 14", "(3 + 4) * 2"),
        ("#### 3 + 4\n5 + 6", "3 + 4"),
        ("The answer is 5. No: the answer is 3 + 4.\n5 + 6", "3 + 4"),
        ("3 + 4 is it. So the answer is correct.", "3 + 4"),
        ("Answer: 3, that is 1 + 2", "1 + 2"),
    ],
)
def test_tag_comes_before_box_before_mark_before_the_last_expression(reply: str, expression: str) -> None:
    assert final_expression(reply) == expression


@pytest.mark.parametrize(
    "reply", ["", " \n ", "I do not know.", "no + no", "<answer> </answer>", "\\boxed{}", "()", "__import__('os')", "x - y"]
)
def test_reply_without_numbers_states_nothing(reply: str) -> None:
    assert stated_expression(reply) is None
    assert final_expression(reply) is None


@pytest.mark.parametrize(
    "reply",
    [
        "<answer>none</answer>",
        "<answer>__import__('os').system('true')</answer>",
        "<answer>The expression is 3 + 4</answer>",
        "\\boxed{\\text{impossible}}",
        "\\boxed{3 + 4 \\text{ or } 5}",
        "9**9**9",
        "((9!)!)!",
        "3 + 4!",
        "2^3 + 16",
        "2 ^ 3 + 16",
        "sqrt(9) * 8 = 24",
        "\\sqrt{9} * 8 = 24",
        "√9 * 8",
        "f(3) + g(4)",
        "(3 + 4",
        "8 * 3 + sqrt(4)",
        "5! + 3",
        "x3 + 4",
    ],
)
def test_what_cannot_be_read_is_no_expression(reply: str) -> None:
    stated = stated_expression(reply)
    assert stated is not None
    with pytest.raises(ExpressionError):
        read_expression(stated)
    assert final_expression(reply) == canonical_text(stated)


def test_unfinished_equation_is_read_by_its_finished_side() -> None:
    assert final_expression("3 + 4 =") == "3 + 4"


def test_last_tag_that_is_closed_and_not_blank_counts() -> None:
    assert last_tagged("<answer>a</answer><answer>b</answer><answer> </answer><answer>c") == "b"
    assert last_tagged("</answer>a<answer>") is None


@pytest.mark.parametrize(
    "reply",
    [
        "(" * 100_000,
        "9" * 100_000,
        "1+" * 50_000,
        "1 " * 50_000,
        "1." * 50_000,
        "^1" * 50_000,
        "-" * 100_000,
        "$" * 100_000,
        "\\" * 100_000,
        "=" * 100_000,
        "1=" * 50_000,
        "x " * 50_000,
        "a " * 50_000,
        "a1" * 50_000,
        "1\n" * 50_000,
        "\n" * 100_000,
        " " * 100_000,
        "answer is " * 10_000,
        "answer: 1\n" * 10_000,
        "answer " + "*" * 100_000,
        "<answer>" * 12_000,
        "<answer>1</answer>" * 5_000,
        "\\boxed{" * 14_000,
        "\\boxed{1}" * 11_000,
        "<answer>" + "." * 100_000 + "1</answer>",
        "<answer>" + "1=" * 900 + "</answer>",
        "<answer>" + " " * 1_900 + "1</answer>",
        "<answer>" + "." * 1_900 + "1</answer>",
        "\\frac{" * 16_000,
        "\ud800" * 100_000,
    ],
)
def test_hostile_reply_is_read_at_once(reply: str) -> None:
    started = time.perf_counter()
    final_expression(reply)
    assert time.perf_counter() - started < 2.0


PIECES = [*"0123456789.+-*/()[]{}xX ×=^!\\$`\n", "answer: ", "\\boxed{", "\\frac{", "<answer>", "</answer>", "12", " + "]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_reply_raises_and_what_is_read_is_canonical(reply: str) -> None:
    stated, final = stated_expression(reply), final_expression(reply)
    assert (stated is None) is (final is None)
    if stated is not None:
        try:
            assert read_expression(stated).text == final
        except ExpressionError:
            return
        assert final_expression(f"<answer>{final}</answer>") == final
