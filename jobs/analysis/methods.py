"""What methods of training achieve, over the seeds of their runs and over problems, and how they differ from a
baseline.

    evaluated = {0: outcomes_of_seed_0, 1: …}                      # a method's policies of one step, by seed
    method_statistics(evaluated, ks=(1, 8, 64))                    # means over seeds and problems
    method_difference("repexp", evaluated, "grpo", others)         # paired in seeds and problems
    with_correction(differences)                                   # p-values for the number of methods

Intervals are those of `jobs.analysis.seeds`. Legend: S seeds, P problems, R = S · P rows, K = 1 … number of samples, B
resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.analysis.bootstrap import NUM_RESAMPLES, Curve, Estimate, estimate, mean_curve, mean_estimate
from jobs.analysis.comparison import efficiency_curve
from jobs.analysis.order_statistics import IntArray, curve_ks, listed_ks
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.analysis.pass_at_k import FloatArray
from jobs.analysis.seeds import area_weights, crossed_counts, holm, two_sided_p

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
    """One method less the baseline, at one step, over the seeds and problems that both have."""

    method: str
    against: str
    step: int
    seeds: tuple[int, ...]
    num_problems: int
    ks: tuple[int, ...]
    pass_at_k: Curve
    efficiency: Curve | None
    """At each K: K / k, where k is the number of samples with which the method reaches the pass@K of the baseline."""
    measures: Mapping[str, Estimate | None]
    tests: Mapping[str, DifferenceTest] = field(default_factory=dict)
    """Of pass@1, pass@K for the largest K, and the area."""


def method_statistics(
    by_seed: BySeed, *, step: int, ks: Sequence[int] = (), num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> MethodStatistics | None:
    """Return the statistics of one method, or None where no problem was scored for every seed."""
    (rows_SP,) = _common_rows([by_seed])
    if not rows_SP.shape[1]:
        return None
    outcomes = list(by_seed.values())
    pass_RK = _rows([one.pass_PK for one in outcomes], rows_SP)
    listed = listed_ks(pass_RK.shape[1], ks)
    dense = curve_ks(pass_RK.shape[1], listed)
    counts_BR = crossed_counts(len(outcomes), rows_SP.shape[1], num_resamples, seed)
    measured = _measures_R(outcomes, rows_SP)
    return MethodStatistics(
        step=step,
        seeds=tuple(by_seed),
        num_problems=rows_SP.shape[1],
        ks=listed,
        pass_at_k=mean_curve(dense, pass_RK[:, np.asarray(dense) - 1], counts_BR),
        area=mean_estimate(pass_RK @ area_weights(pass_RK.shape[1]), counts_BR),
        measures={name: _mean(values_R, counts_BR) for name, values_R in measured.items()},
    )


def method_difference(
    method: str,
    by_seed: BySeed,
    against: str,
    others: BySeed,
    *,
    step: int,
    ks: Sequence[int] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> MethodDifference | None:
    """Return `method` less `against`, or None where they have no seed, or no scored problem, in common."""
    common = [one for one in by_seed if one in others]
    if not common:
        return None
    ours, theirs = {one: by_seed[one] for one in common}, {one: others[one] for one in common}
    ours_SP, theirs_SP = _common_rows([ours, theirs])
    if not ours_SP.shape[1]:
        return None
    max_k = min(one.max_k for one in (*ours.values(), *theirs.values()))
    ours_RK = _rows([one.pass_PK[:, :max_k] for one in ours.values()], ours_SP)
    theirs_RK = _rows([one.pass_PK[:, :max_k] for one in theirs.values()], theirs_SP)
    listed = listed_ks(max_k, ks)
    dense = curve_ks(max_k, listed)
    counts_BR = crossed_counts(len(common), ours_SP.shape[1], num_resamples, seed)
    difference_RK = ours_RK - theirs_RK
    pairs = zip(_measures_R(list(ours.values()), ours_SP).items(), _measures_R(list(theirs.values()), theirs_SP).values(), strict=True)
    tested = {**{f"pass@{k}": difference_RK[:, k - 1] for k in (1, max_k)}, AREA: difference_RK @ area_weights(max_k)}
    return MethodDifference(
        method=method,
        against=against,
        step=step,
        seeds=tuple(common),
        num_problems=ours_SP.shape[1],
        ks=listed,
        pass_at_k=mean_curve(dense, difference_RK[:, np.asarray(dense) - 1], counts_BR),
        efficiency=efficiency_curve(ours_RK, theirs_RK, dense, counts_BR),
        measures={name: _mean(ours_R - theirs_R, counts_BR) for (name, ours_R), theirs_R in pairs},
        tests={name: _test(values_R, counts_BR) for name, values_R in tested.items()},
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


def _test(values_R: FloatArray, counts_BR: FloatArray | None) -> DifferenceTest:
    samples_B = None if counts_BR is None else counts_BR @ values_R / len(values_R)
    p = two_sided_p(samples_B)
    return DifferenceTest(difference=estimate(float(values_R.mean()), samples_B), p=p, adjusted_p=p)


def _mean(values_R: FloatArray, counts_BR: FloatArray | None) -> Estimate | None:
    return None if np.isnan(values_R).any() else mean_estimate(values_R, counts_BR)


def _measures_R(outcomes: Sequence[ProblemOutcomes], rows_SP: IntArray) -> dict[str, FloatArray]:
    """Return by name of `MEASURES` the values of all rows."""
    columns = ([one.distinct_PK[:, -1] for one in outcomes], *([getattr(one, name) for one in outcomes] for name in _COLUMNS))
    return {name: _rows(values, rows_SP) for name, values in zip(MEASURES, columns, strict=True)}


_COLUMNS = ("entropy_P", "tokens_P", "truncated_P")


def _common_rows(methods: Sequence[BySeed]) -> list[IntArray]:
    """Return for each method (S, P): in the outcomes of each seed, the rows of the problems that have a scored response
    in all outcomes of all methods. Problems stand in the order of the first outcomes."""
    everything = [outcomes for by_seed in methods for outcomes in by_seed.values()]
    places = [{name: row for row, name in enumerate(one.problem_ids) if one.num_scored_P[row]} for one in everything]
    common = [name for name in places[0] if all(name in place for place in places)]
    rows = iter(np.array([[place[name] for name in common] for place in places], dtype=np.int64).reshape(len(places), len(common)))
    return [np.stack([next(rows) for _ in by_seed]) for by_seed in methods]


def _rows(values_by_seed: Sequence[FloatArray], rows_SP: IntArray) -> FloatArray:
    """Return (R, …): the values of the chosen problems, those of the first seed first."""
    return np.concatenate([values[rows_P] for values, rows_P in zip(values_by_seed, rows_SP, strict=True)], axis=0)
