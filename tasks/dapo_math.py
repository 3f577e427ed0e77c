r"""DAPO-Math: competition problems from many sources with integer answers (Yu et al. 2025, arXiv:2503.14476), without
those of test sets.

    task = DapoMath(config)                                 # the configuration of all tasks: test sets are other tasks'
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

| split | rows | |
|---|---|---|
| train | 4096 | rows of the English set of 14 116, chosen by a seed, of those that are left below |
| dev | 30 | AIME 2024 |
| test | 30 | AIME 2025 |

The set holds about a thousand questions of MATH's test set, and some of AMC and AIME. They are taken out, whatever the
spelling of their LaTeX (`tasks.data.decontamination`), before any row is chosen. "dapo-math/train/000123" is row 123 of
the file. `selected_rows` is the record of what is trained on: which rows, as a function of the file's length, the rows
taken out, and the seed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from hashlib import sha256

from tasks.aime import Aime
from tasks.base import Problem, TaskError, Verdict
from tasks.config import SourceConfig, TaskConfig
from tasks.data.decontamination import contaminated
from tasks.data.published import PublishedRow, published_rows
from tasks.data.sources import DataSource
from tasks.hendrycks_math import test_questions
from tasks.mathematics.math_task import LAYOUTS, MathTask

__all__ = ["DapoMath", "selected_rows"]

_SPLITS = ("train", "dev", "test")
_LAYOUTS = (("prompt", "solution"), *LAYOUTS)


class DapoMath(MathTask):
    """The DAPO-Math task; see the module for the loop that uses it."""

    name: str = "dapo-math"

    def __init__(self, config: TaskConfig) -> None:
        own = config.dapo_math
        super().__init__(own.instruction)
        self._config = own
        self._math = config.math
        self._aime = Aime(config.aime)
        self._source = DataSource(task=self.name, key="task.dapo_math", folder="dapo_math", config=own)

    def problems(self, split: str) -> Iterator[Problem]:
        """The problems of `split`. Raises TaskError for another split, for missing or other data, and where a test set
        that is to be taken out is not at hand."""
        if split not in _SPLITS:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_SPLITS)}")
        if split != "train":
            return self._aime.problems(split)
        file = self._source.file("train.parquet", "train.jsonl", "train-*.parquet", "en/train-*.parquet")
        rows = published_rows(file, layouts=_LAYOUTS, num_rows=file.num_rows(), title="DAPO-Math")
        taken_out = contaminated([row.question for row in rows], self._test_questions())
        chosen = selected_rows(len(rows), taken_out, seed=self._config.selection_seed, num_wanted=self._config.num_train)
        if len(chosen) < self._config.num_train:
            raise file.error(
                f"{len(chosen)} rows without those of test sets, fewer than task.dapo_math.num_train = {self._config.num_train}"
            )
        return iter([self._problem(rows[index]) for index in chosen])

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Of a problem of AIME, as its task does."""
        return self._aime.verify(problem, response) if problem.task == self._aime.name else super().verify(problem, response)

    def _test_questions(self) -> list[str]:
        aime = [problem.question for split in ("dev", "test") for problem in self._aime.problems(split)]
        return [*test_questions(self._math), *_amc_questions(self._config.amc), *aime]

    def _problem(self, row: PublishedRow) -> Problem:
        answer = str(row.answer).strip() if isinstance(row.answer, str | int) else ""
        if not answer:
            raise row.row.error(f"column '{row.answer_column}' states no answer: {str(row.answer)[:80]!r}")
        return Problem(task=self.name, problem_id=f"{self.name}/train/{row.index:06d}", question=row.question, answer=answer)


def selected_rows(num_rows: int, taken_out: Collection[int], *, seed: int, num_wanted: int) -> list[int]:
    """The first rows of 0 … num_rows − 1 in the order of SHA-256("dapo-math/SEED/INDEX") that are not taken out, by
    index."""
    left = sorted(set(range(num_rows)) - set(taken_out), key=lambda index: sha256(f"dapo-math/{seed}/{index}".encode()).digest())
    return sorted(left[:num_wanted])


def _amc_questions(config: SourceConfig) -> list[str]:
    source = DataSource(task="dapo-math", key="task.dapo_math.amc", folder="amc", config=config)
    file = source.file("amc.parquet", "amc.jsonl", "test.parquet", "test-*.parquet", "data/train-*.parquet")
    return [row.question for row in published_rows(file, layouts=LAYOUTS, num_rows=file.num_rows(), title="AMC")]
