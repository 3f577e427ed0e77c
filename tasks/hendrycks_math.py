r"""MATH: competition problems with answers of every form (Hendrycks et al. 2021, arXiv:2103.03874).

    task = HendrycksMath(config.math)
    for problem in task.problems("dev"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

| split | rows | |
|---|---|---|
| train | 7498 | the published training set, without two rows that have no answer |
| dev | 500 | MATH-500 (Lightman et al. 2023, arXiv:2305.20050), to choose models by |
| test | 4500 | the rest of the published test set |
| test_full | 5000 | all of it |

These are the splits of RepExp's authors (arXiv:2510.11686). A problem has one id in every split and from every file:
"math/test/000123" is row 123 of the test file of DigitalLearningGmbH/MATH-lighteval. `tasks.data.splits` records which
rows are MATH-500. Each call of `problems` reads one file."""

from collections.abc import Iterator

from tasks.base import Problem, TaskError
from tasks.data.files import DataFile
from tasks.data.published import PublishedRow, published_rows
from tasks.data.sources import DataSetConfig, DataSource
from tasks.mathematics.math_task import LAYOUTS, MathTask

__all__ = ["HendrycksMath", "MathConfig", "test_questions"]

NUM_ROWS = {"train": 7500, "test": 5000}
WITHOUT_ANSWER = {"train": frozenset((5341, 5343)), "test": frozenset[int]()}
"""Rows whose published solution ends in an empty box."""
_SPLITS = ("train", "dev", "test", "test_full")
_SOLVED = (("prompt", "solution"), ("problem", "solution"))
_ALL_LAYOUTS = (*LAYOUTS, *_SOLVED)


class MathConfig(DataSetConfig):
    """MATH: train.parquet (7500 rows) and test.parquet (5000), as the hub publishes them (columns problem and solution)
    or with columns prompt and answer. For split "dev", paper_dev.parquet or math500.parquet with the 500 rows of
    MATH-500 is enough."""

    hub: str | None = "DigitalLearningGmbH/MATH-lighteval"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "0530c78699ea5e8eb5530600900e1f328b48acad"
    """Commit, branch or tag of `hub`."""


class HendrycksMath(MathTask):
    """The MATH task. The head of the module shows its use."""

    name: str = "math"

    def __init__(self, config: MathConfig) -> None:
        super().__init__(config.instruction)
        self._source = DataSource(task=self.name, key="task.math", folder="math", config=config)

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split` in the order of the published file (`Task.problems` says what it raises)."""
        if split not in _SPLITS:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_SPLITS)}")
        if split == "dev":
            return iter(self._dev())
        from tasks.data.splits import MATH_500

        stem = "train" if split == "train" else "test"
        file = self._source.file(f"{stem}.parquet", f"{stem}-*.parquet", f"data/{stem}-*.parquet")
        rows = self._rows(file, stem)
        dev = frozenset(MATH_500.values()) if split == "test" else frozenset()
        return iter([self._problem(f"{self.name}/{stem}/{row.index:06d}", row) for row in rows if row.index not in dev])

    def _rows(self, file: DataFile, stem: str) -> list[PublishedRow]:
        return published_rows(file, layouts=_ALL_LAYOUTS, num_rows=NUM_ROWS[stem], title="MATH", unusable=WITHOUT_ANSWER[stem])

    def _dev(self) -> list[Problem]:
        """Read MATH-500 from the file of the whole test set, or from one that has nothing else."""
        from tasks.data.splits import MATH_500, question_digest

        file = self._source.file(
            "paper_dev.parquet",
            *("math500.parquet", "math500.jsonl", "test.parquet", "test-*.parquet", "data/test-*.parquet", "../math500/test.parquet"),
        )
        num_rows = file.num_rows()
        if num_rows == NUM_ROWS["test"]:
            by_index = {row.index: row for row in self._rows(file, "test")}
            rows = {index: by_index[index] for index in MATH_500.values()}
        else:
            rows = {}
            for row in published_rows(file, layouts=_ALL_LAYOUTS, num_rows=len(MATH_500), title="MATH-500"):
                index = MATH_500.get(question_digest(row.question))
                if index is None or index in rows:
                    raise row.row.error("its question is none of MATH-500's, or there twice")
                rows[index] = row
        return [self._problem(f"{self.name}/test/{index:06d}", rows[index]) for index in sorted(rows)]

    def _problem(self, problem_id: str, row: PublishedRow) -> Problem:
        """Make a problem of a row. The hub publishes worked solutions, whose last box is the answer."""
        from tasks.mathematics.verify import last_box

        answer = row.answer if isinstance(row.answer, str) else None
        if row.answer_column == "solution" and answer is not None:
            answer = last_box(answer)
        if not answer or not answer.strip():
            raise row.row.error(f"column '{row.answer_column}' states no answer: {str(row.answer)[:80]!r}")
        return Problem(task=self.name, problem_id=problem_id, question=row.question, answer=answer.strip())


def test_questions(config: MathConfig) -> list[str]:
    """Return all questions of the published test set. Raises TaskError if its file is missing."""
    return [problem.question for problem in HendrycksMath(config).problems("test_full")]
