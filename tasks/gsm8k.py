"""GSM8K: grade-school word problems with integer answers (Cobbe et al. 2021, arXiv:2110.14168).

    task = Gsm8k(config.gsm8k)
    for problem in task.problems("dev"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

| split | rows | |
|---|---|---|
| train | 7473 | the published training set |
| dev | 512 | part of the published test set, to choose models by |
| test | 807 | the rest of it |
| test_full | 1319 | all of it |

The sizes of dev and test are those of RepExp's authors (arXiv:2510.11686), who do not publish which rows they use;
`tasks.data.splits` records ours. A problem has one id in every split: "gsm8k/test/000123" is row 123 of the published
test file. The stated-number rule of `tasks.answers` reads an answer. Each call of `problems` reads one file."""

from collections.abc import Iterator

from tasks.answers import final_number, number_verdict, reference_number
from tasks.base import Message, Problem, Task, TaskError, Verdict, with_instruction
from tasks.data.published import PublishedRow, published_rows
from tasks.data.sources import DataSetConfig, DataSource

__all__ = ["NUM_ROWS", "Gsm8k", "Gsm8kConfig"]

NUM_ROWS = {"train": 7473, "test": 1319}
_FILE_OF_SPLIT = {"train": "train", "dev": "test", "test": "test", "test_full": "test"}
_LAYOUTS = (("prompt", "answer"), ("question", "answer"))


class Gsm8kConfig(DataSetConfig):
    """GSM8K: train.parquet and test.parquet, as the hub publishes them (columns question and answer) or with columns
    prompt and answer."""

    hub: str | None = "openai/gsm8k"
    """A data set of the Hugging Face hub with the same files."""
    revision: str = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    """Commit, branch or tag of `hub`."""


class Gsm8k(Task):
    """The GSM8K task. The head of the module shows its use."""

    name: str = "gsm8k"
    deadline_s: float = 2.0

    def __init__(self, config: Gsm8kConfig) -> None:
        self._config = config
        self._source = DataSource(task=self.name, key="task.gsm8k", folder="gsm8k", config=config)

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split` in the order of the published file (`Task.problems` says what it raises)."""
        if split not in _FILE_OF_SPLIT:
            raise TaskError(f"task {self.name}: no split '{split}', only {', '.join(_FILE_OF_SPLIT)}")
        stem = _FILE_OF_SPLIT[split]
        file = self._source.file(f"{stem}.parquet", f"{stem}-*.parquet", f"main/{stem}-*.parquet")
        rows = published_rows(file, layouts=_LAYOUTS, num_rows=NUM_ROWS[stem], title="GSM8K")
        problems = [self._problem(f"{self.name}/{stem}/{row.index:06d}", row) for row in rows]
        if split in ("dev", "test"):
            from tasks.data.splits import GSM8K_DEV

            problems = [problem for index, problem in enumerate(problems) if (index in GSM8K_DEV) is (split == "dev")]
        return iter(problems)

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": with_instruction(problem.question, self._config.instruction)}]

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the number that the response states as its answer."""
        return final_number(response, self.judging)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Give reward 1.0 for the right number in any spelling, else 0.0; NO_ANSWER if none is stated."""
        return number_verdict(response, problem.answer, self.judging)

    def _problem(self, problem_id: str, row: PublishedRow) -> Problem:
        """Make a problem of a row, whose answer is a bare number or, on the hub, a solution that ends in "#### 72"."""
        answer = reference_number(row.answer) if isinstance(row.answer, str) else None
        if answer is None:
            raise row.row.error(f"column '{row.answer_column}' states no number: {str(row.answer)[:80]!r}")
        return Problem(task=self.name, problem_id=problem_id, question=row.question, answer=answer)
