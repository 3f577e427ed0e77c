import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.analysis.bootstrap import mean_curve, resample_counts
from jobs.analysis.order_statistics import (
    JudgedCandidates,
    Outcomes,
    chance_of_as_bad,
    curve_ks,
    explore_statistics,
    judge,
    listed_ks,
    novelty_worse_than_random,
    pass_at_k_of_order,
    random_first_correct,
    verifications_to_reach,
)
from jobs.analysis.pass_at_k import pass_at_k_curves

correct_pools = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=6)


def candidates(correct, order=None, *, verified=None, name="repexp") -> JudgedCandidates:
    """`order`: the candidates in the order in which they are verified; by default as they stand."""
    correct = np.array(correct, dtype=bool)
    ranks = np.empty(len(correct), dtype=int)
    ranks[list(range(len(correct))) if order is None else list(order)] = np.arange(len(correct))
    checked = np.ones(len(correct), dtype=bool) if verified is None else np.array(verified, dtype=bool)
    return JudgedCandidates(verified_N=checked, correct_N=correct & checked, ranks={name: ranks})


def two_prompts() -> Outcomes:
    """n = 4, c = 1, first correct at 1; n = 4, c = 2, first correct at 2."""
    return judge([candidates([1, 0, 0, 0]), candidates([0, 1, 1, 0])])


def repexp(outcomes, **options):
    return explore_statistics(outcomes, num_resamples=200, **options).orders["repexp"]


def random_orders(rng, num_prompts, num_candidates=16) -> Outcomes:
    """Pools whose order is random choice itself: there is nothing to find."""
    problems = []
    for _ in range(num_prompts):
        correct = rng.random(num_candidates) < rng.beta(0.5, 3.0)
        problems.append(candidates(correct, rng.permutation(num_candidates)))
    return judge(problems)


# ---- random choice and orders, by hand


def test_random_pass_at_k_is_the_mean_over_prompts_of_the_exact_one():
    curve = explore_statistics(two_prompts(), num_resamples=50).random_pass_at_k
    assert curve.ks == (1, 2, 3, 4)
    assert curve.value == pytest.approx([(0.25 + 0.5) / 2, (0.5 + 5 / 6) / 2, (0.75 + 1.0) / 2, 1.0])


def test_pass_at_k_of_an_order_counts_prompts_solved_within_its_first_k():
    curve = repexp(two_prompts()).pass_at_k
    assert curve.value == (0.5, 1.0, 1.0, 1.0)


def test_difference_is_order_less_random():
    difference = repexp(two_prompts()).difference
    assert difference.value == pytest.approx([0.5 - 0.375, 1 - 2 / 3, 1 - 0.875, 0.0])


def test_random_choice_needs_n_plus_1_over_c_plus_1_verifications():
    needed = random_first_correct(np.array([4, 4, 3, 7]), np.array([1, 2, 0, 7]))
    assert needed == pytest.approx([2.5, 5 / 3, np.inf, 1.0])


def test_samples_to_first_correct_are_means_over_solvable_prompts():
    statistics = explore_statistics(judge([candidates([0, 0, 1, 0]), candidates([1, 0, 0, 0]), candidates([0, 0, 0, 0])]), num_resamples=50)
    assert (statistics.num_prompts, statistics.num_solvable) == (3, 2)
    assert statistics.orders["repexp"].first_correct.value == 2.0
    assert statistics.random_first_correct.value == 2.5


def test_efficiency_is_the_ratio_of_mean_verifications():
    assert repexp(two_prompts()).efficiency.value == pytest.approx(((2.5 + 5 / 3) / 2) / 1.5)


def test_efficiency_at_k_asks_when_random_choice_is_as_good():
    """k = 1: the order solves half; random solves 0.375 after 1 and 0.667 after 2. k = 2: all; random surely only after
    4."""
    curve = repexp(two_prompts()).efficiency_at_k
    assert curve.ks == (1, 2)
    assert curve.value == pytest.approx([1 + (0.5 - 0.375) / (2 / 3 - 0.375), 4 / 2])


def test_efficiency_at_k_does_not_depend_on_unsolvable_prompts():
    problems = [candidates([1, 0, 0, 0]), candidates([0, 1, 1, 0])]
    with_unsolvable = repexp(judge([*problems, candidates([0, 0, 0, 0])])).efficiency_at_k
    assert with_unsolvable.value == pytest.approx(repexp(judge(problems)).efficiency_at_k.value)


