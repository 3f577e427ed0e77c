"""GSM8K: grade-school word problems with integer answers (Cobbe et al. 2021, arXiv:2110.14168).

    task = Gsm8k(config.gsm8k)
    for problem in task.problems("dev"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

| split | rows | |
|---|---|---|
| train | 7473 | the published training set |
| dev | 512 | of the published test set, to choose models by |
| test | 807 | the rest of it |
| test_full | 1319 | all of it |

The sizes of dev and test are those of RepExp's authors (arXiv:2510.11686), whose rows are not published; ours are
recorded in `tasks.data.splits`. A problem has one id in every split: "gsm8k/test/000123" is row 123 of the published
test file. How an answer is read is the stated-number rule of `tasks.answers`. Each call of `problems` reads one file.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.answers import final_number, reference_number
from tasks.base import Message, Problem, TaskError, Verdict, judge, with_instruction
from tasks.config import Gsm8kConfig
from tasks.data.published import PublishedRow, published_rows
from tasks.data.sources import DataSource
from tasks.data.splits import GSM8K_DEV

__all__ = ["Gsm8k"]

NUM_ROWS = {"train": 7473, "test": 1319}
_FILE_OF_SPLIT = {"train": "train", "dev": "test", "test": "test", "test_full": "test"}
_LAYOUTS = (("prompt", "answer"), ("question", "answer"))


class Gsm8k:
    """The GSM8K task; see the module for the loop that uses it."""

    name: str = "gsm8k"
    has_verifier: bool = True
    deadline_s: float = 2.0

    def __init__(self, config: Gsm8kConfig) -> None:
        self._config = config
        self._source = DataSource(task=self.name, key="task.gsm8k", folder="gsm8k", config=config)

    def problems(self, split: str) -> Iterator[Problem]:
        """The problems of `split` in the order of the published file. Raises TaskError for another split, and for
        missing or other data."""
        if split not in _FILE_OF_SPLIT:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_FILE_OF_SPLIT)}")
        stem = _FILE_OF_SPLIT[split]
        problems = self._read(stem)
        if split in ("dev", "test"):
            problems = [problem for index, problem in enumerate(problems) if (index in GSM8K_DEV) is (split == "dev")]
        return iter(problems)

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": with_instruction(problem.question, self._config.instruction)}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """The number that the response states as its answer."""
        return final_number(response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Reward 1.0 where the response states the right number, whatever its spelling, else 0.0; NO_ANSWER (0.0) where
        it states none."""
        return judge(final_number(response), final_number(problem.answer))

    def _read(self, stem: str) -> list[Problem]:
        """All problems of a published file, by index."""
        file = self._source.file(f"{stem}.parquet", f"{stem}-*.parquet", f"main/{stem}-*.parquet")
        rows = published_rows(file, layouts=_LAYOUTS, num_rows=NUM_ROWS[stem], title="GSM8K")
        return [self._problem(f"{self.name}/{stem}/{row.index:06d}", row) for row in rows]

    def _problem(self, problem_id: str, row: PublishedRow) -> Problem:
        """The hub's answers are worked solutions that end in "#### 72"; a bare number reads the same."""
        answer = reference_number(row.answer) if isinstance(row.answer, str) else None
        if answer is None:
            raise row.row.error(f"column '{row.answer_column}' states no number: {str(row.answer)[:80]!r}")
        return Problem(task=self.name, problem_id=problem_id, question=row.question, answer=answer)
