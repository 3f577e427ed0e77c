"""The look at a job's prompts before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.config import PromptConfig, SamplingConfig
from buffers.records import Problem
from jobs.configuration.user_error import UserError
from jobs.processes.prompts import DRAWN, LOOKED_AT, Fit, PromptLook
from learners.model_check import ModelFacts
from learners.model_files import TokenLimit
from learners.models import ModelError
from tests.actors.test_prompts import WITHOUT_SYSTEM_ROLE


def problem(number: int, length: int) -> Problem:
    return Problem(task="t", problem_id=f"t/{number}", question="x" * length, answer="")


def messages_of(asked: Problem) -> list[dict[str, str]]:
    system = [{"role": "system", "content": "S"}] if asked.question.startswith("xxS") else []
    return [*system, {"role": "user", "content": asked.question}]


def with_system(number: int) -> Problem:
    return Problem(task="t", problem_id=f"t/{number}", question="xxS", answer="")


def look(model: str, *, limit: int | None = 512, prompt: dict[str, Any] | None = None, **sampling: Any) -> PromptLook:
    facts = ModelFacts(
        path=model,
        limit=None if limit is None else TokenLimit(tokens=limit, key="max_position_embeddings"),
        num_embeddings=104,
        max_token_id=103,
    )
    config = PromptConfig.model_validate(prompt or {})
    return PromptLook(facts, config, SamplingConfig.model_validate({"max_response_tokens": 12, **sampling}), messages_of)


def fitted(found: Fit) -> int | None:
    return found.sampling.max_prompt_tokens


def test_an_unset_limit_gives_room_for_the_longest_prompt(tiny_model: str) -> None:
    found = look(tiny_model).at([problem(0, 5), problem(1, 100), problem(2, 20)], is_all=True)
    shortest = look(tiny_model).at([problem(0, 5)], is_all=True)
    assert fitted(found) - fitted(shortest) == 95  # type: ignore[operator]
    assert found.unusable == frozenset() and found.warnings == ()


def test_a_task_without_end_gets_room_for_twice_the_longest_that_was_seen(tiny_model: str) -> None:
    seen = [problem(number, 10 + number % 7) for number in range(DRAWN)]
    finite, endless = (look(tiny_model).at(seen, is_all=is_all) for is_all in (True, False))
    assert fitted(endless) == 2 * fitted(finite)  # type: ignore[operator]


@pytest.mark.parametrize("is_all", [True, False])
def test_an_unset_limit_never_exceeds_what_the_model_leaves_beside_the_response(tiny_model: str, is_all: bool) -> None:
    assert fitted(look(tiny_model, limit=512, max_response_tokens=400).at([problem(0, 85)], is_all=is_all)) in range(100, 113)
    with pytest.raises(UserError, match=r"longer than the 112 tokens that model .* leaves beside sampling\.max_response_tokens"):
        look(tiny_model, limit=512, max_response_tokens=400).at([problem(0, 200)], is_all=is_all)


def test_a_model_that_sets_no_limit_takes_any_prompt(tiny_model: str) -> None:
    assert fitted(look(tiny_model, limit=None).at([problem(0, 3000)], is_all=True)) > 3000  # type: ignore[operator]


def test_rows_that_are_too_long_are_named_and_counted(tiny_model: str) -> None:
    problems = [problem(number, 50 if number % 2 else 200) for number in range(20)]
    with pytest.raises(UserError) as refused:
        look(tiny_model, max_prompt_tokens=100).at(problems, is_all=True)
    text = str(refused.value)
    assert text.startswith("the prompts of 10 of 20 problems are longer than sampling.max_prompt_tokens = 100: t/0 (")
    assert "and 7 more" in text and 'prompt.too_long = "leave_out"' in text and "raise that" in text and "\n" not in text


def test_a_prompt_of_exactly_the_limit_can_be_posed(tiny_model: str) -> None:
    exact = fitted(look(tiny_model).at([problem(0, 60)], is_all=True))
    assert exact is not None
    assert look(tiny_model, max_prompt_tokens=exact).at([problem(0, 60)], is_all=True).unusable == frozenset()
    with pytest.raises(UserError, match="1 of 1 problems"):
        look(tiny_model, max_prompt_tokens=exact - 1).at([problem(0, 60)], is_all=True)


def test_rows_that_are_too_long_are_left_out_if_asked_to(tiny_model: str) -> None:
    judge = look(tiny_model, prompt={"too_long": "leave_out"}, max_prompt_tokens=100)
    found = judge.at([problem(0, 200), problem(1, 50), problem(2, 300)], is_all=True)
    assert found.unusable == {"t/0", "t/2"} and fitted(found) == 100
    assert "2 of 3 problems are longer than sampling.max_prompt_tokens = 100: t/0" in found.warnings[0]
    assert [judge.may_pose(problem(9, length)) for length in (20, 500)] == [True, False]


def test_what_is_drawn_later_must_fit_the_room_that_engines_were_given(tiny_model: str) -> None:
    judge = look(tiny_model, prompt={"too_long": "leave_out"})
    room = fitted(judge.at([problem(0, 50)], is_all=False))
    assert room is not None and room < 500
    assert [judge.may_pose(problem(9, length)) for length in (50, 400)] == [True, False]


def test_where_no_problem_is_left_the_job_does_not_start(tiny_model: str) -> None:
    judge = look(tiny_model, prompt={"too_long": "leave_out"}, max_prompt_tokens=20)
    with pytest.raises(UserError, match=r"^no problem can be posed: the prompts of 2 of 2 problems"):
        judge.at([problem(0, 200), problem(1, 50)], is_all=True)


def test_rows_that_the_template_refuses_are_named_and_the_others_are_posed(tiny_model: str) -> None:
    judge = look(tiny_model, prompt={"template": WITHOUT_SYSTEM_ROLE})
    found = judge.at([problem(0, 9), with_system(1), problem(2, 9)], is_all=True)
    assert found.unusable == {"t/1"} and not judge.may_pose(with_system(5))
    (warning,) = found.warnings
    assert warning == "1 of 3 problems cannot be posed: t/1 (the chat template refuses it: System role not supported)"


def test_a_template_that_refuses_every_row_refuses_the_job(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"^no problem can be posed: 2 of 2 problems .*System role not supported"):
        look(tiny_model, prompt={"template": WITHOUT_SYSTEM_ROLE}).at([with_system(0), with_system(1)], is_all=True)


def test_of_very_many_problems_the_longest_are_looked_at(tiny_model: str) -> None:
    many = [problem(number, 1) for number in range(LOOKED_AT)]
    with pytest.raises(UserError, match=rf"1 of {LOOKED_AT} problems .*t/{LOOKED_AT} \("):
        look(tiny_model, max_prompt_tokens=100).at([*many, problem(LOOKED_AT, 400)], is_all=True)


def test_where_not_all_are_looked_at_there_is_room_for_more_tokens_in_fewer_characters(tiny_model: str) -> None:
    many = [problem(number, 20) for number in range(LOOKED_AT + 1)]
    assert fitted(look(tiny_model).at(many, is_all=True)) == 2 * fitted(look(tiny_model).at(many[1:], is_all=True))  # type: ignore[operator]


@pytest.mark.parametrize("lengths", [(5, 200), (200, 5), (5, 200, 7)])
def test_of_problems_of_one_id_the_longest_counts(tiny_model: str, lengths: tuple[int, ...]) -> None:
    same = [problem(0, length) for length in lengths]
    assert fitted(look(tiny_model).at(same, is_all=True)) == fitted(look(tiny_model).at([problem(1, 200)], is_all=True))
    with pytest.raises(UserError, match=r"1 of \d problems .*t/0 \(2\d\d tokens\)"):
        look(tiny_model, max_prompt_tokens=100).at(same, is_all=True)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (
            {"max_prompt_tokens": 501},
            r"max_prompt_tokens = 501 and sampling\.max_response_tokens = 12 make 513 tokens, and model .* allows 512",
        ),
        ({"max_prompt_tokens": 100_000}, "make 100012 tokens"),
        ({"max_response_tokens": 512}, r"max_response_tokens = 512 leaves no token for a prompt: model .* allows 512"),
        ({"max_response_tokens": 4000, "max_prompt_tokens": 1}, "make 4001 tokens"),
    ],
)
def test_prompt_and_response_must_fit_the_model(tiny_model: str, sampling: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        look(tiny_model, **sampling)
    assert look(tiny_model, max_prompt_tokens=500)


def test_a_base_model_is_refused_before_any_problem_is_made(tiny_model: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"prompt\.chat = false"):
        look(str(base))
    assert fitted(look(str(base), prompt={"chat": False}).at([problem(0, 30)], is_all=True)) == 30
