"""What a comparison keeps of a run once it and its evaluations are done: what a report needs of them, in tens of KB.

    write(file, kept)
    kept = read(file)           # None where there is none; raises UserError for a damaged file

A file is of one run as a whole, or of the base model, and names both configurations that it is of. So it never speaks
for another run, and policies of two trainings are never put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.analysis.problem_counts import ProblemCounts
from jobs.analysis.trained import TrainedRun
from jobs.configuration.user_error import UserError
from jobs.directory.atomic import replacing


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run, or the base model."""

    evaluation: Mapping[str, Any]
    """The configuration of its evaluations."""
    policies: Mapping[int, tuple[ProblemCounts, ...]]
    """By step; that of the base model is 0."""
    config: Mapping[str, Any] | None = None
    """The configuration of the run; the base model has none."""
    trained: TrainedRun | None = None
    """What the run logged; the base model has not been trained."""


def write(file: Path, kept: Kept) -> None:
    """Write `kept` to `file`, whole or not at all."""
    record = asdict(kept) | {"policies": {step: [one.record() for one in counts] for step, counts in kept.policies.items()}}
    with replacing(file) as staging:
        staging.write_text(json.dumps(record), encoding="utf-8")


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
        return _kept(json.loads(file.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{file} is damaged: delete it, and the same command makes it again") from None


def _kept(record: Any) -> Kept:
    policies = {int(step): tuple(ProblemCounts.of_record(one) for one in counts) for step, counts in record["policies"].items()}
    if not policies or not all(policies.values()):
        raise ValueError("there is no policy, or one without problems")
    config, trained = record["config"], record["trained"]
    return Kept(
        evaluation=dict(record["evaluation"]),
        policies=policies,
        config=None if config is None else dict(config),
        trained=None if trained is None else _trained(trained),
    )


def _trained(record: Any) -> TrainedRun:
    run = TrainedRun(**record)
    metrics = {name: tuple(None if value is None else float(value) for value in values) for name, values in run.metrics.items()}
    return TrainedRun(
        name=str(run.name),
        method=str(run.method),
        seed=int(run.seed),
        steps=int(run.steps),
        tokens=float(run.tokens),
        seconds=float(run.seconds),
        metrics=metrics,
    )
