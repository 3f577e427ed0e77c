"""The tables of a comparison as rows for programs: one number a cell, with the ends of its interval beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.analysis.bootstrap import Estimate
from jobs.analysis.methods import BySeed, MethodDifference, MethodStatistics
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.analysis.seeds import area_weights
from jobs.reports.text import at

Row = dict[str, Any]


def method_rows(statistics: Mapping[str, Sequence[MethodStatistics]]) -> list[Row]:
    """Return a row for each method and step."""
    return [_method_row(name, one) for name, steps in statistics.items() for one in steps]


def difference_rows(differences: Sequence[MethodDifference]) -> list[Row]:
    """Return a row for each method that is compared with the baseline."""
    return [_difference_row(one) for one in differences]


def policy_rows(policies: Mapping[str, Mapping[int, BySeed]], ks: Sequence[int]) -> list[Row]:
    """Return a row for each evaluated policy: means over its problems, without those of which nothing was scored."""
    return [
        {"method": method, "seed": seed, "step": step} | _policy_numbers(outcomes, ks)
        for method, by_step in policies.items()
        for step, by_seed in sorted(by_step.items())
        for seed, outcomes in by_seed.items()
    ]


def _policy_numbers(outcomes: ProblemOutcomes, ks: Sequence[int]) -> Row:
    scored_PK = outcomes.pass_PK[outcomes.scored_P]
    row: Row = {"problems": len(scored_PK)}
    if len(scored_PK):
        pass_K = scored_PK.mean(axis=0)
        row |= {f"pass@{k}": float(pass_K[k - 1]) for k in ks} | {"area": float(pass_K @ area_weights(outcomes.max_k))}
    return row | {"tokens": float(outcomes.tokens_P.mean()), "cut off": float(outcomes.truncated_P.mean())}


def _method_row(method: str, one: MethodStatistics) -> Row:
    row: Row = {"method": method, "step": one.step, "seeds": len(one.seeds), "problems": one.num_problems}
    for k in one.ks:
        row |= _cells(f"pass@{k}", one.pass_at_k.at(k))
    return row | _cells("area", one.area) | _measures(one.measures)


def _difference_row(one: MethodDifference) -> Row:
    row: Row = {"method": one.method, "against": one.against, "step": one.step}
    row |= {"seeds": len(one.seeds), "against seeds": len(one.against_seeds), "problems": one.num_problems}
    for k in one.ks:
        row |= _cells(f"pass@{k}", one.pass_at_k.at(k))
    for k in one.ks:
        row |= _cells(f"efficiency@{k}", at(one.efficiency, k))
    for name, test in one.tests.items():
        row |= _cells(name, test.difference)
        row |= {f"{name} p": test.p, f"{name} adjusted p": test.adjusted_p, f"{name} verdict": test.verdict}
    return row | _measures(one.measures)


def _measures(measures: Mapping[str, Estimate | None]) -> Row:
    return {key: value for name, estimate in measures.items() for key, value in _cells(name, estimate).items()}


def _cells(name: str, estimate: Estimate | None) -> Row:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name} low": estimate.low, f"{name} high": estimate.high}
