"""The task of reasoning-gym's generators. Where the library is not installed, only what needs none of it."""

from __future__ import annotations

import builtins
import importlib.util
import os
import pickle
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import tasks.reasoning_gym as source
from buffers.records import Problem, VerdictStatus
from tasks.base import TaskError
from tasks.reasoning_gym import Generator, ReasoningGym, ReasoningGymConfig

installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason=f"reasoning-gym=={source.VERSION} is not installed (docs/tasks.md)"
)


def gym(dataset: str | None = "chain_sum", *, seed: int = 0, **fields: Any) -> ReasoningGym:
    return ReasoningGym(ReasoningGymConfig.model_validate({"dataset": dataset, "size": 20, "held_out_size": 5, **fields}), seed)


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the second process where a test is not about it."""
    monkeypatch.setattr(Generator, "require_reproducible", lambda self: None)


# ---- scoring, which needs no library ----


def problem(answer: str) -> Problem:
    return Problem(task="reasoning-gym", problem_id="1", question="?", answer=answer)


@pytest.mark.parametrize(
    ("scoring", "reference", "response", "status"),
    [
        ("number", "12", "So it is \\boxed{12.0}", VerdictStatus.CORRECT),
        ("number", "3/4", "The answer is 0.75.", VerdictStatus.CORRECT),
        ("number", "12", "13", VerdictStatus.INCORRECT),
        ("number", "12", "twelve", VerdictStatus.NO_ANSWER),
        ("exact", "True", "I think\ntrue", VerdictStatus.CORRECT),
        ("exact", "on", "\\boxed{ON}", VerdictStatus.CORRECT),
        ("exact", "on", "off", VerdictStatus.INCORRECT),
        ("exact", "on", " \n", VerdictStatus.NO_ANSWER),
        ("text", "1 2\n2 1", "<answer>\n1 2 \n2 1\n</answer>", VerdictStatus.CORRECT),
        ("text", "1 2\n2 1", "1 2\n2 1\n", VerdictStatus.CORRECT),
        ("text", "aB", "\\boxed{aB}", VerdictStatus.CORRECT),
        ("text", "aB", "ab", VerdictStatus.INCORRECT),
        ("text", "1 2\n2 1", "1 2 2 1", VerdictStatus.INCORRECT),
        ("text", "aB", "", VerdictStatus.NO_ANSWER),
        ("expression", "94*2 - 39", "2 × 94 − 39 = 149", VerdictStatus.CORRECT),
        ("expression", "94*2 - 39", "94 + 55", VerdictStatus.INCORRECT),
        ("expression", "94*2 - 39", "<answer>94 ** 2</answer>", VerdictStatus.MALFORMED),
        ("expression", "94*2 - 39", "none", VerdictStatus.NO_ANSWER),
    ],
)
def test_answers_are_judged_by_our_rules(scoring: str, reference: str, response: str, status: VerdictStatus) -> None:
    task = pickle.loads(pickle.dumps(gym(scoring=scoring)))
    verdict = task.verify(problem(reference), response)
    assert (verdict.status, verdict.reward) == (status, float(status is VerdictStatus.CORRECT))
    assert (task.final_answer(problem(reference), response) is None) is (status is VerdictStatus.NO_ANSWER)


@pytest.mark.parametrize("scoring", ["number", "exact", "text", "expression"])
def test_answer_that_is_code_is_not_run(scoring: str, tmp_path: Any) -> None:
    """What the library's own scorers evaluate."""
    file = tmp_path / "ran"
    for response in (
        f"__import__('os').system('touch {file}')",
        f"[open({str(file)!r}, 'w')]",
        f"<answer>exec(\"open('{file}','w')\")</answer>",
    ):
        gym(scoring=scoring).verify(problem("1 + 2 + 3"), response)
    assert not file.exists()


def test_missing_library_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("reasoning_gym"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TaskError, match=rf"No module named 'reasoning_gym.factory': pip install reasoning-gym=={source.VERSION}"):
        gym().problems("train")


