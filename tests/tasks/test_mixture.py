from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import cycle, islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.records import Problem
from tasks.arithmetic import Arithmetic, ArithmeticConfig
from tasks.base import TaskError
from tasks.config import TaskConfig
from tasks.curriculum import CurriculumConfig
from tasks.mixture import Mixture, Part
from tasks.registry import make_task
from tasks.stream import ProblemStream, is_endless
from tests.tasks.samples import EndlessTask, ListTask


def mixture(*, seed: int = 0, **parts: tuple[int | None, float]) -> Mixture:
    """Parts of so many problems (None: without end) and of such weights."""
    tasks = {label: EndlessTask() if size is None else ListTask(size) for label, (size, _) in parts.items()}
    return Mixture({label: Part(task=tasks[label], weight=weight) for label, (_, weight) in parts.items()}, seed)


def made(**parts: Any) -> Mixture:
    task = make_task(TaskConfig.model_validate({"name": "mixture", "mixture": {"parts": parts}}))
    assert isinstance(task, Mixture)
    return task


def take(stream: ProblemStream, num_problems: int) -> list[Problem]:
    return list(islice(stream, num_problems))


# ---- the task ----


def test_parts_are_drawn_from_in_proportion_to_their_weights() -> None:
    task = mixture(a=(5, 3.0), b=(5, 1.0), c=(5, 4.0))
    drawn = Counter(task.label_at("train", index) for index in range(8000))
    assert [drawn[label] / 8000 for label in "abc"] == pytest.approx([0.375, 0.125, 0.5], abs=0.02)


def test_choice_depends_on_seed_split_and_index_and_not_on_the_order_of_the_parts() -> None:
    def labels(task: Mixture, split: str) -> list[str]:
        return [task.label_at(split, index) for index in range(50)]

    one = mixture(a=(5, 1.0), b=(5, 2.0))
    assert labels(one, "train") == labels(mixture(b=(9, 2.0), a=(3, 1.0)), "train")
    assert labels(one, "train") != labels(one, "test")
    assert labels(one, "train") != labels(mixture(seed=1, a=(5, 1.0), b=(5, 2.0)), "train")


@given(st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(1, 8), st.floats(0.1, 10)), min_size=1))
def test_finite_mixture_ends_with_every_problem_of_every_part_once_and_in_its_order(parts: dict[str, tuple[int, float]]) -> None:
    problems = list(mixture(**parts).problems("train"))
    for label, (size, _) in parts.items():
        assert [problem.problem_id for problem in problems if problem.task == label] == [f"{label}/{index}" for index in range(size)]
    assert len(problems) == sum(size for size, _ in parts.values())


def test_endless_part_goes_on_when_a_finite_one_has_ended() -> None:
    task = mixture(few=(3, 1.0), many=(None, 1.0))
    drawn = Counter(problem.task for problem in islice(task.problems("train"), 100))
    assert drawn == {"few": 3, "many": 97}
    assert is_endless(task) and not is_endless(mixture(a=(3, 1.0), b=(4, 1.0)))
    assert is_endless(make_task(TaskConfig())) and not is_endless(ListTask(3))


def test_each_problem_is_posed_and_judged_by_its_part() -> None:
    task = made(
        arithmetic={"arithmetic": {"number_instruction": "Number!"}},
        countdown={"countdown": {"instruction": "Expression!"}},
        easy={"name": "countdown", "countdown": {"min_numbers": 2, "max_numbers": 2, "instruction": "Short!"}},
    )
    endings = {"arithmetic": "Number!", "countdown": "Expression!", "easy": "Short!"}
    problems = list(islice(task.problems("train"), 60))
    assert {problem.task for problem in problems} == set(endings)
    for problem in problems:
        assert task.prompt(problem)[-1]["content"].endswith(endings[problem.task])
        assert task.verify(problem, problem.answer).reward == 1.0
        assert task.verify(problem, "no").reward == 0.0
        assert task.final_answer(problem, problem.answer) == problem.answer


def test_part_called_by_its_task_has_the_problems_of_the_task_alone() -> None:
    task = made(arithmetic={}, sums={"name": "arithmetic"})
    alone = list(islice(Arithmetic(ArithmeticConfig(), 0).problems("train"), 20))
    problems = list(islice(task.problems("train"), 80))
    assert [problem for problem in problems if problem.task == "arithmetic"][:20] == alone
    sums = [problem for problem in problems if problem.task == "sums"][:20]
    assert [problem.problem_id[:18] for problem in sums[:2]] == ["sums/train/000000-", "sums/train/000001-"]
    assert [problem.question for problem in sums] != [problem.question for problem in alone]
    assert len({problem.problem_id for problem in problems}) == 80


def test_problem_of_another_task_is_refused_by_name() -> None:
    stranger = Problem(task="gsm8k", problem_id="gsm8k/1", question="?", answer="7")
    with pytest.raises(ValueError, match="'gsm8k/1' is of 'gsm8k', and the mixture's parts are arithmetic"):
        made(arithmetic={}).verify(stranger, "7")


def test_mixture_with_a_part_without_verifier_has_none() -> None:
    assert made(arithmetic={}).has_verifier
    assert not made(arithmetic={}, parquet={"parquet": {"verifier": "none"}}).has_verifier


