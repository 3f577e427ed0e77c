"""Number puzzles from Parquet and JSON Lines files.

    for filed in read_puzzles("countdown", "data/countdown", "train", must_use_all=False, held_out_share=0.1):
        print(filed.place, filed.puzzle.question, filed.solution)

The columns are `nums` (or `numbers`) and `target`, or `extra`, a JSON object of both. A column `answer` holds a
solution or the target.

In a directory, split S is the file S.parquet or S.jsonl. If the directory has a single file of another name, or the
path is a file, `Puzzle.split` divides it into train, dev and test, and "all" is the whole file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import TaskError, VerdictStatus
from tasks.data.files import SUFFIXES, DataFile, Row
from tasks.data.held_out import SPLITS
from tasks.puzzles.number_puzzle import Puzzle

__all__ = ["FiledPuzzle", "read_puzzles"]

_MAX_NUMBERS = 16
_MAX_NUMBER = 10**9
_LAYOUTS = (("nums", "target"), ("numbers", "target"), ("extra",))
_ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class FiledPuzzle:
    """A puzzle of a file. `place` names file and row. `solution` is the target if the file has no solution."""

    place: str
    puzzle: Puzzle
    solution: str


def read_puzzles(task: str, path: str, split: str, *, must_use_all: bool, held_out_share: float) -> Iterator[FiledPuzzle]:
    """Return the puzzles of `split` in row order. Raises TaskError for an unknown split and for unusable data."""
    file, is_split = _find(task, Path(path), split)
    present = file.columns()
    layout = next((layout for layout in _LAYOUTS if set(layout) <= set(present)), None)
    if layout is None:
        raise file.error(f"no columns nums and target, numbers and target, or extra, only {', '.join(present)}")
    rows = file.rows([*layout, "answer"] if "answer" in present else layout)
    filed = [_filed(row, layout, must_use_all) for row in rows]
    return (one for one in filed if is_split or one.puzzle.split(held_out_share) == split)


def _find(task: str, given: Path, split: str) -> tuple[DataFile, bool]:
    """Return the file to read, and whether all of its rows belong to the split."""
    files = [given] if given.is_file() else sorted(file for file in given.glob("*") if file.suffix in SUFFIXES)
    if not files:
        raise TaskError(f"task {task}: no .parquet or .jsonl file at {given}: put the puzzles there, or set task.{task}.path")
    named = [file for file in files if file.stem == split and given.is_dir()]
    if len(files) > 1 and not named:
        raise TaskError(f"task {task}: no split '{split}' in {given}, only {', '.join(file.stem for file in files)}")
    if not named and split not in (*SPLITS, _ALL):
        raise TaskError(f"task {task}: no split '{split}': {files[0]} is divided into {', '.join(SPLITS)}, and {_ALL} is all of it")
    if not named and given.is_dir() and files[0].stem in SPLITS and split != _ALL:
        raise TaskError(
            f"task {task}: no split '{split}' in {given}, only {files[0].stem}: give {files[0].name} another name to have it divided "
            f"into {', '.join(SPLITS)}"
        )
    file = DataFile(task=task, path=(named or files)[0])
    if file.path.suffix not in SUFFIXES:
        raise file.error("neither .parquet nor .jsonl")
    return file, bool(named) or split == _ALL


def _filed(row: Row, layout: tuple[str, ...], must_use_all: bool) -> FiledPuzzle:
    numbers, target = _extra(row) if layout == ("extra",) else (row.values[column] for column in layout)
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= _MAX_NUMBERS or not all(map(_is_number, [*numbers, target])):
        raise row.error(
            f"{str(numbers)[:80]} and {str(target)[:20]} are no puzzle: 1 to {_MAX_NUMBERS} numbers and a target, whole, from 1 to "
            f"{_MAX_NUMBER}"
        )
    puzzle = Puzzle(numbers=tuple(numbers), target=target, must_use_all=must_use_all)
    return FiledPuzzle(place=f"{row.file.path.stem}/{row.number:06d}", puzzle=puzzle, solution=_solution(row, puzzle))


def _extra(row: Row) -> tuple[Any, Any]:
    extra = row.values["extra"]
    if isinstance(extra, str):
        try:
            extra = json.loads(extra)
        except (ValueError, RecursionError):
            raise row.error(f"column 'extra' is not JSON: {extra[:80]!r}") from None
    if not isinstance(extra, dict):
        raise row.error(f"column 'extra' is no object: {str(extra)[:80]!r}")
    return extra.get("numbers", extra.get("nums")), extra.get("target")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_NUMBER


def _solution(row: Row, puzzle: Puzzle) -> str:
    target = str(puzzle.target)
    answer = row.values.get("answer")
    if answer is None or str(answer).strip() == target:
        return target
    solution = str(answer).strip()
    verdict = puzzle.judge(solution)
    if verdict.status is not VerdictStatus.CORRECT:
        raise row.error(f"column 'answer': {solution[:80]!r} is neither {target} nor a solution: {verdict.detail or 'it states none'}")
    return solution
