"""MBPP+: short Python programs, each tested by about a hundred calls (Liu et al. 2023, arXiv:2305.01210).

    task = MbppPlus(config.mbpp_plus)
    for problem in task.problems("dev"):
        verdict = task.verify(problem, generate(task.prompt(problem)))   # runs the program in a sandbox

| split | problems | |
|---|---|---|
| train | 265 | MBPP's training set (numbers 601 to 974), three tests each |
| dev | 51 | MBPP's validation set (511 to 600), three tests each |
| test | 378 | MBPP+ |

MBPP+ has problems from all of MBPP's splits: 108 of the 374 training problems are in it. So train and dev leave out the
problems of MBPP+, by number and by wording. The id of a problem is MBPP's number for it, "mbpp-plus/601".

Programs run in `tasks.programs.sandbox`, with the standard library only. `tasks.programs.program_tests` says what they
can and cannot do to their verdict. A program that exceeds its time is wrong. A verdict is a timeout or an error only if
the verification itself fails.

Every job imports this module for the configuration of the tasks, so it imports the sandbox only when it needs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.base import MAX_ANSWER_CHARS, Message, Problem, Task, TaskError, Verdict, VerdictStatus, with_instruction
from tasks.data.files import DataFile
from tasks.data.sources import DataSetConfig, DataSource, SourceConfig

if TYPE_CHECKING:
    from tasks.programs.mbpp_files import MbppRow

__all__ = ["MbppConfig", "MbppPlus", "MbppPlusConfig"]

NUM_ROWS = {"test": 378, "train": 374, "validation": 90}
_FILE_OF_SPLIT = {"train": "train", "dev": "validation", "test": "test"}
_EVALPLUS_WORDING = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"


class MbppConfig(SourceConfig):
    """MBPP: train.parquet and validation.parquet. Unset path: the folder mbpp of REPEXP_DATA, then the hub."""

    hub: str | None = "google-research-datasets/mbpp"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
    """Commit, branch or tag of `hub`."""


class MbppPlusConfig(DataSetConfig):
    """MBPP+: test.parquet, as the hub publishes it or with columns prompt, answer and extra; and how programs are
    run."""

    hub: str | None = "evalplus/mbppplus"
    """A data set of the Hugging Face hub with the same file."""
    revision: str = "b2d74c91837c3f2a20c1299ae98133cbe7cfa077"
    """Commit, branch or tag of `hub`."""
    instruction: str = "Answer with the whole program in one ```python block."
    """Follows every question with wording "plain". It is not part of the problem id."""
    wording: Literal["plain", "evalplus"] = "plain"
    """How a problem is posed. "plain": what is asked, an assert that must hold, and the instruction. "evalplus": as
    EvalPlus asks chat models."""
    mbpp: MbppConfig = MbppConfig()
    """MBPP, which is trained on."""
    limit_s: float = Field(default=5.0, gt=0, le=600)
    """Seconds of processor time that all tests of a response may take, beyond what the reference program takes. A
    response that needs more is wrong."""
    isolation: Literal["namespaces", "rlimits"] = "namespaces"
    """How programs are kept apart from the machine (docs/sandbox.md). "rlimits" is for hosts that forbid namespaces. It
    does not protect files, processes or the network: it is NOT safe against a malicious program."""


class MbppPlus(Task):
    """The MBPP+ task. The head of the module shows its use."""

    name: str = "mbpp-plus"

    def __init__(self, config: MbppPlusConfig) -> None:
        from tasks.programs.program_tests import deadline_s

        self._config = config
        self.deadline_s = deadline_s(config.limit_s)

    def warm_up(self) -> None:
        """Start the process that launches this process's programs."""
        self._why_unavailable()

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split` in the order of the published file. Raises TaskError for another split, for
        missing or unexpected data, and if this machine cannot isolate programs as configured."""
        if split not in _FILE_OF_SPLIT:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_FILE_OF_SPLIT)}")
        reason = self._why_unavailable()
        if reason is not None:
            without = '; task.mbpp_plus.isolation = "rlimits" runs programs without isolation, which is NOT safe'
            raise TaskError(f"task {self.name}: {reason}{without if self._config.isolation == 'namespaces' else ''}")
        tested = self._tested()
        return map(self._problem, tested if split == "test" else self._others(_FILE_OF_SPLIT[split], tested))

    def prompt(self, problem: Problem) -> list[Message]:
        if self._config.wording == "evalplus":
            content = f'{_EVALPLUS_WORDING}\n```\n"""\n{problem.question}\n"""\n```'
        else:
            text, _, shown = problem.question.rpartition("\n")
            content = with_instruction(f"{text}\nThis must hold:\n{shown}", self._config.instruction)
        return [{"role": "user", "content": content}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the program that the response states."""
        from tasks.programs.stated_program import stated_program

        return stated_program(response, self.judging, names=_called(problem.answer))

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Give reward 1.0 if the stated program passes every test, else 0.0. The status is NO_ANSWER without a program,
        MALFORMED if it does not compile, and ERROR (no reward) if the sandbox or the reference fails."""
        from tasks.programs.program_tests import judge_program, read_tests
        from tasks.programs.sandbox import Isolation
        from tasks.programs.stated_program import stated_program

        program = stated_program(response, self.judging, names=_called(problem.answer))
        if program is None:
            return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
        try:
            tests = read_tests(problem.answer)
        except ValueError as error:
            return Verdict(status=VerdictStatus.ERROR, reward=None, detail=f"'{problem.problem_id}' has no tests that can be read: {error}")
        verdict = judge_program(program, tests, limit_s=self._config.limit_s, isolation=Isolation(self._config.isolation))
        return replace(verdict, answer=program[:MAX_ANSWER_CHARS])

    def _why_unavailable(self) -> str | None:
        from tasks.programs.sandbox import Isolation, why_unavailable

        return why_unavailable(Isolation(self._config.isolation))

    def _problem(self, row: MbppRow) -> Problem:
        from tasks.programs.program_tests import write_tests

        question = f"{row.text}\n{row.shown}"
        return Problem(task=self.name, problem_id=f"{self.name}/{row.number}", question=question, answer=write_tests(row.tests))

    def _tested(self) -> list[MbppRow]:
        from tasks.programs.mbpp_files import plus_rows

        source = DataSource(task=self.name, key="task.mbpp_plus", folder="mbppplus", config=self._config)
        file = source.file("test.parquet", "test-*.parquet", "data/test-*.parquet")
        return _counted(file, plus_rows(file), "MBPP+", NUM_ROWS["test"])

    def _others(self, stem: str, tested: list[MbppRow]) -> list[MbppRow]:
        """Return the rows of a file of MBPP that MBPP+ does not have, neither by number nor by wording."""
        from tasks.programs.mbpp_files import mbpp_rows

        source = DataSource(task=self.name, key="task.mbpp_plus.mbpp", folder="mbpp", config=self._config.mbpp)
        file = source.file(f"{stem}.parquet", f"{stem}-*.parquet", f"full/{stem}-*.parquet")
        rows = _counted(file, mbpp_rows(file), "MBPP", NUM_ROWS[stem])
        numbers, texts = {row.number for row in tested}, {_words(row.text) for row in tested}
        return [row for row in rows if row.number not in numbers and _words(row.text) not in texts]


def _counted(file: DataFile, rows: list[MbppRow], title: str, expected: int) -> list[MbppRow]:
    found = len({row.number for row in rows})
    if found != expected:
        raise file.error(f"{found} problems, and {title}'s has {expected}")
    return rows


def _called(tests: str) -> frozenset[str]:
    """Return the names that the first of a problem's tests calls."""
    from tasks.programs.program_tests import read_tests

    try:
        return frozenset(re.findall(r"([A-Za-z_]\w*)\(", read_tests(tests).calls[0]))
    except (ValueError, IndexError):
        return frozenset()


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))
