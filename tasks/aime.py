r"""AIME: competition problems whose answers are integers from 0 to 999.

    task = Aime(config.aime)
    for problem in task.problems("test"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

| split | rows | |
|---|---|---|
| dev | 30 | AIME I and II of 2024 |
| test | 30 | AIME I and II of 2025 |

"aime/2024/000012" is row 12 of the file of 2024. Each call of `problems` reads one file."""

import re
from collections.abc import Iterator
from dataclasses import replace

from tasks.base import Problem, TaskError, Verdict, VerdictStatus
from tasks.data.published import PublishedRow, published_rows
from tasks.data.sources import DataSetConfig, DataSource, SourceConfig
from tasks.mathematics.math_task import LAYOUTS, MathTask

__all__ = ["NUM_ROWS", "Aime", "AimeConfig", "of_integers"]

NUM_ROWS = 30
YEARS = {"dev": 2024, "test": 2025}
_INTEGER = re.compile(r"[0-9]{1,3}")
_LAYOUTS = (*LAYOUTS, ("Problem", "Answer"))


class AimeConfig(DataSetConfig):
    """AIME: 2024.parquet and 2025.parquet, or .jsonl, with 30 rows each (columns problem and answer, or prompt and
    answer)."""

    hub: str | None = "HuggingFaceH4/aime_2024"
    """A data set of the Hugging Face hub with the problems of 2024."""
    revision: str = "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
    """Commit, branch or tag of `hub`."""
    hub_2025: str | None = "math-ai/aime25"
    """A data set of the hub with the problems of 2025."""
    revision_2025: str = "563bb8404243c5f09de6ec262f2db674fe5bce9b"
    """Commit, branch or tag of `hub_2025`."""


def of_integers(verdict: Verdict) -> Verdict:
    """Return `verdict`, which is MALFORMED for a wrong answer that is not an integer from 0 to 999."""
    if verdict.status is VerdictStatus.INCORRECT and not _INTEGER.fullmatch(verdict.answer or ""):
        return replace(verdict, status=VerdictStatus.MALFORMED, detail="no integer from 0 to 999")
    return verdict


class Aime(MathTask):
    """The AIME task. The head of the module shows its use."""

    name: str = "aime"

    def __init__(self, config: AimeConfig) -> None:
        super().__init__(config.instruction)
        sources = {2024: config, 2025: SourceConfig(path=config.path, hub=config.hub_2025, revision=config.revision_2025)}
        self._sources = {year: DataSource(task=self.name, key="task.aime", folder="aime", config=each) for year, each in sources.items()}

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split` in the order of the published file (`Task.problems` says what it raises)."""
        if split not in YEARS:
            raise TaskError(
                f"task {self.name}: no split '{split}', only {', '.join(YEARS)}: AIME is for evaluation; train on math or dapo-math"
            )
        year = YEARS[split]
        elsewhere = {2024: "data/train-*.parquet", 2025: "test.jsonl"}[year]  # as on the hub
        file = self._sources[year].file(f"{year}.parquet", f"{year}.jsonl", elsewhere)
        rows = published_rows(file, layouts=_LAYOUTS, num_rows=NUM_ROWS, title=f"AIME {year}")
        return iter([self._problem(f"{self.name}/{year}/{row.index:06d}", row) for row in rows])

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judge as MATH does. A wrong answer that is not an integer from 0 to 999 is MALFORMED."""
        return of_integers(super().verify(problem, response))

    def _problem(self, problem_id: str, row: PublishedRow) -> Problem:
        answer = str(row.answer).strip()
        if not _INTEGER.fullmatch(answer):
            raise row.row.error(f"column '{row.answer_column}' is no integer from 0 to 999: {answer[:80]!r}")
        return Problem(task=self.name, problem_id=problem_id, question=row.question, answer=str(int(answer)))
