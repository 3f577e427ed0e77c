r"""DAPO-Math: competition problems with integer answers (Yu et al. 2025, arXiv:2503.14476), without those of test sets.

    task = DapoMath(config.dapo_math, config.math, config.aime)     # MATH and AIME: which test questions to take out
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

| split | rows | |
|---|---|---|
| train | 4096 | chosen by a seed from the rows that are left of the English set of 14 116 |
| dev | 30 | AIME 2024 |
| test | 30 | AIME 2025 |

The published set contains about a thousand questions of MATH's test set, and some of AMC and AIME. They are taken out
before any row is chosen, however their LaTeX is spelled (`tasks.data.decontamination`). "dapo-math/train/000123" is row
123 of the file. `selected_rows` computes those trained on from the file's length, the rows taken out, and the seed."""

from collections.abc import Collection, Iterator
from hashlib import sha256

from pydantic import Field

from tasks.aime import Aime, AimeConfig, of_integers
from tasks.base import Problem, TaskError, Verdict
from tasks.data.published import PublishedRow, published_rows
from tasks.data.sources import DataSetConfig, DataSource, SourceConfig
from tasks.hendrycks_math import MathConfig, test_questions
from tasks.mathematics.math_task import LAYOUTS, MathTask

__all__ = ["AmcConfig", "DapoMath", "DapoMathConfig", "selected_rows"]

_SPLITS = ("train", "dev", "test")
_LAYOUTS = (("prompt", "solution"), *LAYOUTS)


class AmcConfig(SourceConfig):
    """AMC 2023, whose questions are kept out of DAPO-Math: amc.parquet or amc.jsonl (a column question, problem or
    prompt)."""

    hub: str | None = "math-ai/amc23"
    """A data set of the Hugging Face hub with the same questions."""
    revision: str = "80815d37005feb82cd7f8fbc6901d5d3eff43057"
    """Commit, branch or tag of `hub`."""


class DapoMathConfig(DataSetConfig):
    """DAPO-Math-17k in its deduplicated English form: train.parquet (columns prompt and solution, or prompt and
    answer). Questions of the test sets of MATH and AMC and of AIME 2024 and 2025 are taken out, so the files of
    `task.math`, `task.aime` and `amc` must be available."""

    hub: str | None = "open-r1/DAPO-Math-17k-Processed"
    """A data set of the Hugging Face hub with the same file."""
    revision: str = "31dd309567e3da778038cc87d868b6097a3ccf68"
    """Commit, branch or tag of `hub`."""
    num_train: int = Field(default=4096, ge=1)
    """How many of the remaining rows are trained on."""
    selection_seed: int = 0
    """Decides which rows these are: the first num_train in an order that depends on the seed, so a smaller selection is
    part of a larger one."""
    amc: AmcConfig = AmcConfig()
    """Where AMC's questions are."""


class DapoMath(MathTask):
    """The DAPO-Math task. The head of the module shows its use."""

    name: str = "dapo-math"

    def __init__(self, config: DapoMathConfig, math: MathConfig, aime: AimeConfig) -> None:
        super().__init__(config.instruction)
        self._config = config
        self._math = math
        self._aime = Aime(aime)
        self._source = DataSource(task=self.name, key="task.dapo_math", folder="dapo_math", config=config)

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split`. Raises TaskError for another split, for missing or unexpected data, and if a
        test set whose questions are to be taken out is missing."""
        if split not in _SPLITS:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_SPLITS)}")
        if split != "train":
            return self._aime.problems(split)
        from tasks.data.decontamination import contaminated

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
        """Judge problems of AIME as their task does, and all others as MATH does."""
        verdict = super().verify(problem, response)
        return of_integers(verdict) if problem.task == self._aime.name else verdict

    def _test_questions(self) -> list[str]:
        aime = [problem.question for split in ("dev", "test") for problem in self._aime.problems(split)]
        return [*test_questions(self._math), *_amc_questions(self._config.amc), *aime]

    def _problem(self, row: PublishedRow) -> Problem:
        answer = str(row.answer).strip() if isinstance(row.answer, str | int) else ""
        if not answer:
            raise row.row.error(f"column '{row.answer_column}' states no answer: {str(row.answer)[:80]!r}")
        return Problem(task=self.name, problem_id=f"{self.name}/train/{row.index:06d}", question=row.question, answer=answer)


def selected_rows(num_rows: int, taken_out: Collection[int], *, seed: int, num_wanted: int) -> list[int]:
    """Return the indices of the rows to train on, in ascending order. They are the first `num_wanted` of 0 … num_rows −
    1, in the order of SHA-256("dapo-math/SEED/INDEX"), that are not taken out."""
    left = sorted(set(range(num_rows)) - set(taken_out), key=lambda index: sha256(f"dapo-math/{seed}/{index}".encode()).digest())
    return sorted(left[:num_wanted])


def _amc_questions(config: SourceConfig) -> list[str]:
    source = DataSource(task="dapo-math", key="task.dapo_math.amc", folder="amc", config=config)
    file = source.file("amc.parquet", "amc.jsonl", "test.parquet", "test-*.parquet", "data/train-*.parquet")
    return [row.question for row in published_rows(file, layouts=LAYOUTS, num_rows=file.num_rows(), title="AMC")]
