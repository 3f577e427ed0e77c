"""MBPP+: short Python programs, tested by about a hundred calls each (Liu et al. 2023, arXiv:2305.01210), and MBPP to
train on.

    task = MbppPlus(config.mbpp_plus)
    for problem in task.problems("dev"):
        verdict = task.verify(problem, generate(task.prompt(problem)))   # runs the program in a sandbox

| split | problems | |
|---|---|---|
| train | 265 | MBPP's training set (numbers 601 to 974) without the problems of MBPP+ and one of the same wording; three tests each |
| dev | 51 | MBPP's validation set (511 to 600), likewise |
| test | 378 | MBPP+ |

MBPP+ has problems of all of MBPP's splits: 108 of the 374 training problems are in it. The id of a problem is MBPP's
number for it, "mbpp-plus/601". Programs run in `tasks.programs.sandbox`, with the standard library only;
`tasks.programs.program_tests` has what they can and cannot do to their verdict. A program that uses more than its time
is wrong; only a verification that fails itself is a timeout or an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tasks.base import Message, Problem, TaskError, Verdict, VerdictStatus, with_instruction
from tasks.config import MbppPlusConfig
from tasks.data.files import DataFile
from tasks.data.sources import DataSource
from tasks.programs.mbpp_files import MbppRow, mbpp_rows, plus_rows
from tasks.programs.program_tests import deadline_s, judge_program, read_tests, write_tests
from tasks.programs.sandbox import Isolation, why_unavailable
from tasks.programs.stated_program import stated_program

__all__ = ["MbppPlus"]

NUM_ROWS = {"test": 378, "train": 374, "validation": 90}
_FILE_OF_SPLIT = {"train": "train", "dev": "validation", "test": "test"}
_EVALPLUS_WORDING = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
_MAX_ANSWER_CHARS = 64


class MbppPlus:
    """The MBPP+ task; see the module for the loop that uses it."""

    name: str = "mbpp-plus"
    has_verifier: bool = True

    def __init__(self, config: MbppPlusConfig) -> None:
        self._config = config
        self._isolation = Isolation(config.isolation)
        self.deadline_s = deadline_s(config.limit_s)

    def warm_up(self) -> None:
        """Start this process' launcher of programs."""
        why_unavailable(self._isolation)

    def problems(self, split: str) -> Iterator[Problem]:
        """The problems of `split` in the order of the published file.

        Raises TaskError for another split, for missing or other data, and where this machine cannot isolate programs as
        configured."""
        if split not in _FILE_OF_SPLIT:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_FILE_OF_SPLIT)}")
        reason = why_unavailable(self._isolation)
        if reason is not None:
            mend = '; task.mbpp_plus.isolation = "rlimits" runs programs without isolation, which is NOT safe'
            raise TaskError(f"task {self.name}: {reason}{mend if self._isolation is Isolation.NAMESPACES else ''}")
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
        """The program that the response states."""
        return stated_program(response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Reward 1.0 where the stated program passes every test, else 0.0; NO_ANSWER (0.0) where there is no program,
        MALFORMED (0.0) where it does not compile; ERROR where the sandbox or the reference program fails."""
        program = stated_program(response)
        if program is None:
            return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
        try:
            tests = read_tests(problem.answer)
        except ValueError as error:
            return Verdict(status=VerdictStatus.ERROR, reward=None, detail=f"'{problem.problem_id}' has no tests that can be read: {error}")
        verdict = judge_program(program, tests, limit_s=self._config.limit_s, isolation=self._isolation)
        return replace(verdict, answer=program[:_MAX_ANSWER_CHARS])

    def _problem(self, row: MbppRow) -> Problem:
        question = f"{row.text}\n{row.shown}"
        return Problem(task=self.name, problem_id=f"{self.name}/{row.number}", question=question, answer=write_tests(row.tests))

    def _tested(self) -> list[MbppRow]:
        source = DataSource(task=self.name, key="task.mbpp_plus", folder="mbppplus", config=self._config)
        file = source.file("test.parquet", "test-*.parquet", "data/test-*.parquet")
        return _counted(file, plus_rows(file), "MBPP+", NUM_ROWS["test"])

    def _others(self, stem: str, tested: list[MbppRow]) -> list[MbppRow]:
        """The rows of a file of MBPP that are not in MBPP+, neither by number nor by text."""
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))