def test_error_of_a_part_is_raised_before_the_first_problem() -> None:
    with pytest.raises(TaskError, match="part 'arithmetic': task arithmetic: no split 'eval'"):
        made(arithmetic={}, countdown={}).problems("eval")
    with pytest.raises(TaskError, match=r"part 'mine': task parquet: no data: set task\.mixture\.parts\.mine\.parquet\.path to a"):
        ProblemStream(made(arithmetic={}, mine={"name": "parquet"}), "train", 0)
    with pytest.raises(TaskError, match="part 'countdown': task countdown: no puzzle for split 'train'"):
        made(countdown={"countdown": {"min_numbers": 2, "max_numbers": 2, "number_max": 2, "target_min": 90}})


def test_mixture_travels_to_other_processes() -> None:
    task = made(arithmetic={}, game24={"weight": 2})
    problem = next(task.problems("test"))
    assert next(pickle.loads(pickle.dumps(task)).problems("test")) == problem


# ---- its configuration ----


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, 'name = "mixture" without parts'),
        ({"sums": {}}, "part 'sums' is not called by a task: set its name to one of aime, arithmetic, countdown"),
        ({"sums": {"name": "mixture"}}, "mixture.parts.sums.name"),
        ({"gsm8k": {"name": "arithmetic"}}, "part 'gsm8k' has the name \"arithmetic\""),
        ({"a b": {"name": "arithmetic"}}, "part 'a b': a label is made of"),
        ({"arithmetic": {"weight": 0}}, "weight"),
        ({"arithmetic": {"countdown": {}}}, "part 'arithmetic' is the task arithmetic, but has a section countdown"),
        ({"arithmetic": {"arithmetic": {"sum_maxx": 3}}}, "sum_maxx"),
    ],
)
def test_mixture_that_cannot_be_made_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig.model_validate({"name": "mixture", "mixture": {"parts": parts}})


def test_configuration_is_written_without_the_sections_of_other_tasks_and_read_back() -> None:
    parts = {"arithmetic": {"weight": 2.0}, "hard": {"name": "countdown", "countdown": {"max_numbers": 6}}, "reasoning-gym": {}}
    config = TaskConfig.model_validate({"name": "mixture", "mixture": {"parts": parts}})
    written = json.loads(config.model_dump_json())
    assert {label: set(part) for label, part in written["mixture"]["parts"].items()} == {
        "arithmetic": {"name", "weight", "arithmetic"},
        "hard": {"name", "weight", "countdown"},
        "reasoning-gym": {"name", "weight", "reasoning_gym"},
    }
    assert TaskConfig.model_validate(written) == config == pickle.loads(pickle.dumps(config))


# ---- its stream ----


def test_finite_part_meets_every_problem_once_an_epoch_and_an_endless_one_none_twice() -> None:
    problems = take(ProblemStream(mixture(few=(7, 1.0), many=(None, 2.0)), "train", seed=3), 300)
    few = [problem.problem_id for problem in problems if problem.task == "few"]
    for start in range(0, len(few) - 7, 7):
        assert len(set(few[start : start + 7])) == 7
    assert few[:7] != few[7:14]
    many = [problem.problem_id for problem in problems if problem.task == "many"]
    assert many == [f"many/{index}" for index in range(len(many))]


@given(skipped=st.integers(0, 60), enabled=st.booleans(), correct=st.lists(st.integers(0, 8), min_size=1, max_size=6))
def test_restored_into_a_fresh_stream_the_same_problems_follow(skipped: int, enabled: bool, correct: list[int]) -> None:
    def fresh() -> ProblemStream:
        task = mixture(few=(5, 1.0), more=(11, 1.5), many=(None, 2.0))
        return ProblemStream(task, "train", seed=3, curriculum=CurriculumConfig(enabled=enabled))

    def run(stream: ProblemStream, num_problems: int) -> list[Problem]:
        problems = []
        for num_correct in islice(cycle(correct), num_problems):
            problems.append(next(stream))
            stream.observe(problems[-1], num_correct=num_correct, num_scored=8)
        return problems

    saved, restored = fresh(), fresh()
    run(saved, skipped)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert restored.cursor == skipped and restored.num_passed_over == saved.num_passed_over
    assert run(restored, 25) == run(saved, 25)
    assert restored.state_dict() == saved.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {"a": 2, "b": 2}}, "stand at {'a': 2, 'b': 2}, which does not make 3 problems"),
        ({"parts": {"a": 4, "b": -1}}, "stand at"),
        ({"parts": {"a": 3}}, "has the parts a, this one a, b"),
        ({"parts": None}, "has the parts , this one a, b"),
        ({"a/num_problems": 5}, r"this stream of problems has .*, but the saved one has"),
    ],
)
def test_state_of_another_mixture_is_refused(change: dict[str, Any], message: str) -> None:
    stream = ProblemStream(mixture(a=(4, 1.0), b=(4, 1.0)), "train", 0)
    take(stream, 3)
    with pytest.raises(ValueError, match=message):
        ProblemStream(mixture(a=(4, 1.0), b=(4, 1.0)), "train", 0).load_state_dict({**stream.state_dict(), **change})
