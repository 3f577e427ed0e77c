from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from jobs.analysis.bootstrap import Estimate
from jobs.analysis.methods import AREA, MEASURES, DifferenceTest, method_difference, method_statistics, spread_of, with_correction
from tests.jobs.samples_fixture import binomial_outcomes, outcomes_of

GRPO = {0: outcomes_of("11xx", "xxxx"), 1: outcomes_of("1111", "xxxx")}
REPEXP = {0: outcomes_of("11ab", "1abc"), 1: outcomes_of("11ab", "11ab")}
UNKNOWN = spread_of({})


def test_the_statistics_of_a_method_are_means_over_seeds_and_problems():
    found = method_statistics("grpo", GRPO, UNKNOWN, step=20, ks=(1, 4), num_resamples=200)
    assert (found.step, found.seeds, found.num_problems, found.ks) == (20, (0, 1), 2, (1, 4))
    assert found.pass_at_k.at(1).value == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert found.pass_at_k.at(4).value == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert found.pass_at_k.at(1).low == 0.0 and found.pass_at_k.at(1).high == 0.75  # one problem twice
    assert found.measures.keys() == set(MEASURES)
    assert found.measures["tokens"] == Estimate(value=3.0, low=3.0, high=3.0)


def test_a_difference_is_of_means_over_seeds_and_problems():
    found = method_difference(
        "repexp", REPEXP, "grpo", GRPO, spread_of({"grpo": GRPO, "repexp": REPEXP}), step=20, ks=(1, 4), num_resamples=500
    )
    assert (found.method, found.against, found.seeds, found.num_problems) == ("repexp", "grpo", (0, 1), 2)
    assert found.pass_at_k.at(1).value == pytest.approx((0 + 0.25 - 0.5 + 0.5) / 4)
    assert found.pass_at_k.at(4).value == pytest.approx(0.5)
    assert set(found.tests) == {"pass@1", "pass@4", AREA}
    assert found.measures["distinct answers"].value == pytest.approx((3 + 4 + 3 + 3 - 2 - 1 - 1 - 1) / 4)


def test_a_difference_that_is_the_same_everywhere_has_no_spread():
    better = {seed: outcomes_of("11xx", "1111") for seed in (0, 1)}
    worse = {seed: outcomes_of("1xxx", "111x") for seed in (0, 1)}
    found = method_difference("a", better, "b", worse, spread_of({"a": better, "b": worse}), step=1, num_resamples=200)
    assert found.tests["pass@1"].difference == Estimate(value=0.25, low=0.25, high=0.25)
    assert found.tests["pass@1"].verdict == "better"


def test_the_spread_between_seeds_counts():
    """Problems agree wholly and seeds do not: with the mean of two seeds taken as known there would be no spread. With
    two runs of two methods the interval is that of Student's t with 2 degrees of freedom: 4.3 standard errors."""
    ours = {0: outcomes_of("11", "11"), 1: outcomes_of("xx", "xx")}
    theirs = {0: outcomes_of("xx", "xx"), 1: outcomes_of("xx", "xx")}
    spread = spread_of({"a": ours, "b": theirs})
    found = method_difference("a", ours, "b", theirs, spread, step=1, num_resamples=20_000).tests["pass@1"]
    assert found.difference.value == 0.5 and found.verdict == "no difference shown"
    low, high = found.difference.low, found.difference.high
    assert (high - 0.5, 0.5 - low) == pytest.approx((own_error(), own_error()), rel=0.1)


def own_error() -> float:
    """Half the interval above. The variance of all is 1/4. That of `a` is a mean of it and of its own 1/2, weighted 2
    to 1, and that of `b` of it and of 0. Each counts half, because there are two runs of each."""
    return float(t.ppf(0.975, 2) * ((2 / 4 + 1 / 2) / 3 / 2 + (2 / 4 + 0) / 3 / 2) ** 0.5)


def test_one_run_is_as_uncertain_as_the_runs_of_the_others() -> None:
    """Runs of the baseline differ, so the only run of a method might have come out otherwise."""
    baseline = {0: outcomes_of("11", "11"), 1: outcomes_of("xx", "xx"), 2: outcomes_of("1x", "1x")}
    ours = {0: outcomes_of("11", "11")}
    spread = spread_of({"a": ours, "b": baseline})
    assert method_difference("a", ours, "b", baseline, spread, step=1).tests["pass@1"].verdict == "no difference shown"
    assert method_difference("a", ours, "b", baseline, UNKNOWN, step=1).tests["pass@1"].verdict == "better"


