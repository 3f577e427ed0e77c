"""What a comparison keeps of a run once it and its evaluations are done: what a report needs of them, in tens of KB.

    write(file, kept)
    kept = read(file)           # None where there is none; raises UserError for a damaged file

A file is of one run as a whole, or of the base model, and names both configurations that it is of. So it never speaks
for another run, and policies of two trainings are never put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from jobs.analysis.problem_counts import ProblemCounts
from jobs.analysis.trained import TrainedRun
from jobs.configuration.user_error import UserError
from jobs.directory.atomic import replacing


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run, or the base model."""

    evaluation: Mapping[str, Any]
    """The configuration of its evaluations."""
    policies: Annotated[Mapping[int, Annotated[tuple[ProblemCounts, ...], Field(min_length=1)]], Field(min_length=1)]
    """By step; that of the base model is 0."""
    config: Mapping[str, Any] | None
    """The configuration of the run; the base model has none."""
    trained: TrainedRun | None
    """What the run logged; the base model has not been trained."""


_FILE = TypeAdapter(Kept)


def write(file: Path, kept: Kept) -> None:
    """Write `kept` to `file`, whole or not at all."""
    with replacing(file) as staging:
        staging.write_bytes(_FILE.dump_json(kept))


def read(file: Path) -> Kept | None:
    """Return what `write` wrote, or None where there is no file. Raises UserError for a damaged one."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return _read(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1000)
def _read(file: Path, *_: int) -> Kept:
    try:
        return _FILE.validate_json(file.read_bytes())
    except ValidationError:
        raise UserError(f"{file} is damaged: delete it, and the same command makes it again") from None
