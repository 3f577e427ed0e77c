"""Where the answer stands in a response is one rule for all tasks, and so is how exact it must be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import VERIFIER_MEANS, VerifierConfig
from tasks.answers import final_number, final_text, last_number, last_word, number_verdict
from tasks.base import JudgingConfig, Problem, Verdict, VerdictStatus
from tasks.config import TaskConfig
from tasks.mathematics.verify import math_verdict, stated_answer
from tasks.mbpp_plus import MbppPlus
from tasks.puzzles.number_puzzle import Puzzle
from tasks.puzzles.stated_expression import stated_expression
from tasks.registry import make_task

DEFAULT = JudgingConfig()
OFF = JudgingConfig(reasoning_tags=("", ""))
OPEN = JudgingConfig(reasoning_from_start=True)
MARKED = JudgingConfig(reasoning_tags=("[THINK]", "[/THINK]"))
CHANNELS = JudgingConfig(reasoning_tags=("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"))


@pytest.mark.parametrize(
    ("judging", "response", "part"),
    [
        (DEFAULT, "It is 9.", "It is 9."),
        (DEFAULT, "<think>7</think> It is 9.", " It is 9."),
        (DEFAULT, "7, hm.</think>9", "9"),  # the prompt opened the reasoning
        (DEFAULT, "<think>6</think>7<think>8</think>9", "9"),
        (DEFAULT, "<think></think>9", "9"),
        (DEFAULT, "<think>7", ""),  # cut off
        (DEFAULT, "9 <think>is it?", ""),
        (DEFAULT, "<think>6</think>9<think>7", ""),
        (DEFAULT, "", ""),
        (OFF, "<think>7</think>9", "<think>7</think>9"),
        (OPEN, "7, so", ""),
        (OPEN, "7, so</think>9", "9"),
        (MARKED, "[THINK]7[/THINK]9", "9"),
        (MARKED, "[THINK]7", ""),
        (MARKED, "<think>7</think>9", "<think>7</think>9"),
        (CHANNELS, "<|channel|>analysis<|message|>7<|end|><|start|>assistant<|channel|>final<|message|>9<|return|>", "9"),
        (CHANNELS, "<|channel|>analysis<|message|>7", ""),
        (DEFAULT, "9<|im_end|>\n<|im_start|>user\n7", "9"),
        (DEFAULT, "<|im_start|>assistant\n9<|im_end|>", "\n9"),
        (DEFAULT, "<|start_header_id|>assistant<|end_header_id|>9<|eot_id|>", "9"),
        (DEFAULT, "9</s>7", "9"),
        (DEFAULT, "9<eos>7", "9"),
        (DEFAULT, "9[INST]7", "9"),
        (DEFAULT, "9<end_of_turn>\n<start_of_turn>user\n7", "9"),
        (DEFAULT, "9<｜end▁of▁sentence｜>7", "9"),
        (DEFAULT, "<think>a <|im_start|> b</think>9<|im_end|><think>7</think>8", "9"),
        (DEFAULT, "9<|im_end|><|im_start|>assistant\n<think>7", "9"),
    ],
)
def test_answer_part_follows_the_reasoning_and_ends_with_the_turn(judging: JudgingConfig, response: str, part: str) -> None:
    assert judging.answer_part(response) == part


@pytest.mark.parametrize("judging", [DEFAULT, OFF, OPEN, MARKED])
@pytest.mark.parametrize(
    "response", ["so 9", f"<think>{'7' * 100}</think> so 9", f"<think>{'7' * 100} so 9", f"[THINK]{'7' * 100}[/THINK] 9"]
)
def test_shortened_response_states_the_same(judging: JudgingConfig, response: str) -> None:
    """Cutting a long response at its start must not hide where its reasoning began."""
    short = judging.shortened(response, 30)
    assert len(short) <= 30 + len(judging.reasoning_tags[1])
    if judging is not OFF:
        assert final_number(short, judging) == final_number(response, judging)


INSIDE = "<think>I get 7 \\boxed{7}, 3*8 \\boxed{3*8}, but wait.</think>"


def test_every_reader_leaves_the_reasoning_out() -> None:
    for read in (final_number, last_number, final_text, last_word, stated_answer, stated_expression):
        assert read(f"{INSIDE} 9 nine") == read(" 9 nine")  # type: ignore[operator]
        assert read(INSIDE) is None  # type: ignore[operator]
        assert read(INSIDE.replace("</think>", "")) is None  # type: ignore[operator]


PUZZLE = Puzzle(numbers=(3, 8), target=24, must_use_all=True).question


@pytest.mark.parametrize(
    ("task", "question", "answer", "inside"),
    [
        ({"name": "arithmetic"}, "?", "7", "7"),
        ({"name": "arithmetic"}, "?", "tac", "tac"),
        ({"name": "gsm8k"}, "?", "7", "#### 7"),
        ({"name": "math"}, "?", "7", "\\boxed{7}"),
        ({"name": "aime"}, "?", "7", "\\boxed{7}"),
        ({"name": "dapo-math"}, "?", "7", "Answer: 7"),
        ({"name": "parquet", "parquet": {"verifier": "number"}}, "?", "7", "7"),
        ({"name": "parquet", "parquet": {"verifier": "math"}}, "?", "\\frac12", "\\boxed{0.5}"),
        ({"name": "parquet", "parquet": {"verifier": "exact"}}, "?", "Paris", "\\boxed{Paris}"),
        ({"name": "countdown"}, PUZZLE, "3*8", "<answer>3 * 8</answer>"),
        ({"name": "game24"}, PUZZLE, "3*8", "\\boxed{3 * 8}"),
        *(({"name": "reasoning-gym", "reasoning_gym": {"scoring": scoring}}, "?", "7", "7") for scoring in ("number", "exact", "text")),
        ({"name": "reasoning-gym", "reasoning_gym": {"scoring": "expression"}}, "?", "3 * 8", "\\boxed{3 * 8}"),
    ],
)
def test_no_task_rewards_an_answer_inside_the_reasoning(task: dict[str, Any], question: str, answer: str, inside: str) -> None:
    made = make_task(TaskConfig.model_validate(task))
    problem = Problem(task=made.name, problem_id="0", question=question, answer=answer)
    assert made.verify(problem, inside).status is VerdictStatus.CORRECT
    assert made.verify(problem, f"<think>hm</think>\n{inside}").status is VerdictStatus.CORRECT
    for response in (
        f"<think>{inside}</think>",
        f"<think>{inside}",
        f"{inside}</think> I am not sure at all about this",
        f"{inside}</think>11",
    ):
        assert made.verify(problem, response).status is not VerdictStatus.CORRECT, response
        assert made.final_answer(problem, response) != made.final_answer(problem, inside), response
    marked = make_task(TaskConfig.model_validate(task), MARKED)
    assert marked.verify(problem, f"[THINK]{inside}[/THINK]").status is not VerdictStatus.CORRECT


def test_programs_follow_the_same_rule() -> None:
    task, marked = make_task(TaskConfig(name="mbpp-plus")), make_task(TaskConfig(name="mbpp-plus"), MARKED)
    problem = Problem(task="mbpp-plus", problem_id="0", question="?", answer="{}")
    block = "```python\ndef f(): pass\n```"
    assert isinstance(task, MbppPlus) and task.final_answer(problem, block) == "def f(): pass"
    for made, response in ((task, f"<think>{block}"), (task, f"<think>{block}</think>none"), (marked, f"[THINK]{block}[/THINK]")):
        assert made.final_answer(problem, response) is None
        assert made.verify(problem, response).status is VerdictStatus.NO_ANSWER


def test_parts_of_a_mixture_read_by_the_same_tags() -> None:
    config = TaskConfig.model_validate({"name": "mixture", "mixture": {"parts": {"gsm8k": {}, "math": {}}}})
    mixture = make_task(config, MARKED)
    for part in ("gsm8k", "math"):
        problem = Problem(task=part, problem_id=f"{part}/0", question="?", answer="9")
        assert mixture.verify(problem, "[THINK]\\boxed{7}[/THINK] The answer is 9.").status is VerdictStatus.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        (r"\frac13", "0.33", VerdictStatus.CORRECT),
        (r"\frac13", "0.333", VerdictStatus.CORRECT),
        (r"\frac13", "0.3", VerdictStatus.INCORRECT),
        (r"\frac13", "0.34", VerdictStatus.INCORRECT),
        (r"\frac13", "-0.33", VerdictStatus.INCORRECT),
        (r"\pi", "3.14", VerdictStatus.CORRECT),
        ("3.14", r"\pi", VerdictStatus.CORRECT),
        (r"\pi", r"\frac{22}{7}", VerdictStatus.INCORRECT),  # no decimal, so not rounded
        (r"\ln 2", "0.69", VerdictStatus.CORRECT),
        ("(1,\\sqrt2)", "(1, 1.41)", VerdictStatus.CORRECT),
        (r"\frac13, \frac23", "0.67, 0.33", VerdictStatus.CORRECT),
        (r"\frac13", r"33.33\%", VerdictStatus.CORRECT),
        (r"\frac{x}{3}", "0.33x", VerdictStatus.INCORRECT),
    ],
)
def test_rounding_lets_decimals_equal_what_they_are_near(gold: str, answer: str, status: VerdictStatus) -> None:
    def verdict(judging: JudgingConfig) -> Verdict:
        return math_verdict(f"\\boxed{{{answer}}}", gold, judging)

    assert verdict(JudgingConfig(rounding=2)).status is status
    assert verdict(DEFAULT).status is VerdictStatus.INCORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("1/3", "0.33", True),
        ("1/3", "0.34", False),
        ("2.5", "2.499", True),
        ("7", "7.3", False),
        ("1/3", "33/100", True),
        ("2/3", "5/7", False),
    ],
)
def test_rounding_holds_for_stated_numbers(gold: str, answer: str, is_right: bool) -> None:
    assert number_verdict(f"#### {answer}", gold, JudgingConfig(rounding=2)).reward == float(is_right)
    assert number_verdict(f"#### {answer}", gold).reward == 0.0


def test_the_verifier_section_has_these_keys_and_they_may_not_change_when_a_run_goes_on() -> None:
    assert issubclass(VerifierConfig, JudgingConfig)
    assert not {f"verifier.{key}" for key in JudgingConfig.model_fields} & set(VERIFIER_MEANS)
    assert "verifier.max_response_chars" not in VERIFIER_MEANS  # a response that is cut otherwise may get another verdict
    assert "verifier.timeout_s" in VERIFIER_MEANS
    with pytest.raises(ValidationError):
        VerifierConfig.model_validate({"rounding": -1})
