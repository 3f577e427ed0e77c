"""What methods of training achieve, over the seeds of their runs and over problems, and how they differ from a
baseline.

    evaluated = {0: outcomes_of_seed_0, 1: …}                               # a method's policies of one step, by seed
    spread = spread_of({"grpo": others, "repexp": evaluated})               # of the runs of all methods
    method_statistics("repexp", evaluated, spread, ks=(1, 8, 64))           # means over seeds and problems
    method_difference("repexp", evaluated, "grpo", others, spread)          # paired in problems
    with_correction(differences)                                            # p-values for the number of methods

A resample draws problems, the same for all methods, and adds an error of each method's runs (`jobs.analysis.seeds`).
All outcomes must have as many values of k. Legend: S seeds, P problems, K = 1 … number of samples, C columns: pass@1 …
pass@K and MEASURES; B resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.analysis.bootstrap import NUM_RESAMPLES, Curve, Estimate, curve, estimate, resample_counts
from jobs.analysis.comparison import efficiency_of
from jobs.analysis.order_statistics import IntArray, curve_ks, listed_ks
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.analysis.pass_at_k import FloatArray
from jobs.analysis.seeds import RunSpread, area_weights, holm, run_spread, two_sided_p

BySeed = Mapping[int, ProblemOutcomes]
"""The outcomes of one method's policies of one step, by the seed of the run. The base model has one seed."""

ALPHA = 0.05
AREA = "area"
MEASURES = ("distinct answers", "entropy", "tokens", "cut off")