def test_a_share_stays_within_0_and_1() -> None:
    runs = {0: outcomes_of("11", "11"), 1: outcomes_of("xx", "11")}
    found = method_statistics("a", runs, spread_of({"a": runs}), step=1, num_resamples=200)
    assert (found.pass_at_k.at(1).low, found.pass_at_k.at(1).high) == (0.0, 1.0)
    assert found.measures["cut off"].low == 0.0 and found.area.high == 1.0


def test_sample_efficiency_by_hand():
    """grpo's mean pass@k over seeds and problems is 3/8, 11/24, 1/2, 1/2 and repexp's 7/16, 0.708…: at K = 4 repexp
    reaches 1/2 between one sample and two."""
    found = method_difference(
        "repexp", REPEXP, "grpo", GRPO, spread_of({"grpo": GRPO, "repexp": REPEXP}), step=1, ks=(1, 4), num_resamples=100
    )
    one, two = (0.5 + 0.25 + 0.5 + 0.5) / 4, (5 / 6 + 0.5 + 5 / 6 + 5 / 6) / 4
    samples = 1 + (0.5 - one) / (two - one)
    assert found.efficiency.at(4).value == pytest.approx(4 / samples)
    nothing = {0: outcomes_of("xxxx", "xxxx")}
    assert method_difference("a", GRPO, "b", nothing, UNKNOWN, step=1, num_resamples=100).efficiency is None


def test_all_seeds_and_the_common_problems_are_compared():
    ours = {0: outcomes_of("11", "tt", "1x"), 2: outcomes_of("xx", "11", "11")}
    theirs = {2: outcomes_of("1x", "xx", "tt"), 3: outcomes_of("xx", "xx", "xx"), 4: outcomes_of("11", "xx", "xx")}
    found = method_difference("a", ours, "b", theirs, UNKNOWN, step=1, num_resamples=100)
    assert (found.seeds, found.against_seeds, found.num_problems) == ((0, 2), (2, 3, 4), 1)
    assert found.pass_at_k.at(1).value == pytest.approx((1 + 0) / 2 - (0.5 + 0 + 1) / 3)
    assert method_difference("a", {0: outcomes_of("tt", "11")}, "b", {0: outcomes_of("11", "tt")}, UNKNOWN, step=1) is None
    assert method_statistics("a", {0: ours[0], 2: ours[2]}, UNKNOWN, step=1, num_resamples=100).num_problems == 2
    assert method_statistics("a", {0: outcomes_of("tt")}, UNKNOWN, step=1) is None
    assert spread_of({"a": {0: outcomes_of("tt")}}).degrees == 0


def test_problems_are_paired_by_name_not_by_place():
    ours = outcomes_of("11", "xx")
    theirs = replace(ours, problem_ids=("p1", "p0"), pass_PK=ours.pass_PK[::-1].copy())
    found = method_difference("a", {0: ours}, "b", {0: theirs}, UNKNOWN, step=1, num_resamples=100)
    assert found.pass_at_k.at(1) == Estimate(value=0.0, low=0.0, high=0.0)


def test_the_verdict_is_what_the_interval_says():
    def test_of(low: float | None, high: float | None) -> DifferenceTest:
        return DifferenceTest(difference=Estimate(value=0.0, low=low, high=high), p=0.01, adjusted_p=0.01)

    assert [test_of(*ends).verdict for ends in ((0.1, 0.2), (-0.2, -0.1))] == ["better", "worse"]
    assert {test_of(*ends).verdict for ends in ((0.0, 0.2), (-0.1, 0.1), (None, None))} == {"no difference shown"}
    assert test_of(0.1, 0.2).survives and not test_of(-0.1, 0.2).survives
    assert not replace(test_of(0.1, 0.2), adjusted_p=0.05).survives


def test_the_correction_is_for_the_number_of_methods():
    """The same difference is as good with one method, and less good among five that show nothing."""
    rng = np.random.default_rng(0)
    rates = np.full(40, 0.3)

    def runs(gain: float) -> dict[int, object]:
        return {seed: binomial_outcomes(rates + gain, 8, rng) for seed in range(3)}

    methods = {f"m{place}": runs(0.3 if place == 0 else 0.0) for place in range(6)} | {"b": runs(0.0)}
    spread = spread_of(methods)
    differences = [
        method_difference(f"m{place}", methods[f"m{place}"], "b", methods["b"], spread, step=1, num_resamples=499) for place in range(6)
    ]
    alone, together = with_correction(differences[:1])[0], with_correction(differences)[0]
    assert alone.tests["pass@1"].p == alone.tests["pass@1"].adjusted_p == together.tests["pass@1"].p
    assert together.tests["pass@1"].adjusted_p == pytest.approx(6 * together.tests["pass@1"].p)
    assert with_correction([]) == ()