def test_efficiency_at_k_is_0_while_the_order_has_found_nothing():
    curve = repexp(judge([candidates([0, 0, 1, 0]), candidates([0, 0, 1, 0])])).efficiency_at_k
    assert curve.ks == (1, 2, 3)
    assert curve.value == pytest.approx([0.0, 0.0, 4 / 3])


def test_verifications_to_reach_a_miss_rate_random_choice_never_reaches_are_infinite():
    reached = verifications_to_reach(np.array([1.0, 0.6, 0.4]), np.array([1.0, 0.8, 0.4, 0.3]))
    assert reached == pytest.approx([0.0, 0.5, 2.0, np.inf])


def test_verifications_to_reach_no_misses_end_at_the_first_zero():
    assert verifications_to_reach(np.array([1.0, 0.5, 0.0, 0.0, 0.0]), np.array([0.0])) == 2.0


def test_a_pool_smaller_than_k_is_verified_whole():
    statistics = explore_statistics(judge([candidates([0, 1]), candidates([0, 0, 0, 1])]), num_resamples=50)
    assert statistics.random_pass_at_k.value == pytest.approx([(0.5 + 0.25) / 2, (1 + 0.5) / 2, (1 + 0.75) / 2, 1.0])
    assert statistics.orders["repexp"].pass_at_k.value == (0.0, 0.5, 0.5, 1.0)


# ---- properties


@given(st.lists(st.booleans(), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_random_choice_is_the_mean_over_all_orders(correct):
    size, orders = len(correct), list(permutations(range(len(correct))))
    firsts = np.array([judge([candidates(correct, order)]).first_correct["repexp"][0] for order in orders])
    statistics = explore_statistics(judge([candidates(correct)]), num_resamples=10)
    assert statistics.random_pass_at_k.value == pytest.approx(pass_at_k_of_order(firsts, range(1, size + 1)).mean(axis=0).tolist())
    assert random_first_correct(np.array([size]), np.array([sum(correct)]))[0] == pytest.approx(firsts.mean())


@given(correct_pools)
@settings(deadline=None, max_examples=50)
def test_curves_never_fall_and_end_together_at_the_share_of_solvable_prompts(problems):
    statistics = explore_statistics(judge([candidates(correct) for correct in problems]), num_resamples=20)
    solvable = statistics.num_solvable / statistics.num_prompts
    for curve in (statistics.random_pass_at_k, statistics.orders["repexp"].pass_at_k):
        assert (np.diff(curve.value) >= -1e-12).all()
        assert curve.value[-1] == pytest.approx(solvable)


@given(correct_pools, st.randoms())
@settings(deadline=None, max_examples=50)
def test_the_best_order_is_at_least_as_good_as_random_and_the_worst_no_better(problems, random):
    def sorted_pools(best_first):
        return judge(
            [candidates(correct, sorted(range(len(correct)), key=lambda i: correct[i], reverse=best_first)) for correct in problems]
        )

    best, worst = repexp(sorted_pools(True)), repexp(sorted_pools(False))
    assert min(best.difference.value) >= -1e-12
    assert max(worst.difference.value) <= 1e-12
    if best.efficiency:
        assert best.first_correct.value == 1.0
        assert best.efficiency.value >= 1.0 - 1e-12 >= worst.efficiency.value - 2e-12


@given(correct_pools)
@settings(deadline=None, max_examples=30)
def test_the_order_of_prompts_changes_no_value(problems):
    forward = explore_statistics(judge([candidates(correct) for correct in problems]), num_resamples=5)
    backward = explore_statistics(judge([candidates(correct) for correct in reversed(problems)]), num_resamples=5)
    assert forward.random_pass_at_k.value == pytest.approx(backward.random_pass_at_k.value)
    assert forward.orders["repexp"].pass_at_k.value == pytest.approx(backward.orders["repexp"].pass_at_k.value)


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 100, 256, 5000])
def test_curves_have_every_k_up_to_64_the_listed_ones_and_the_last(size):
    ks = curve_ks(size, [1, 3, 77, 10_000])
    assert list(ks) == sorted(set(ks))
    assert set(range(1, min(size, 64) + 1)) <= set(ks)
    assert ks[-1] == size
    assert (77 in ks) == (size >= 77)
    assert len(ks) < 300


