"""A problem that the chat template refuses is a fault of its data: named, counted, given up, and no end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.prompts import DataError
from buffers.records import Problem, Verdict
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.directory.events import EventKind
from jobs.run.session import _looked_at
from tasks.base import Task, TaskError, judge
from tests.actors.test_prompts import WITHOUT_SYSTEM_ROLE
from tests.jobs.components_fixture import LocalRun, small_config

pytestmark = pytest.mark.whole

REFUSED = "roles/3"


class Roles(Task):
    """Twelve problems, of which the fourth has a system message, or every one has."""

    name = "roles"

    def __init__(self, everywhere: bool = False) -> None:
        self._everywhere = everywhere

    def problems(self, split: str) -> Iterator[Problem]:
        if split not in ("train", "test"):
            raise TaskError(f"no split {split}")
        return (Problem(task=self.name, problem_id=f"roles/{n}", question=f"Say {n}.", answer=str(n)) for n in range(12))

    def prompt(self, problem: Problem) -> list[dict[str, str]]:
        system = [{"role": "system", "content": "Be brief."}] if self._everywhere or problem.problem_id == REFUSED else []
        return [*system, {"role": "user", "content": problem.question}]

    def verify(self, problem: Problem, response: str) -> Verdict:
        return judge(response or None, problem.answer)


def config_of(model: str, directory: Path, *, everywhere: bool = False, **values: Any) -> RunConfig:
    task = {"name": f"{__name__}:Roles", "options": {"everywhere": everywhere}}
    prompt = {"template": WITHOUT_SYSTEM_ROLE, **values.pop("prompt", {})}
    return small_config(model, directory, task=task, prompt=prompt, **{"steps": 7, "max_attempts": 2, **values})


@pytest.mark.parametrize("synchronous", [False, True])
def test_one_problem_that_is_refused_is_given_up_and_the_others_are_trained_on(tiny_model: str, tmp_path: Path, synchronous: bool) -> None:
    run = LocalRun(config_of(tiny_model, tmp_path, max_policy_lag=0), synchronous=synchronous)
    assert run.train() == 7
    assert [(entry.problem.problem_id, entry.attempts, entry.reason) for entry in run.admission.quarantined] == [(REFUSED, 2, "data")]
    faults = run.noted(EventKind.FAULT, role="group", kind="data")
    assert len(faults) == 2
    why = "the chat template refuses it: System role not supported"
    assert all(fault["error"] == f"problem {REFUSED} cannot be posed: {why}" for fault in faults)
    assert REFUSED not in run.trained_problems() and len(run.trained_problems()) == 14
    run.books.check_valid()


@pytest.mark.parametrize("synchronous", [False, True])
def test_where_every_problem_is_refused_the_run_ends_with_the_reason(tiny_model: str, tmp_path: Path, synchronous: bool) -> None:
    values = {"everywhere": True, "max_policy_lag": 0, "supervision": {"max_data_failures": 5}}
    run = LocalRun(config_of(tiny_model, tmp_path, **values), synchronous=synchronous)
    with pytest.raises(DataError, match=r"problem roles/\d+ cannot be posed: the chat template refuses it: System role not supported"):
        run.train()
    assert run.run.faults.counts["data"] == 6


@pytest.mark.parametrize("synchronous", [False, True])
def test_what_is_left_out_is_never_drawn(tiny_model: str, tmp_path: Path, synchronous: bool) -> None:
    config = config_of(tiny_model, tmp_path, max_policy_lag=0, prompt={"too_long": "leave_out"})
    run = LocalRun(config, synchronous=synchronous)
    start = _looked_at(config, run.stream, None)
    assert start.warnings == (f"1 of 12 problems cannot be posed: {REFUSED} (the chat template refuses it: System role not supported)",)
    assert run.train() == 7
    assert not run.noted(EventKind.FAULT) and REFUSED not in run.trained_problems()


def test_engines_get_room_for_the_longest_prompt_and_the_run_keeps_its_own_configuration(tiny_model: str, tmp_path: Path) -> None:
    config = config_of(tiny_model, tmp_path)
    start = _looked_at(config, LocalRun(config).stream, None)
    assert config.sampling.max_prompt_tokens is None
    assert start.config.sampling.max_prompt_tokens == len("Say 10.")
    assert start.config.model_copy(update={"sampling": config.sampling}) == config


def test_a_job_of_which_no_problem_is_left_does_not_start(tiny_model: str, tmp_path: Path) -> None:
    config = config_of(tiny_model, tmp_path, everywhere=True)
    with pytest.raises(UserError, match=r"no problem can be posed: 12 of 12 problems cannot be posed: roles/\d+ "):
        _looked_at(config, LocalRun(config).stream, None)
