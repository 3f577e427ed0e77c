"""Problems of your own, from Parquet or JSON Lines files: each row has a prompt and, if there is a verifier, an answer.

    task = ParquetTask(ParquetConfig(path="problems.jsonl", verifier="exact"))
    for problem in task.problems("train"):
        verdict = task.verify(problem, generate(task.prompt(problem)))

A prompt is a string or a list of chat messages. `Problem.question` of such a list is a transcript for people; the
messages themselves are in `Problem.meta`, which the rollout log does not keep. Each call of `problems` reads and checks
every row of the files."""

import glob
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from buffers.fields import LocalPath
from tasks.answers import canonical_text, final_number, final_text, last_boxed, number_verdict, reference_number
from tasks.base import Message, Problem, Section, Task, TaskError, Verdict, judge, with_instruction
from tasks.data.files import SUFFIXES, DataFile, Row

__all__ = ["ParquetConfig", "ParquetTask"]

_MESSAGES = "messages"  # in Problem.meta: the prompt as JSON, unless it is a single message of the user


class ParquetConfig(Section):
    """Problems of your own, one a row, from .parquet or .jsonl files."""

    path: LocalPath | None = None
    """A .parquet or .jsonl file, a directory (all of its .parquet and .jsonl files, by name) or a glob."""
    prompt_column: str = "prompt"
    """The question: a string, or a list of chat messages {role, content}."""
    answer_column: str | None = "answer"
    """The right answer: a string or a number. It is not read with verifier "none"."""
    id_column: str | None = None
    """A column of distinct names for the problems. Unset: the row's number, counted over all files, and a digest of its
    prompt. Rows that are later inserted before others then change the ids of these."""
    split_column: str | None = None
    """The column that says which split a row belongs to. Unset: "train" and "test" both have all rows."""
    instruction: str = ""
    """Follows every question, or the last user message, on a line of its own. It is not part of the problem id."""
    verifier: Literal["number", "math", "exact", "none"] = "number"
    """How an answer is judged. "number": by value, read as GSM8K's are. "math": as MATH's are, any mathematics in any
    of its forms (docs/verifiers.md). "exact": the last box or line of the response must be the answer, up to case and
    spacing. "none": there is nothing to judge by, and jobs that need verdicts refuse the task."""

    @model_validator(mode="after")
    def _verifier_has_answers(self) -> Self:
        if self.verifier != "none" and self.answer_column is None:
            raise ValueError(f'verifier = "{self.verifier}" needs an answer_column, which is None: name it, or set the verifier to "none"')
        return self