@pytest.mark.parametrize(
    ("dataset", "split", "message"), [("chain_sum", "all", "no split 'all', only train, dev, test"), (None, "test", "no generator")]
)
def test_unknown_split_and_missing_generator_are_refused(dataset: str | None, split: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        gym(dataset).problems(split)


# ---- the library ----


@installed
def test_problems_are_those_of_the_generator_and_their_answers_correct() -> None:
    task = gym(options={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2})
    problems = {split: list(task.problems(split)) for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in problems.items()} == {"train": 20, "dev": 5, "test": 5}
    everything = [one for found in problems.values() for one in found]
    assert len({one.question for one in everything}) == len({one.problem_id for one in everything}) == 30
    assert problems["train"][0].problem_id.startswith("reasoning-gym/chain_sum/train/000000-")
    for one in everything:
        computed = eval(one.question.partition(": ")[2].removesuffix("="))  # sums and differences that the library made
        assert int(one.answer) == computed and one.meta["kind"] == "chain_sum"
        assert task.verify(one, f"\\boxed{{{one.answer}}}").reward == 1.0
        assert task.verify(one, f"\\boxed{{{computed + 1}}}").reward == 0.0
        assert task.prompt(one)[0]["content"] == f"{one.question}\nPut the final answer within \\boxed{{}}."


@installed
def test_problems_depend_on_the_seed_and_options_alone(same_process: None) -> None:
    assert list(gym().problems("train")) == list(gym().problems("train"))
    assert list(gym().problems("train")) != list(gym(seed=1).problems("train"))
    assert list(gym().problems("train")) != list(gym(options={"max_terms": 9}).problems("train"))


@installed
@pytest.mark.parametrize(
    ("dataset", "scoring"),
    [("lcm", "number"), ("dice", "number"), ("spell_backward", "exact"), ("mini_sudoku", "text"), ("countdown", "expression")],
)
def test_references_are_correct_by_the_scoring_that_fits(same_process: None, dataset: str, scoring: str) -> None:
    task = gym(dataset, scoring=scoring)
    for one in task.problems("test"):
        assert task.verify(one, f"<answer>{one.answer}</answer>" if scoring in ("text", "expression") else one.answer).reward == 1.0


@installed
def test_generator_whose_problems_depend_on_string_hashes_is_refused() -> None:
    with pytest.raises(TaskError, match=r"generator isomorphic_strings: problem [0-9]+ is another one in another process"):
        gym("isomorphic_strings", scoring="exact").problems("train")


@installed
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gym("chainsum"), "there is no generator 'chainsum'; did you mean 'chain_sum'?"),
        (lambda: gym("zzz"), "there is no generator 'zzz'; there are ab, acre, "),
        (lambda: gym(options={"max_term": 3}), "generator chain_sum: it has no option 'max_term'; did you mean 'max_terms'?"),
        (lambda: gym(options={"seed": 3}), "it has no option 'seed'"),
        (lambda: gym(options={"min_terms": 9}), "it refuses the options {'min_terms': 9}: max_terms must be >= min_terms"),
        (lambda: gym("rush_hour", scoring="text"), "generator rush_hour: its problems have no one right answer"),
        (lambda: gym("spell_backward"), 'scoring = "number" cannot read the answer .* set task.reasoning_gym.scoring to exact or text'),
        (lambda: gym("lcm", scoring="expression"), "set task.reasoning_gym.scoring to number or exact or text"),
        (
            lambda: gym(size=500, options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
            "only [0-9]+ different questions for split 'train' among 5000: lower task.reasoning_gym.size to that",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_mend(same_process: None, make: Callable[[], ReasoningGym], message: str) -> None:
    with pytest.raises(TaskError, match=message.replace("{", r"\{").replace("?", r"\?")):
        make().problems("train")


# ---- the second process, where the library is not needed ----


class Counting:
    """A dataset of the library's form."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"question": f"{index} + 1?", "answer": str(index + 1), "metadata": {}}


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Generator:
    monkeypatch.setattr(Generator, "_make", lambda self: Counting())
    return Generator("counting", {}, seed=1, size=3)


def answer_of_another_process(
    monkeypatch: pytest.MonkeyPatch, *, stdout: str = "", stderr: str = "", returncode: int = 0
) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        calls.append(kwargs)
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_equal_problems_of_another_process_are_accepted(counting: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = str(counting.digests()).replace("'", '"')
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    calls = answer_of_another_process(monkeypatch, stdout=f"noise\ndigests:{digests}\n")
    counting.require_reproducible()
    (call,) = calls
    assert call["env"]["PYTHONHASHSEED"] != os.environ["PYTHONHASHSEED"] and call["timeout"] == 120


def test_other_process_that_fails_is_told_by_its_last_line(counting: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_of_another_process(monkeypatch, stderr="Traceback\nImportError: no such thing\n", returncode=1)
    with pytest.raises(TaskError, match="generator counting: it fails in another process: ImportError: no such thing"):
        counting.require_reproducible()


def test_other_process_that_takes_too_long_is_given_up(counting: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired(command, kwargs["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TaskError, match="another process did not make 32 problems within 120 s"):
        counting.require_reproducible()
