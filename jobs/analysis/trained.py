"""What a training run spent and how it went, from its metrics: the numbers of a comparison that need no evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TRAINING_METRICS = ("reward/pass@1", "policy/entropy", "response/tokens_mean")
"""What is shown of every step."""
SMOOTHED_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """One run, finished or not."""

    name: str
    method: str
    seed: int
    steps: int
    """The steps trained so far."""
    tokens: float
    """The response tokens sampled in the whole run."""
    seconds: float
    """The seconds of all steps, without starts and stops."""
    metrics: Mapping[str, tuple[float | None, ...]]
    """By name of `TRAINING_METRICS`, its value in every step; None where a step does not have it."""


def trained_run(records: Sequence[Mapping[str, float]], *, name: str, method: str, seed: int) -> TrainedRun:
    """Return what `records`, one for each step, say of a run."""
    return TrainedRun(
        name=name,
        method=method,
        seed=seed,
        steps=len(records),
        tokens=max((record.get("tokens/generated", 0.0) for record in records), default=0.0),
        seconds=sum(record.get("time/step_s", 0.0) for record in records),
        metrics={metric: tuple(record.get(metric) for record in records) for metric in TRAINING_METRICS},
    )


def mean_over_seeds(runs: Iterable[TrainedRun], metric: str) -> list[float | None]:
    """Return the mean of a metric over `runs` at every step that all of them have reached, each step together with
    those just before it, so that a curve can be seen."""
    series = [run.metrics[metric] for run in runs]
    steps = min((len(one) for one in series), default=0)
    return [_mean(value for one in series for value in one[max(0, step - SMOOTHED_STEPS) : step]) for step in range(1, steps + 1)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
