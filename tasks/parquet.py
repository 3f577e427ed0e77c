"""Problems of your own, from Parquet or JSON Lines files: one a row, with a prompt and, where there is a verifier, an
answer.

    task = ParquetTask(ParquetConfig(path="problems.jsonl", verifier="exact"))
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

A prompt is a string or a list of chat messages. `Problem.question` of such a list is a transcript for people; the
messages themselves are in `Problem.meta`, which the rollout log does not keep. Each call of `problems` reads and checks
every row of the files."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from tasks.answers import canonical_text, final_number, final_text, reference_number
from tasks.base import Message, Problem, TaskError, Verdict, judge, with_instruction
from tasks.config import ParquetConfig
from tasks.data.files import SUFFIXES, DataFile, Row
from tasks.mathematics.verify import final_math, is_readable, math_verdict, warm_up

__all__ = ["ParquetTask"]

_MESSAGES = "messages"  # in Problem.meta: the prompt as JSON, where it is more than one message of the user


class ParquetTask:
    """The task of a person's own files; see the module for the loop that uses it."""

    name: str = "parquet"

    def __init__(self, config: ParquetConfig) -> None:
        self._config = config
        self.has_verifier: bool = config.verifier != "none"
        self.deadline_s: float = 5.0 if config.verifier == "math" else 2.0

    def problems(self, split: str) -> Iterator[Problem]:
        """The problems of `split` in the order of the files and their rows. Raises TaskError for an unknown split and
        for unusable data."""
        if self._config.split_column is None and split not in ("train", "test"):
            raise TaskError(
                f"task {self.name}: no split '{split}': without task.parquet.split_column there are train and test, and both are all rows"
            )
        rows = list(chain.from_iterable(file.rows(self._columns()) for file in self._files()))
        problems = [self._problem(row, number) for number, row in enumerate(rows)]
        _refuse_repeated_ids(problems, rows)
        if self._config.split_column is None:
            return iter(problems)
        splits = [_name(row, self._config.split_column) for row in rows]
        if split not in splits:
            known = ", ".join(dict.fromkeys(splits))
            raise TaskError(f"task {self.name}: no split '{split}' in column '{self._config.split_column}', only {known}")
        return iter([problem for problem, its_split in zip(problems, splits, strict=True) if its_split == split])

    def prompt(self, problem: Problem) -> list[Message]:
        """The messages of the row; the instruction ends the last one of the user."""
        stored = problem.meta.get(_MESSAGES)
        messages: list[Message] = json.loads(stored) if stored else [{"role": "user", "content": problem.question}]
        last_of_user = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last_of_user is not None:
            content = with_instruction(messages[last_of_user]["content"], self._config.instruction)
            messages[last_of_user] = {"role": "user", "content": content}
        return messages

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """The stated number with verifier "number", the stated mathematics with "math", else the last box or line
        (`tasks.answers`)."""
        match self._config.verifier:
            case "number":
                return final_number(response)
            case "math":
                return final_math(response)
        return final_text(response)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Reward 1.0 where the final answer is the row's, else 0.0; NO_ANSWER (0.0) where there is none. TaskError with
        verifier "none"."""
        match self._config.verifier:
            case "number":
                return judge(self.final_answer(problem, response), final_number(problem.answer))
            case "math":
                return math_verdict(response, problem.answer)
            case "exact":
                return judge(self.final_answer(problem, response), canonical_text(problem.answer))
            case "none":
                raise TaskError(
                    f"task {self.name} has no verifier: set task.parquet.verifier to number, math or exact, and name the answer_column"
                )

    def warm_up(self) -> None:
        if self._config.verifier == "math":
            warm_up()

    def _files(self) -> list[DataFile]:
        path = self._config.path
        if path is None:
            raise TaskError(f"task {self.name}: no data: set task.parquet.path to a .parquet or .jsonl file, a directory of them or a glob")
        given = Path(path).expanduser()
        if given.is_dir():
            found = sorted(file for file in given.iterdir() if file.suffix in SUFFIXES)
        elif given.is_file():
            found = [given]
        else:
            found = sorted(Path(name) for name in glob.glob(str(given), recursive=True) if Path(name).is_file())
        if not found:
            what = "no .parquet or .jsonl file in" if given.is_dir() else "no file"
            raise TaskError(f"task {self.name}: {what} {path}: set task.parquet.path to a file, a directory of files or a glob")
        files = [DataFile(task=self.name, path=file) for file in found]
        for file in files:
            if file.path.suffix not in SUFFIXES:
                raise file.error("neither .parquet nor .jsonl")
        return files

    def _columns(self) -> list[str]:
        config = self._config
        columns = (config.prompt_column, self._answer_column, config.id_column, config.split_column)
        return list(dict.fromkeys(column for column in columns if column is not None))

    @property
    def _answer_column(self) -> str | None:
        return self._config.answer_column if self.has_verifier else None

    def _problem(self, row: Row, number: int) -> Problem:
        """`number` counts the rows of all files."""
        messages = _messages(row, self._config.prompt_column)
        is_plain = len(messages) == 1 and messages[0]["role"] == "user"
        question = messages[0]["content"] if is_plain else "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return Problem(
            task=self.name,
            problem_id=f"{self.name}/{self._name_of(row, number, question)}",
            question=question,
            answer=self._answer(row),
            meta={} if is_plain else {_MESSAGES: json.dumps(messages)},
        )

    def _name_of(self, row: Row, number: int, question: str) -> str:
        if self._config.id_column is not None:
            return _name(row, self._config.id_column)
        digest = blake2b(question.encode(errors="surrogatepass"), digest_size=4)
        return f"{number:06d}-{digest.hexdigest()}"

    def _answer(self, row: Row) -> str:
        if self._answer_column is None:
            return ""
        answer = _text(row, self._answer_column)
        if self._config.verifier == "number" and reference_number(answer) is None:
            raise row.error(f"column '{self._answer_column}' states no single number: {answer[:80]!r}")
        if self._config.verifier == "math" and not is_readable(answer):
            raise row.error(f"column '{self._answer_column}' is no mathematics that can be verified: {answer[:80]!r}")
        return answer


def _messages(row: Row, column: str) -> list[Message]:
    """The prompt as chat messages, of which only role and content are kept."""
    prompt = row.values[column]
    if not isinstance(prompt, list):
        return [{"role": "user", "content": _text(row, column)}]
    messages: list[Message] = []
    for message in prompt:
        match message:
            case {"role": str(role), "content": str(content)}:
                messages.append({"role": role, "content": content})
    if not prompt or len(messages) < len(prompt):
        raise row.error(f"column '{column}' is neither text nor a list of messages with a role and a content: {str(prompt)[:80]}")
    return messages


def _text(row: Row, column: str) -> str:
    """A value that is text or a number, as text that is not blank."""
    value = row.values[column]
    if value is None:
        raise row.error(f"column '{column}' is null")
    if isinstance(value, float | Decimal):
        value = f"{Decimal(str(value)):f}"  # never 1e+20
    if not isinstance(value, str | int):
        raise row.error(f"column '{column}' is neither text nor a number: {str(value)[:80]}")
    text = str(value)
    if not text.strip():
        raise row.error(f"column '{column}' is blank")
    return text


def _name(row: Row, column: str) -> str:
    """An id or a split."""
    return _text(row, column).strip()


def _refuse_repeated_ids(problems: Iterable[Problem], rows: Iterable[Row]) -> None:
    first: dict[str, Row] = {}
    for problem, row in zip(problems, rows, strict=True):
        earlier = first.setdefault(problem.problem_id, row)
        if earlier is not row:
            raise row.error(f"id '{problem.problem_id}' is that of {earlier.file.path} row {earlier.number} too")
