"""What a training run spent and how it went, from its metrics: the numbers of a comparison that need no evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.bootstrap import NUM_RESAMPLES, Estimate, estimate
from jobs.analysis.pass_at_k import FloatArray
from jobs.analysis.seeds import run_spread

TRAINING_METRICS = ("reward/pass@1", "policy/entropy", "response/tokens_mean")
"""What is drawn of every step."""
ONLINE = {"pass@1": "reward/pass@1", "pass@K": "reward/pass@K", "entropy": "policy/entropy"}
"""What is averaged over many steps, by name."""
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
    """By name of `TRAINING_METRICS` and `ONLINE`, its value in every step; None where a step does not have it."""


def trained_run(records: Sequence[Mapping[str, float]], *, name: str, method: str, seed: int) -> TrainedRun:
    """Return what `records`, at most one for each step, say of a run. A step without a record, which a file with a cap
    may have forgotten, has no value."""
    steps = int(max((record["step"] for record in records), default=0))
    by_step = {int(record["step"]): record for record in records}
    return TrainedRun(
        name=name,
        method=method,
        seed=seed,
        steps=steps,
        tokens=max((record.get("tokens/generated", 0.0) for record in records), default=0.0),
        seconds=sum(record.get("time/step_s", 0.0) for record in records),
        metrics={
            metric: tuple(by_step.get(step, {}).get(metric) for step in range(1, steps + 1))
            for metric in dict.fromkeys((*TRAINING_METRICS, *ONLINE.values()))
        },
    )


@dataclass(frozen=True, kw_only=True)
class OnlineStatistics:
    """How a method did while it trained, in the second half of its steps: means over its runs, by name of `ONLINE`."""

    num_runs: int
    means: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    """Less the baseline; empty for itself, and where it has no run."""


def online_statistics(
    runs: Sequence[TrainedRun], baseline: str, *, steps: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, OnlineStatistics]:
    """Return by method what its runs of at least `steps` steps say of the later half of these. The mean of many
    policies, each on problems of its own, varies less between runs than the last policy does. It says what held-out
    problems say where no problem comes twice."""
    means_SC: dict[str, list[list[float]]] = {}
    for run in runs:
        late = {name: _mean(run.metrics[metric][steps // 2 : steps]) for name, metric in ONLINE.items()}
        known = [value for value in late.values() if value is not None]
        if run.steps >= steps > 0 and len(known) == len(ONLINE):
            means_SC.setdefault(run.method, []).append(known)
    spread = run_spread({method: np.array(one) for method, one in means_SC.items()})
    value_C = {method: np.mean(one, axis=0) for method, one in means_SC.items()}
    error_BC = {method: spread.draws(method, num_resamples=num_resamples, seed=seed) for method in means_SC}

    def difference(method: str) -> dict[str, Estimate]:
        if method == baseline or baseline not in value_C:
            return {}
        ours_BC, theirs_BC = error_BC[method], error_BC[baseline]
        errors_BC = None if ours_BC is None or theirs_BC is None else ours_BC - theirs_BC
        return _estimates(value_C[method] - value_C[baseline], errors_BC)

    return {
        method: OnlineStatistics(num_runs=len(one), means=_estimates(value_C[method], error_BC[method]), differences=difference(method))
        for method, one in means_SC.items()
    }


def _estimates(value_C: FloatArray, errors_BC: FloatArray | None) -> dict[str, Estimate]:
    samples_BC = None if errors_BC is None else value_C + errors_BC
    return {
        name: estimate(float(value_C[place]), None if samples_BC is None else samples_BC[:, place]) for place, name in enumerate(ONLINE)
    }


def mean_over_seeds(runs: Iterable[TrainedRun], metric: str) -> list[float | None]:
    """Return the mean of a metric over `runs` at every step that all of them have reached, each step together with
    those just before it, so that a curve can be seen."""
    series = [run.metrics[metric] for run in runs]
    steps = min((len(one) for one in series), default=0)
    return [_mean(value for one in series for value in one[max(0, step - SMOOTHED_STEPS) : step]) for step in range(1, steps + 1)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
