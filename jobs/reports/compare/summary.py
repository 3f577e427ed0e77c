"""What a comparison says in sentences and in tables. A method is called better only where its interval says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jobs.analysis.methods import AREA, MEASURES, DifferenceTest, MethodDifference, MethodStatistics
from jobs.analysis.seeds import RunSpread
from jobs.analysis.trained import ONLINE, OnlineStatistics, TrainedRun
from jobs.compare_config import CompareConfig
from jobs.reports.report import TextTable
from jobs.reports.text import at, count, interval, interval_sentence, notes_on_intervals, one_line, spread

TABLE_KS, CONSOLE_KS = 8, 4
DIGITS = {"distinct answers": 1, "entropy": 2, "tokens": 1, "cut off": 2}


def method_table(last: Mapping[str, MethodStatistics], *, few_ks: bool = False) -> TextTable:
    """Return pass@k, the area and the measures of each method."""
    ks = spread(next(iter(last.values())).ks, CONSOLE_KS if few_ks else TABLE_KS) if last else []
    shown = MEASURES if not few_ks else MEASURES[:1]
    rows = [
        (
            name,
            str(len(one.seeds)),
            *(interval(one.pass_at_k.at(k)) for k in ks),
            interval(one.area),
            *(interval(one.measures[measure], DIGITS[measure]) for measure in shown),
        )
        for name, one in last.items()
    ]
    return TextTable(headings=("method", "seeds", *(f"pass@{k}" for k in ks), AREA, *shown), rows=rows)


def test_table(differences: Sequence[MethodDifference]) -> TextTable:
    """Return the tested differences with their p-values and what they say."""
    names = list(differences[0].tests) if differences else []
    headings = [heading for name in names for heading in (name, "p", "adjusted p", "verdict")]
    rows = [(one.method, *(cell for name in names for cell in _test_cells(one.tests[name]))) for one in differences]
    return TextTable(headings=("method", *headings), rows=rows)


def _test_cells(test: DifferenceTest) -> tuple[str, ...]:
    verdict = f"{test.verdict}{', survives' if test.survives else ''}"
    return (interval(test.difference, sign=True), f"{test.p:.3f}", f"{test.adjusted_p:.3f}", verdict)


def difference_table(differences: Sequence[MethodDifference]) -> TextTable:
    """Return the differences in pass@k and in the measures."""
    ks = spread(differences[0].ks, TABLE_KS) if differences else []
    rows = [
        (
            one.method,
            *(interval(one.pass_at_k.at(k), sign=True) for k in ks),
            *(interval(one.measures[name], DIGITS[name], sign=True) for name in MEASURES),
        )
        for one in differences
    ]
    return TextTable(headings=("method", *(f"pass@{k}" for k in ks), *MEASURES), rows=rows)


def efficiency_table(differences: Sequence[MethodDifference]) -> TextTable:
    """Return the sample efficiency at each K, and the samples that are needed at the largest."""
    ks = [k for k in spread(differences[0].ks, TABLE_KS) if k > 1] if differences else []
    rows = [(one.method, *(interval(at(one.efficiency, k)) for k in ks), _samples(one)) for one in differences]
    return TextTable(headings=("method", *(f"K = {k}" for k in ks), f"samples for pass@{ks[-1]}" if ks else "samples"), rows=rows)


def _samples(one: MethodDifference) -> str:
    k = one.ks[-1]
    ratio = at(one.efficiency, k)
    if ratio is None:
        return "–"
    return f"{k / ratio.value:.1f}" if ratio.value > 0 else f"more than {k}"


def spending_table(runs: Sequence[TrainedRun], last: Mapping[str, MethodStatistics]) -> TextTable:
    """Return what a run of each method took: means over its runs, finished or not."""
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        tokens, seconds = (float(np.mean([getattr(run, name) for run in own])) for name in ("tokens", "seconds"))
        answered = last[method].measures["tokens"] if method in last else None
        rows.append(
            (
                method,
                str(len(own)),
                f"{np.mean([run.steps for run in own]):.0f}",
                f"{tokens:,.0f}",
                f"{seconds:,.0f}",
                interval(answered, 1),
            )
        )
    return TextTable(
        headings=("method", "runs", "steps", "tokens of a run", "seconds of a run", "tokens of an evaluated response"), rows=rows
    )


def online_table(online: Mapping[str, OnlineStatistics]) -> TextTable:
    """Return how the methods did while they trained, and their differences to the baseline."""
    rows = [
        (
            method,
            str(one.num_runs),
            *(interval(one.means[name]) for name in ONLINE),
            *(interval(one.differences.get(name), sign=True) for name in ONLINE),
        )
        for method, one in online.items()
    ]
    return TextTable(headings=("method", "runs", *ONLINE, *(f"{name}, difference" for name in ONLINE)), rows=rows)


def summary_sentences(
    differences: Sequence[MethodDifference], base: MethodDifference | None, config: CompareConfig, step: int, spread: RunSpread
) -> tuple[str, ...]:
    """Return the result first, then what was measured and how far runs of a method differ."""
    asked, num = config.evaluation, len(differences)
    each = f"the policies of step {step}" if step else "the base model"
    seeds = f"{count(len(config.seeds), 'seed')} of each method"
    what = f"Compared: {each}, {asked.problems} problems, {asked.samples} samples of each, {seeds}."
    found = [_sentence(one, num) for one in differences] + ([_sentence(base, 0)] if base is not None else [])
    return (*found, what, *_spread_sentence(spread, asked.samples))


def _spread_sentence(spread: RunSpread, max_k: int) -> Iterator[str]:
    deviation_C = spread.standard_deviation_C
    if deviation_C is None:
        return
    measured = [f"{deviation_C[k - 1]:.2f} at pass@{k}" for k in dict.fromkeys((1, max_k))]
    freedom = f"{count(spread.degrees, 'degree')} of freedom"
    yield f"Runs of one method differ by {' and '.join(measured)} (standard deviation between seeds, {freedom})."


def _sentence(one: MethodDifference, num_methods: int) -> str:
    shown = {name: test for name, test in one.tests.items() if test.verdict != "no difference shown"}
    if not shown:
        return f"{one.method}: no difference from {one.against} is shown at {_listed(list(one.tests))}."
    parts = [
        f"{test.verdict} at {_listed([name])} by {interval_sentence_of(test)}{_after(test, num_methods)}" for name, test in shown.items()
    ]
    rest = [name for name in one.tests if name not in shown]
    missing = f" No difference is shown at {_listed(rest)}." if rest else ""
    return f"{one.method} is {'; '.join(parts)}, compared with {one.against}.{missing}{_efficiency(one)}"


def interval_sentence_of(test: DifferenceTest) -> str:
    """Return the difference with its interval, in words, both with signs."""
    return interval(test.difference, sign=True).replace("(", "(95 % interval ")


def _after(test: DifferenceTest, num_methods: int) -> str:
    if num_methods < 2:
        return ""
    return f" (this {'survives' if test.survives else 'does not survive'} the correction for {num_methods} methods)"


def _efficiency(one: MethodDifference) -> str:
    k = one.ks[-1]
    ratio = at(one.efficiency, k)
    if ratio is None or ratio.value <= 0 or k == 1:
        return ""
    return f" It needs {k / ratio.value:.1f} samples for the pass@{k} of {one.against}: sample efficiency {interval_sentence(ratio)}."


def _listed(names: Sequence[str]) -> str:
    named = [f"the {name} under pass@k" if name == AREA else name for name in names]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} or {named[-1]}"


def notes(
    num_evaluated: int,
    num_expected: int,
    statistics: Mapping[str, Sequence[MethodStatistics]],
    config: CompareConfig,
    failures: Mapping[str, str],
) -> tuple[str, ...]:
    """Return what is missing, and what to be careful with."""
    return tuple(_notes(num_evaluated, num_expected, statistics, config, failures))


def _notes(
    num_evaluated: int,
    num_expected: int,
    statistics: Mapping[str, Sequence[MethodStatistics]],
    config: CompareConfig,
    failures: Mapping[str, str],
) -> Iterator[str]:
    if num_evaluated < num_expected:
        yield f"Not finished: {num_evaluated} of {num_expected} evaluations are there, and numbers of single seeds may be missing."
    for name, why in failures.items():
        yield f"{name} failed: {one_line(why)}"
    if not any(len(one.seeds) > 1 for steps in statistics.values() for one in steps):
        yield "No method has runs of two seeds: intervals are over problems alone, and say nothing about another run of a method."
    problems = min((one.num_problems for steps in statistics.values() for one in steps), default=0)
    if problems < config.evaluation.problems and statistics:
        yield f"Some problems had no response that could be scored; the smallest number of problems behind a mean is {problems}."
    yield from notes_on_intervals(problems, "problem")