@dataclass(frozen=True, kw_only=True)
class MethodStatistics:
    """The numbers of one method at one step. `docs/compare.md` defines each of them."""

    step: int
    seeds: tuple[int, ...]
    num_problems: int
    """The problems with a scored response in the run of every seed: all statistics are means over them."""
    ks: tuple[int, ...]
    """The values of k that tables show; curves have more."""
    pass_at_k: Curve
    area: Estimate
    """The area under pass@k over log k, divided by its width."""
    measures: Mapping[str, Estimate | None]
    """By name of `MEASURES`; None where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class DifferenceTest:
    """Whether one difference is there."""

    difference: Estimate
    p: float
    adjusted_p: float
    """The p-value for the number of methods that are compared with the baseline (Holm 1979)."""

    @property
    def verdict(self) -> str:
        """Return "better" or "worse" where the interval leaves out 0, else "no difference shown"."""
        low, high = self.difference.low, self.difference.high
        if low is not None and low > 0:
            return "better"
        return "worse" if high is not None and high < 0 else "no difference shown"

    @property
    def survives(self) -> bool:
        """Whether the verdict holds for the number of methods as well."""
        return self.verdict != "no difference shown" and self.adjusted_p < ALPHA


@dataclass(frozen=True, kw_only=True)
class MethodDifference:
    """One method less the baseline, at one step: means over all runs of each, on the problems that all of them have."""

    method: str
    against: str
    step: int
    seeds: tuple[int, ...]
    against_seeds: tuple[int, ...]
    num_problems: int
    ks: tuple[int, ...]
    pass_at_k: Curve
    efficiency: Curve | None
    """At each K: K / k, where k is the number of samples with which the method reaches the pass@K of the baseline."""
    measures: Mapping[str, Estimate | None]
    tests: Mapping[str, DifferenceTest] = field(default_factory=dict)
    """Of pass@1, pass@K for the largest K, and the area."""


def spread_of(methods: Mapping[str, BySeed]) -> RunSpread:
    """Return the spread between runs of trained methods at one step, in all columns."""
    rows = {method: _common_rows([by_seed])[0] for method, by_seed in methods.items()}
    return run_spread({name: _columns(methods[name], rows_SP).mean(axis=1) for name, rows_SP in rows.items() if rows_SP.shape[1]})


def method_statistics(
    method: str, by_seed: BySeed, spread: RunSpread, *, step: int, ks: Sequence[int] = (), num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> MethodStatistics | None:
    """Return the statistics of one method, or None where no problem was scored for every seed."""
    (rows_SP,) = _common_rows([by_seed])
    if not rows_SP.shape[1]:
        return None
    value_C, samples_BC = _resampled(method, _columns(by_seed, rows_SP), spread, num_resamples, seed)
    max_k = len(value_C) - len(MEASURES)
    if samples_BC is not None:  # shares and lengths: no draw of a run takes them below 0, nor shares above 1
        samples_BC = np.maximum(samples_BC, 0.0)
        samples_BC[:, :max_k] = np.minimum(samples_BC[:, :max_k], 1.0)
    listed = listed_ks(max_k, ks)
    return MethodStatistics(
        step=step,
        seeds=tuple(by_seed),
        num_problems=rows_SP.shape[1],
        ks=listed,
        pass_at_k=_curve(curve_ks(max_k, listed), value_C, samples_BC),
        area=estimate(*_weighted(area_weights(max_k), value_C, samples_BC)),
        measures=_measures(max_k, value_C, samples_BC),
    )


def method_difference(
    method: str,
    by_seed: BySeed,
    against: str,
    others: BySeed,
    spread: RunSpread,
    *,
    step: int,
    ks: Sequence[int] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> MethodDifference | None:
    """Return `method` less `against`, or None where they have no scored problem in common."""
    ours_SP, theirs_SP = _common_rows([by_seed, others])
    if not ours_SP.shape[1]:
        return None
    ours_C, ours_BC = _resampled(method, _columns(by_seed, ours_SP), spread, num_resamples, seed)
    theirs_C, theirs_BC = _resampled(against, _columns(others, theirs_SP), spread, num_resamples, seed)
    max_k = len(ours_C) - len(MEASURES)
    value_C, samples_BC = ours_C - theirs_C, None if ours_BC is None or theirs_BC is None else ours_BC - theirs_BC
    listed = listed_ks(max_k, ks)
    dense = curve_ks(max_k, listed)
    return MethodDifference(
        method=method,
        against=against,
        step=step,
        seeds=tuple(by_seed),
        against_seeds=tuple(others),
        num_problems=ours_SP.shape[1],
        ks=listed,
        pass_at_k=_curve(dense, value_C, samples_BC),
        efficiency=efficiency_of(_curves(max_k, ours_C, ours_BC), _curves(max_k, theirs_C, theirs_BC), dense),
        measures=_measures(max_k, value_C, samples_BC),
        tests={name: _test(weights_K, value_C, samples_BC) for name, weights_K in _tested(max_k).items()},
    )


def with_correction(differences: Sequence[MethodDifference]) -> tuple[MethodDifference, ...]:
    """Return the differences of several methods to one baseline with p-values for their number. Each test is corrected
    for itself: one family is all methods at pass@1, another all methods at the largest k."""
    names = list(dict.fromkeys(name for one in differences for name in one.tests))
    families = {name: holm({one.method: one.tests[name].p for one in differences if name in one.tests}) for name in names}
    return tuple(
        replace(one, tests={name: replace(test, adjusted_p=families[name][one.method]) for name, test in one.tests.items()})
        for one in differences
    )


def _resampled(
    method: str, columns_SPC: FloatArray, spread: RunSpread, num_resamples: int, seed: int
) -> tuple[FloatArray, FloatArray | None]:
    """Return the mean over runs and problems (C,) and its resamples (B, C): None where one problem is all there is."""
    columns_PC = columns_SPC.mean(axis=0)
    counts_BP = resample_counts(len(columns_PC), num_resamples, seed)
    errors_BC = spread.draws(method, num_resamples=num_resamples, seed=seed)
    value_C = columns_PC.mean(axis=0)
    samples_BC = None if counts_BP is None else counts_BP @ columns_PC / len(columns_PC)
    if errors_BC is not None:
        samples_BC = (value_C if samples_BC is None else samples_BC) + errors_BC
    return value_C, samples_BC


def _curves(max_k: int, value_C: FloatArray, samples_BC: FloatArray | None) -> FloatArray:
    """Return pass@k and its resamples (1 + B, K) as curves that never fall and stay within 0 and 1."""
    curves_RK = value_C[None, :max_k] if samples_BC is None else np.vstack([value_C[None], samples_BC])[:, :max_k]
    return np.maximum.accumulate(np.clip(curves_RK, 0.0, 1.0), axis=1)


def _tested(max_k: int) -> dict[str, FloatArray]:
    """Return the tested statistics by name, as weights of pass@1 … pass@K."""
    unit_KK = np.eye(max_k)
    return {f"pass@{k}": unit_KK[k - 1] for k in (1, max_k)} | {AREA: area_weights(max_k)}


def _weighted(weights_K: FloatArray, value_C: FloatArray, samples_BC: FloatArray | None) -> tuple[float, FloatArray | None]:
    """Return a weighted sum of pass@1 … pass@K, and its resamples."""
    num = len(weights_K)
    return float(value_C[:num] @ weights_K), None if samples_BC is None else samples_BC[:, :num] @ weights_K


def _test(weights_K: FloatArray, value_C: FloatArray, samples_BC: FloatArray | None) -> DifferenceTest:
    value, samples_B = _weighted(weights_K, value_C, samples_BC)
    p = two_sided_p(samples_B)
    return DifferenceTest(difference=estimate(value, samples_B), p=p, adjusted_p=p)


def _curve(ks: Sequence[int], value_C: FloatArray, samples_BC: FloatArray | None) -> Curve:
    places = np.asarray(ks) - 1
    return curve(ks, value_C[places], None if samples_BC is None else samples_BC[:, places])


def _measures(max_k: int, value_C: FloatArray, samples_BC: FloatArray | None) -> dict[str, Estimate | None]:
    def of(place: int) -> Estimate | None:
        value = float(value_C[place])
        return None if np.isnan(value) else estimate(value, None if samples_BC is None else samples_BC[:, place])

    return {name: of(max_k + place) for place, name in enumerate(MEASURES)}


def _columns(by_seed: BySeed, rows_SP: IntArray) -> FloatArray:
    """Return (S, P, C): pass@1 … pass@K and MEASURES of the chosen problems."""

    def of(one: ProblemOutcomes) -> FloatArray:
        measures = (one.distinct_PK[:, -1], one.entropy_P, one.tokens_P, one.truncated_P)
        return np.column_stack([one.pass_PK, *measures])

    return np.stack([of(one)[rows_P] for one, rows_P in zip(by_seed.values(), rows_SP, strict=True)])


def _common_rows(methods: Sequence[BySeed]) -> list[IntArray]:
    """Return for each method (S, P): in the outcomes of each seed, the rows of the problems that have a scored response
    in all outcomes of all methods. Problems stand in the order of the first outcomes."""
    everything = [outcomes for by_seed in methods for outcomes in by_seed.values()]
    places = [{name: row for row, name in enumerate(one.problem_ids) if one.num_scored_P[row]} for one in everything]
    common = [name for name in places[0] if all(name in place for place in places)]
    rows = iter(np.array([[place[name] for name in common] for place in places], dtype=np.int64).reshape(len(places), len(common)))
    return [np.stack([next(rows) for _ in by_seed]) for by_seed in methods]