def test_listed_ks_are_powers_of_two_and_the_pool_itself():
    assert listed_ks(1) == (1,)
    assert listed_ks(8) == (1, 2, 4, 8)
    assert listed_ks(11) == (1, 2, 4, 8, 11)


def test_listed_ks_are_those_asked_for_that_a_pool_has():
    assert listed_ks(8, [5, 3, 3, 9]) == (3, 5)
    assert listed_ks(2, [5, 9]) == (1, 2)


# ---- intervals


def test_one_prompt_has_values_without_intervals():
    statistics = explore_statistics(judge([candidates([0, 1, 0])]), num_resamples=50)
    assert statistics.random_pass_at_k.low is None
    assert statistics.orders["repexp"].efficiency.value == 1.0
    assert statistics.orders["repexp"].efficiency.high is None
    assert statistics.orders["repexp"].pass_at_k.at(2).low is None


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    outcomes = random_orders(np.random.default_rng(0), 30)
    first, again, other = (explore_statistics(outcomes, num_resamples=100, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.orders["repexp"].efficiency.low != other.orders["repexp"].efficiency.low


def test_differences_are_paired_over_prompts():
    """Whether prompts are hard or easy, the order is one half better: the difference does not vary although both curves
    do."""
    outcomes = judge([candidates([1, 0]), candidates([1, 0]), candidates([0, 0])] * 4)
    statistics = explore_statistics(outcomes, num_resamples=300)
    hard_and_easy = statistics.orders["repexp"].pass_at_k.at(1)
    assert hard_and_easy.high - hard_and_easy.low > 0.4
    paired = statistics.orders["repexp"].difference.at(1)
    assert paired.high - paired.low == pytest.approx((hard_and_easy.high - hard_and_easy.low) / 2)


def test_intervals_of_the_efficiency_cover_1_where_the_order_is_random():
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(200):
        estimate = explore_statistics(random_orders(rng, 60), num_resamples=200, ks=(1, 4)).orders["repexp"].efficiency
        covered.append(estimate.low <= 1.0 <= estimate.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_statistics_are_plain_numbers():
    record = explore_statistics(two_prompts(), num_resamples=20).to_json()
    assert json.loads(json.dumps(record, allow_nan=False))["orders"]["repexp"]["pass_at_k"]["value"] == [0.5, 1.0, 1.0, 1.0]


# ---- the warning


def worse_than_random(num_prompts=12):
    return judge([candidates([0, 0, 0, 0, 0, 0, 1, 1]) for _ in range(num_prompts)])


def test_an_order_that_finds_less_than_random_choice_is_warned_about_with_the_figure():
    warning = novelty_worse_than_random(worse_than_random())
    assert warning is not None
    assert "(repexp) finds correct answers less often than random choice: pass@4 is 0.00 against 0.79 (difference -0.79" in warning


def test_an_order_that_is_better_or_as_good_is_not_warned_about():
    assert novelty_worse_than_random(judge([candidates([1, 0, 0, 0]) for _ in range(12)])) is None
    assert novelty_worse_than_random(judge([candidates([1, 1]) for _ in range(12)])) is None
    assert novelty_worse_than_random(judge([candidates([0, 0]) for _ in range(12)])) is None


def test_one_prompt_is_not_enough_for_a_warning():
    assert novelty_worse_than_random(worse_than_random(1)) is None
    assert novelty_worse_than_random(worse_than_random(6)) is not None


def test_only_the_listed_k_are_looked_at():
    assert novelty_worse_than_random(worse_than_random(), ks=[8]) is None
    assert "pass@2 is" in novelty_worse_than_random(worse_than_random(), ks=[2])


def test_an_order_that_is_not_there_is_not_warned_about():
    assert novelty_worse_than_random(worse_than_random(), order="quality") is None


@pytest.mark.parametrize("num_prompts", [3, 10, 60])
def test_random_orders_are_rarely_warned_about_however_few_prompts_and_many_k_there_are(num_prompts):
    rng = np.random.default_rng(7)
    tables = [random_orders(rng, num_prompts) for _ in range(200)]
    warned = sum(novelty_worse_than_random(outcomes, num_resamples=200) is not None for outcomes in tables)
    by_intervals = sum(some_interval_ends_below_0(outcomes) for outcomes in tables)
    assert warned <= 10 < by_intervals


def some_interval_ends_below_0(outcomes, ks=(1, 2, 4, 8, 16)):
    random = pass_at_k_curves(outcomes.num_candidates_P, outcomes.num_correct_P, 16)[:, np.array(ks) - 1]
    values = pass_at_k_of_order(outcomes.first_correct["repexp"], ks) - random
    return min(mean_curve(ks, values, resample_counts(len(values), 200, 0)).high) < 0


def test_chance_of_as_bad_is_that_of_missing_everywhere_at_one_k():
    """Three prompts, each solved with probability 1/2 by chance: all three are missed in 1 of 8 cases, two or three in
    4 of 8."""
    half = np.full((3, 1), 0.5)
    chances = [chance_of_as_bad(np.array(o)[:, None], half, num_resamples=20_000, seed=0)[0] for o in ([0, 0, 0], [0, 1, 0], [1, 1, 1])]
    assert chances == pytest.approx([1 / 8, 4 / 8, 1.0], abs=0.01)


def test_chance_of_as_bad_is_the_share_of_all_orders_that_are_so_at_any_k():
    """Two prompts, n = 3 and c = 1: the first correct is at 1, 2 or 3 with equal chance, nine tables in all."""
    random = np.tile([1 / 3, 2 / 3, 1.0], (2, 1))
    tables = [(i, j) for i in (1, 2, 3) for j in (1, 2, 3)]

    def z(firsts):
        order = pass_at_k_of_order(np.array(firsts, dtype=float), (1, 2))
        return (order - random[:, :2]).sum(axis=0) / np.sqrt(2 * 2 / 9)

    for firsts in ((3, 3), (2, 3), (1, 2)):
        chance = chance_of_as_bad(pass_at_k_of_order(np.array(firsts, dtype=float), (1, 2, 3)), random, num_resamples=20_000, seed=0)
        shares = [np.mean([z(table).min() <= z(firsts)[k] + 1e-9 for table in tables]) for k in (0, 1)]
        assert chance == pytest.approx([*shares, 1.0], abs=0.01), firsts


# ---- verdicts on some candidates only


def test_with_some_candidates_unverified_random_choice_is_unknown():
    outcomes = judge([candidates([0, 1, 0, 1], verified=[1, 1, 0, 0]), candidates([0, 0, 0, 0], verified=[1, 1, 1, 0])])
    statistics = explore_statistics(outcomes, num_resamples=50)
    assert statistics.random_pass_at_k is None
    assert statistics.random_first_correct is None
    order = statistics.orders["repexp"]
    assert (order.difference, order.first_correct, order.efficiency, order.efficiency_at_k) == (None, None, None, None)
    assert novelty_worse_than_random(outcomes) is None


def test_pass_at_k_of_an_order_is_known_as_far_as_its_first_candidates_were_verified():
    """The first pool is known at every k once solved, the second up to k = 3."""
    curve = repexp(judge([candidates([0, 1, 0, 1], verified=[1, 1, 0, 0]), candidates([0, 0, 0, 0], verified=[1, 1, 1, 0])])).pass_at_k
    assert curve.ks == (1, 2, 3)
    assert curve.value == (0.0, 0.5, 0.5)


def test_a_correct_candidate_behind_one_that_was_not_verified_does_not_count():
    outcomes = judge([candidates([0, 0, 1, 0], verified=[1, 0, 1, 1])])
    assert outcomes.known_depth["repexp"] == 1
    assert outcomes.first_correct["repexp"][0] == np.inf


def test_an_order_whose_first_candidate_was_not_verified_has_no_curve():
    assert repexp(judge([candidates([1, 1], verified=[0, 1]), candidates([1, 1])])).pass_at_k is None


def test_statistics_refuse_no_problems_and_problems_that_differ_in_their_orders():
    with pytest.raises(ValueError, match="at least one problem"):
        judge([])
    with pytest.raises(ValueError, match="same orders"):
        judge([candidates([1]), candidates([1], name="quality")])
