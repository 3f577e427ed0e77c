from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.records import Problem, VerdictStatus
from tasks.arithmetic import WORDS, Arithmetic, ArithmeticConfig, ArithmeticWeights, QuestionKind
from tasks.base import Task

ALL_KINDS = ArithmeticWeights(sum=1, difference=1, product=1, equation=1, reverse=1, count=1)
ZERO = {str(kind): 0.0 for kind in QuestionKind}
MIXED = Arithmetic(ArithmeticConfig(weights=ALL_KINDS), seed=0)
NUMERIC = Problem(task="arithmetic", problem_id="n", question="What is 3 + 4?", answer="7")
SPELLING = Problem(task="arithmetic", problem_id="w", question='Spell the word "cat" backwards.', answer="tac")


def only(kind: QuestionKind, **fields: Any) -> Arithmetic:
    return Arithmetic(ArithmeticConfig(weights=ArithmeticWeights(**{**ZERO, str(kind): 1.0}), **fields), seed=0)


def first(task: Task, split: str, num_problems: int) -> list[Problem]:
    return list(islice(task.problems(split), num_problems))


def bare(problem: Problem) -> str:
    return problem.question.partition(" Answer")[0]


def test_streams_of_equal_seeds_are_equal_and_of_others_are_not() -> None:
    config = ArithmeticConfig()
    assert first(Arithmetic(config, 1), "train", 100) == first(Arithmetic(config, 1), "train", 100)
    assert first(Arithmetic(config, 1), "train", 100) != first(Arithmetic(config, 2), "train", 100)


def test_any_problem_of_a_stream_is_read_without_those_before_it() -> None:
    assert [MIXED.problem("test", index) for index in (0, 7, 99)] == [first(MIXED, "test", 100)[index] for index in (0, 7, 99)]
    assert MIXED.problem("train", 10**12).problem_id.startswith("arithmetic/train/1000000000000-")


def test_ids_never_repeat_within_and_across_splits() -> None:
    ids = [problem.problem_id for split in ("train", "dev", "test") for problem in first(MIXED, split, 2000)]
    assert len(set(ids)) == len(ids)


def test_first_problem_is_the_same_in_every_process() -> None:
    """The literal pins the stream: changing it changes what a resumed run and a test score mean."""
    code = (
        "from tasks.arithmetic import Arithmetic, ArithmeticConfig;print(Arithmetic(ArithmeticConfig(), 0).problem('train', 0).problem_id)"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1"}
    output = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.strip() == Arithmetic(ArithmeticConfig(), 0).problem("train", 0).problem_id == "arithmetic/train/000000-39e42a14"


def test_no_question_is_asked_in_two_splits_whatever_the_seeds() -> None:
    config = ArithmeticConfig(weights=ALL_KINDS)
    train = {bare(problem) for seed in (0, 1) for problem in first(Arithmetic(config, seed), "train", 5000)}
    dev = {bare(problem) for seed in (2, 3) for problem in first(Arithmetic(config, seed), "dev", 1000)}
    test = {bare(problem) for seed in (4, 5) for problem in first(Arithmetic(config, seed), "test", 1000)}
    assert not train & dev and not train & test and not dev & test
    assert all(0.05 < len(held_out) / len(train | dev | test) < 0.2 for held_out in (dev, test))


def test_without_held_out_questions_the_splits_still_differ() -> None:
    task = only(QuestionKind.SUM, held_out_share=0.0)
    assert list(map(bare, first(task, "train", 100))) != list(map(bare, first(task, "test", 100)))


def test_split_without_any_question_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"held_out_share 0\.1"):
        only(QuestionKind.SUM, sum_max=0)


@pytest.mark.parametrize("split", ["validation", ""])
def test_unknown_split_is_refused_before_the_first_problem(split: str) -> None:
    with pytest.raises(ValueError, match="train, dev, test"):
        MIXED.problems(split)


def test_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        MIXED.problem("train", -1)


def test_kinds_come_in_proportion_to_their_weights() -> None:
    weights = ArithmeticWeights(**{**ZERO, "sum": 3.0, "reverse": 1.0})
    task = Arithmetic(ArithmeticConfig(weights=weights, sum_max=99), seed=0)
    kinds = Counter(problem.meta["kind"] for problem in first(task, "train", 4000))
    assert set(kinds) == {"sum", "reverse"}
    assert kinds["sum"] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("kind", [QuestionKind.SUM, QuestionKind.DIFFERENCE, QuestionKind.PRODUCT])
@pytest.mark.parametrize("negative", [False, True])
def test_answers_are_right_and_operands_within_bounds(kind: QuestionKind, negative: bool) -> None:
    task = only(kind, sum_max=20, difference_max=20, product_max=9, difference_negative=negative)
    answers = set()
    for problem in first(task, "train", 1000):
        expression = bare(problem).removeprefix("What is ").removesuffix("?").replace("times", "*")
        left, _, right = expression.split()
        assert 0 <= int(left) <= 20 and 0 <= int(right) <= 20
        assert int(problem.answer) == eval(expression)  # two integers and a sign
        answers.add(int(problem.answer))
    assert (min(answers) < 0) is (negative and kind is QuestionKind.DIFFERENCE)


