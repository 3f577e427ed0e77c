"""A task of one's own, which a configuration names by its import path."""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import VerifierConfig
from actors.final_answers import with_final_answers
from actors.verifier import VerifierPool
from buffers.extensions import ExtensionError
from buffers.records import Problem, VerdictStatus
from tasks.base import NeedsWarmUp, Task
from tasks.config import TaskConfig
from tasks.mixture import Mixture
from tasks.registry import make_task, require_methods
from tasks.stream import ProblemStream

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
MODULE = '''
from tasks.base import Problem, Task, TaskError, Verdict, VerdictStatus, judge

class Echo(Task):
    """Right is what the question says, `times` times."""
    name = "echo"

    def __init__(self, word="hello", times=1):
        if times < 1:
            raise ValueError("times must be positive")
        self.word, self.times = word, times

    def problems(self, split):
        if split != "train":
            raise TaskError(f"task echo: no split '{split}'")
        return (Problem(task=self.name, problem_id=f"echo/{i}", question=f"Say {self.word}{i}.", answer=f"{self.word}{i}" * self.times)
                for i in range(3))

    def verify(self, problem, response):
        return judge(response.strip() or None, problem.answer)

class Warm(Echo):
    """It has all the optional members."""
    deadline_s = 0.5
    warmed_up = False
    def warm_up(self): self.warmed_up = True
    def prompt(self, problem): return [{"role": "system", "content": "Echo."}, {"role": "user", "content": problem.question}]
    def final_answer(self, problem, response): return response.upper()
    def verify(self, problem, response):
        assert self.warmed_up
        return super().verify(problem, response)

class Unfinished(Task):
    name = "unfinished"
    def problems(self, split): return iter(())

class Nameless(Task):
    def problems(self, split): return iter(())
    def verify(self, problem, response): return judge(None, None)

class Alien:
    """It does not inherit from Task."""
    name = "alien"
    def problems(self, split): return iter(())
    def verify(self, problem, response): return Verdict(status=VerdictStatus.CORRECT, reward=1.0)

def function(): ...
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "somebodys_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("somebodys_tasks", None)


def config(name: str = "somebodys_tasks:Echo", **options: Any) -> TaskConfig:
    return TaskConfig(name=name, options=options)


def mixture(**parts: dict[str, Any]) -> TaskConfig:
    return TaskConfig.model_validate({"name": "mixture", "mixture": {"parts": parts}})


def test_class_is_made_with_its_options_and_inherits_the_rest() -> None:
    task = make_task(config(word="hi", times=2))
    first, *others = task.problems("train")
    assert (first.question, first.answer, len(others)) == ("Say hi0.", "hi0hi0", 2)
    assert task.prompt(first) == [{"role": "user", "content": "Say hi0."}]
    assert (task.has_verifier, task.deadline_s) == (True, 5.0)
    assert [task.verify(first, said).status for said in ("hi0hi0 ", "hi0", " ")] == ["correct", "incorrect", "no_answer"]
    assert [task.final_answer(first, said) for said in ("hi0hi0 ", "hi0", " ")] == ["hi0hi0", "hi0", None]
    assert not isinstance(task, NeedsWarmUp)
    stream = ProblemStream(task, "train", seed=0)
    assert Counter(problem.problem_id for problem in islice(stream, 9)) == {f"echo/{i}": 3 for i in range(3)}


def test_class_may_have_the_optional_members_of_its_own() -> None:
    task = make_task(config("somebodys_tasks:Warm"))
    first = next(task.problems("train"))
    assert [message["role"] for message in task.prompt(first)] == ["system", "user"]
    assert task.final_answer(first, "a") == "A" and task.deadline_s == 0.5 and isinstance(task, NeedsWarmUp)


@pytest.mark.parametrize("name", ["Echo", "Warm"])
def test_processes_of_a_verifier_pool_import_the_class(name: str) -> None:
    """They are spawned: each imports the module anew from this process's `sys.path`."""
    given = config(f"somebodys_tasks:{name}", word="hi")
    problem = next(make_task(given).problems("train"))
    with VerifierPool(given, VerifierConfig(num_workers=2)) as pool:
        verdicts = pool.verify(problem, ["hi0", "ho", ""])
        assert pool.deadline_s == {"Echo": 5.0, "Warm": 0.5}[name]
    assert [verdict.status for verdict in verdicts] == [VerdictStatus.CORRECT, VerdictStatus.INCORRECT, VerdictStatus.NO_ANSWER]


def test_long_final_answers_are_whole_and_judged_once() -> None:
    """The class inherits `final_answer`, which judges, and a verdict records 64 characters of an answer."""
    given = config(word="hi")
    task = make_task(given)
    problem = next(task.problems("train"))
    said = ["a" * 70 + end for end in "bc"]
    assert [task.final_answer(problem, text) for text in said] == said
    calls: list[str] = []
    task.verify = lambda problem, text: calls.append(text) or type(task).verify(task, problem, text)  # type: ignore[method-assign, func-returns-value]
    verdicts = [with_final_answers(lambda: task).verify(problem, text) for text in said]
    assert [verdict.final_answer for verdict in verdicts] == said == calls
    assert [verdict.answer for verdict in verdicts] == ["a" * 64] * 2


def test_class_is_part_of_a_mixture() -> None:
    given = mixture(arithmetic={"weight": 2}, mine={"name": "somebodys_tasks:Echo", "options": {"word": "hi"}})
    require_methods(given)
    task = make_task(given)
    assert isinstance(task, Mixture)
    drawn = [problem for problem in islice(task.problems("train"), 50) if problem.task == "mine"]
    assert [problem.problem_id for problem in drawn] == ["mine/0", "mine/1", "mine/2"]
    assert task.verify(drawn[0], "hi0").reward == 1.0 and task.prompt(drawn[0])[0]["content"] == "Say hi0."
    assert TaskConfig.model_validate_json(given.model_dump_json()) == given
    assert set(given.model_dump()["mixture"]["parts"]["mine"]) == {"name", "weight", "options"}


def test_task_error_of_a_part_names_the_part() -> None:
    task = make_task(mixture(arithmetic={}, mine={"name": "somebodys_tasks:Echo"}))
    with pytest.raises(ValueError, match="part 'mine': task echo: no split 'test'"):
        task.problems("test")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("somebodys_taks:Echo", {}, 'task.name = "somebodys_taks:Echo": there is no module somebodys_taks'),
        ("somebodys_tasks:Ecko", {}, "module somebodys_tasks has no Ecko; did you mean 'Echo'?"),
        ("somebodys_tasks:Echo", {"wrod": "a"}, "with task.options = {'wrod': 'a'}: got an unexpected keyword argument 'wrod'"),
        ("somebodys_tasks:Echo", {"times": 0}, "with task.options = {'times': 0}: ValueError: times must be positive"),
        ("somebodys_tasks:Unfinished", {}, "abstract method"),
        ("somebodys_tasks:Nameless", {}, "Nameless has no name; it needs name, has_verifier"),
        ("somebodys_tasks:Alien", {}, "Alien has no has_verifier; it needs name, has_verifier"),
        ("somebodys_tasks:function", {}, "function has no name"),
        ("somebodys_tasks:function", {"a": 1}, "task.options are for a class"),
    ],
)
def test_class_that_cannot_be_a_task_is_refused_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    for refuse in (require_methods, make_task):
        with pytest.raises(ExtensionError, match=re.escape(message)) as refusal:
            refuse(config(name, **options))
        assert str(refusal.value).startswith("task.") and "\n" not in str(refusal.value)
        with pytest.raises(ExtensionError) as refusal:
            refuse(mixture(arithmetic={}, mine={"name": name, "options": options}))
        assert str(refusal.value).startswith("task.mixture.parts.mine.") and "\n" not in str(refusal.value)


def test_nothing_is_made_to_check_known_tasks() -> None:
    require_methods(TaskConfig(name="gsm8k"))
    require_methods(mixture(arithmetic={}, hard={"name": "countdown"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "somebodys_tasks.Echo"}, "Known: aime"),
        ({"name": "a/b.py:Echo"}, 'written "package.module:name"'),
        ({"options": {"word": "a"}}, 'options are for a class of your own, and name = "arithmetic" is a known task'),
        ({"name": "mixture", "mixture": {"parts": {"arithmetic": {"options": {"a": 1}}}}}, "has a section options"),
        (
            {"name": "mixture", "mixture": {"parts": {"m": {"name": "a:B", "countdown": {}}}}},
            "task a:B, but has a section countdown",
        ),
    ],
)
def test_contradiction_is_refused_without_importing_the_class(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        TaskConfig.model_validate(values)


def test_example_of_the_page_works(tmp_path: Path) -> None:
    """docs/tasks.md shows the shortest task."""
    section = PAGE.read_text().partition("## Write your own task")[2]
    (example,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    settings = re.findall(r"```toml\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)[0]
    (tmp_path / "my_tasks.py").write_text(example)
    given = TaskConfig.model_validate(tomllib.loads(settings)["task"])
    try:
        require_methods(given)
        task: Task = make_task(given)
        problem: Problem = next(task.problems("train"))
        with VerifierPool(given, VerifierConfig(num_workers=1)) as pool:
            verdicts = pool.verify(problem, [f"It is {problem.answer}.", "It is 0.5.", "No idea."])
        assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0]
        ids = {each.problem_id for each in task.problems("train")}
        assert {each.problem_id for each in islice(ProblemStream(task, "train", 0), len(ids))} == ids
        with pytest.raises(ValueError, match="no split 'dev'"):
            task.problems("dev")
    finally:
        sys.modules.pop("my_tasks", None)