class ParquetTask(Task):
    """The task of your own files. The head of the module shows its use."""

    name: str = "parquet"

    def __init__(self, config: ParquetConfig) -> None:
        self._config = config
        self.has_verifier: bool = config.verifier != "none"
        self.deadline_s: float = 5.0 if config.verifier == "math" else 2.0

    def problems(self, split: str) -> Iterator[Problem]:
        """Return the problems of `split` in row order. Raises TaskError for an unknown split and for unusable data."""
        if self._config.split_column is None and split not in ("train", "test"):
            raise TaskError(
                f"task {self.name}: no split '{split}': without task.parquet.split_column there are train and test, and both are all rows"
            )
        rows = list(chain.from_iterable(file.rows(self._columns()) for file in self._files()))
        problems = [self._problem(row, number) for number, row in enumerate(rows)]
        _refuse_repeated_ids(problems, rows)
        if self._config.split_column is None:
            return iter(problems)
        splits = [_text(row, self._config.split_column).strip() for row in rows]
        if split not in splits:
            known = ", ".join(dict.fromkeys(splits))
            raise TaskError(f"task {self.name}: no split '{split}' in column '{self._config.split_column}', only {known}")
        return iter([problem for problem, its_split in zip(problems, splits, strict=True) if its_split == split])

    def prompt(self, problem: Problem) -> list[Message]:
        """Return the messages of the row. The instruction ends the last message of the user."""
        stored = problem.meta.get(_MESSAGES)
        messages: list[Message] = json.loads(stored) if stored else [{"role": "user", "content": problem.question}]
        last_of_user = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last_of_user is not None:
            content = with_instruction(messages[last_of_user]["content"], self._config.instruction)
            messages[last_of_user] = {"role": "user", "content": content}
        return messages

    def final_answer(self, problem: Problem, response: str) -> str | None:
        """Return the stated number, the stated mathematics, or the last box or line, as `verifier` says."""
        if self._config.verifier == "math":
            from tasks.mathematics.verify import final_math

            return final_math(response, self.judging)
        return (final_number if self._config.verifier == "number" else final_text)(response, self.judging)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Give reward 1.0 for the right answer, else 0.0; NO_ANSWER for none. Raises TaskError with verifier "none"."""
        if not self.has_verifier:
            raise TaskError(
                f"task {self.name} has no verifier: set task.parquet.verifier to number, math or exact, and name the answer_column"
            )
        if self._config.verifier == "math":
            from tasks.mathematics.verify import math_verdict

            return math_verdict(response, problem.answer, self.judging)
        if self._config.verifier == "number":
            return number_verdict(response, problem.answer, self.judging)
        return judge(final_text(response, self.judging), _expected_text(problem.answer))

    def warm_up(self) -> None:
        if self._config.verifier == "math":
            from tasks.mathematics.verify import warm_up

            warm_up()

    def _files(self) -> list[DataFile]:
        path = self._config.path
        if path is None:
            raise TaskError(f"task {self.name}: no data: set task.parquet.path to a .parquet or .jsonl file, a directory of them or a glob")
        given = Path(path)
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
        """Make a problem of `row`. `number` counts the rows of all files."""
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
            return _text(row, self._config.id_column).strip()
        digest = blake2b(question.encode(errors="surrogatepass"), digest_size=4)
        return f"{number:06d}-{digest.hexdigest()}"

    def _answer(self, row: Row) -> str:
        if self._answer_column is None:
            return ""
        row.require_sound(self._answer_column, is_answer=True)
        answer = _text(row, self._answer_column)
        if self._config.verifier == "number" and reference_number(answer) is None:
            raise row.error(f"column '{self._answer_column}' states no single number: {answer[:80]!r}")
        if self._config.verifier == "exact" and _expected_text(answer) not in self._texts_of(answer):
            raise row.error(f"column '{self._answer_column}' is a text that no response can state: {answer[:80]!r}")
        if self._config.verifier == "math":
            from tasks.mathematics.verify import is_readable

            if not is_readable(answer):
                raise row.error(f"column '{self._answer_column}' is no mathematics that can be verified: {answer[:80]!r}")
        return answer

    def _texts_of(self, answer: str) -> list[str | None]:
        """Return what is read where a response is `answer`, with a box around it or without."""
        return [final_text(response, self.judging) or None for response in (answer, f"\\boxed{{{answer}}}")]


def _expected_text(answer: str) -> str:
    return canonical_text(last_boxed(answer) or answer)


def _messages(row: Row, column: str) -> list[Message]:
    """Return the prompt as chat messages with their role and content only."""
    row.require_sound(column)
    prompt = row.values[column]
    if not isinstance(prompt, list):
        return [{"role": "user", "content": _text(row, column)}]
    messages: list[Message] = []
    for message in prompt:
        match message:
            case {"role": str(role), "content": str(content)}:
                messages.append({"role": role, "content": content})
    if messages and not any(message["content"].strip() for message in messages):
        raise row.error(f"column '{column}' is blank")
    if not prompt or len(messages) < len(prompt):
        raise row.error(f"column '{column}' is neither text nor a list of messages with a role and a content: {str(prompt)[:80]}")
    return messages


def _text(row: Row, column: str) -> str:
    """Return a value, which is text or a number, as text that is not blank."""
    value = row.values[column]
    if value is None:
        raise row.error(f"column '{column}' is null")
    row.require_sound(column)
    if isinstance(value, float | Decimal):
        value = f"{Decimal(str(value)):f}"  # in full, never as 1e+20
    if not isinstance(value, str | int):
        raise row.error(f"column '{column}' is neither text nor a number: {str(value)[:80]}")
    text = str(value)
    if not text.strip():
        raise row.error(f"column '{column}' is blank")
    return text


def _refuse_repeated_ids(problems: Iterable[Problem], rows: Iterable[Row]) -> None:
    first: dict[str, Row] = {}
    for problem, row in zip(problems, rows, strict=True):
        earlier = first.setdefault(problem.problem_id, row)
        if earlier is not row:
            raise row.error(f"id '{problem.problem_id}' is that of {earlier.file.path} row {earlier.number} too")