def test_equations_hold_for_their_answer() -> None:
    for problem in first(only(QuestionKind.EQUATION), "train", 500):
        left, right = bare(problem).removesuffix(". What is x?").split(" = ")
        assert eval(left, {"x": int(problem.answer)}) == int(right)  # x, a sign and an integer


def test_reversed_words_are_no_longer_than_asked() -> None:
    lengths = set()
    for problem in first(only(QuestionKind.REVERSE, reverse_min_length=4, reverse_max_length=6), "train", 500):
        word = problem.question.split('"')[1]
        assert problem.answer == word[::-1] != word
        lengths.add(len(word))
    assert lengths == {4, 5, 6}


def test_letter_counts_are_right_and_balanced() -> None:
    counts = Counter[str]()
    for problem in first(only(QuestionKind.COUNT, count_word_length=6, count_max=2), "train", 1000):
        _, letter, _, word, _ = problem.question.split('"')
        assert problem.answer == str(word.count(letter)) and len(word) <= 6
        counts[problem.answer] += 1
    assert set(counts) == {"1", "2"}
    assert counts["1"] / 1000 == pytest.approx(0.5, abs=0.08)


def test_words_are_distinct_lower_case_and_no_palindromes() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isascii() and word.islower() and word.isalpha() and word != word[::-1] for word in WORDS)
    assert {len(word) for word in WORDS} == set(range(3, 9))


def test_prompt_is_one_user_message_with_the_instruction() -> None:
    task = only(QuestionKind.SUM, number_instruction="Just the number!")
    (message,) = task.prompt(task.problem("train", 0))
    assert message["role"] == "user" and message["content"].endswith("? Just the number!")


@pytest.mark.parametrize("split", ["train", "test"])
def test_own_answers_are_correct_in_any_wording(split: str) -> None:
    for problem in first(MIXED, split, 200):
        for response in (problem.answer, f"The answer is **{problem.answer.upper()}**.", f"I think:\n\n${problem.answer}$"):
            verdict = MIXED.verify(problem, response)
            assert (verdict.status, verdict.reward) == (VerdictStatus.CORRECT, 1.0), (problem, response)


@pytest.mark.parametrize(
    ("problem", "response", "status"),
    [
        (NUMERIC, "8", VerdictStatus.INCORRECT),
        (NUMERIC, "7.5", VerdictStatus.INCORRECT),
        (NUMERIC, "-7", VerdictStatus.INCORRECT),
        (NUMERIC, "7 or 8", VerdictStatus.INCORRECT),
        (NUMERIC, "8, no, 7", VerdictStatus.CORRECT),
        (NUMERIC, "9" * 100_000, VerdictStatus.INCORRECT),
        (NUMERIC, "seven", VerdictStatus.NO_ANSWER),
        (NUMERIC, "", VerdictStatus.NO_ANSWER),
        (SPELLING, "cat", VerdictStatus.INCORRECT),
        (SPELLING, "Tac!", VerdictStatus.CORRECT),
        (SPELLING, "42", VerdictStatus.NO_ANSWER),
    ],
)
def test_verdict(problem: Problem, response: str, status: VerdictStatus) -> None:
    verdict = MIXED.verify(problem, response)
    assert verdict.status is status
    assert verdict.reward == float(status is VerdictStatus.CORRECT)
    assert (verdict.answer is None) is (status is VerdictStatus.NO_ANSWER)


@pytest.mark.parametrize(
    ("problem", "response", "answer"),
    [
        (NUMERIC, "It is 007.0!", "7"),
        (NUMERIC, "8 it is", "8"),
        (NUMERIC, "seven", None),
        (SPELLING, "It is 'Tac'.", "tac"),
        (SPELLING, "42", None),
    ],
)
def test_final_answer_is_read_in_canonical_form_right_or_wrong(problem: Problem, response: str, answer: str | None) -> None:
    assert MIXED.final_answer(problem, response) == answer


@given(st.text(st.characters()), st.sampled_from([NUMERIC, SPELLING]))
def test_verify_never_raises_and_is_binary(response: str, problem: Problem) -> None:
    verdict = MIXED.verify(problem, response)
    assert verdict.status.is_scored and verdict.reward in (0.0, 1.0)
    assert verdict == MIXED.verify(problem, response)


@given(st.text(alphabet="7 .,-+\u2212x0)$\n", max_size=40))
def test_verify_never_raises_on_strings_made_of_numbers(response: str) -> None:
    assert MIXED.verify(NUMERIC, response).status.is_scored
