import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bonus import prompt_memory
from bonus.config import BonusConfig
from bonus.covariance import RIDGE_FLOOR
from bonus.elliptical import leave_one_out, leverage
from bonus.scoring import StepBonus, carries_no_signal, score_step
from bonus.state import BonusState, init_state, merge

property_test = settings(deadline=None, max_examples=30)
MEMORIES = ["none", "prompt", "run"]
every_memory = pytest.mark.parametrize("memory", MEMORIES)


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(features_GKD: Tensor, value: bool = True) -> Tensor:
    return torch.full(features_GKD.shape[:2], value, dtype=torch.bool)


def keys(features_GKD: Tensor) -> list[str]:
    return [f"problem {group}" for group in range(len(features_GKD))]


def score(features_GKD: Tensor, state: BonusState | None = None, **settings) -> tuple[StepBonus, BonusState]:
    config = BonusConfig(**{"dim": features_GKD.shape[-1], "gate": "always", "ridge": "auto", **settings})
    state = state or init_state(config.dim)
    return score_step(features_GKD, mask(features_GKD), mask(features_GKD), state, config, keys_G=keys(features_GKD))


def test_a_run_scores_each_step_against_what_earlier_steps_left(vectors: Mapping[str, np.ndarray]) -> None:
    features_SGKD = torch.from_numpy(vectors["run_features_SGKD"])
    state = init_state(features_SGKD.shape[-1])
    for features_GKD, expected_GK in zip(features_SGKD, torch.from_numpy(vectors["run_leverage_SGK"]), strict=True):
        scored, state = score(features_GKD, state, memory="run", ridge=float(vectors["run_ridge"]), forgetting=float(vectors["run_decay"]))
        torch.testing.assert_close(scored.bonus_GK, expected_GK, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(state.covariance.second_moment_DD, torch.from_numpy(vectors["run_final_gram_DD"]), rtol=1e-9, atol=1e-12)
    assert (state.covariance.steps, state.covariance.groups) == (5, 15)


def test_without_memory_a_step_is_scored_alone_and_the_second_moment_is_left_untouched() -> None:
    _, after_run = score(draw(0, 3, 4, 6), memory="run")
    scored, state = score(draw(1, 3, 4, 6), after_run, memory="none", ridge=0.1)
    torch.testing.assert_close(scored.bonus_GK, leverage(draw(1, 3, 4, 6), ridge=0.1), rtol=1e-12, atol=0.0)
    assert torch.equal(state.covariance.second_moment_DD, after_run.covariance.second_moment_DD)
    assert state.covariance.energy_sum > after_run.covariance.energy_sum
    assert (state.covariance.steps, state.covariance.groups) == (2, 6)


def test_directions_seen_before_earn_less_and_new_ones_do_not() -> None:
    seen_GKD, new_GKD = torch.zeros(1, 4, 6).double(), torch.zeros(1, 4, 6).double()
    seen_GKD[..., :3], new_GKD[..., 3:] = draw(0, 1, 4, 3), draw(0, 1, 4, 3)
    first, state = score(seen_GKD, memory="run", ridge=0.1)
    again, _ = score(seen_GKD, state, memory="run", ridge=0.1)
    fresh, _ = score(new_GKD, state, memory="run", ridge=0.1)
    assert (again.bonus_GK < first.bonus_GK).all()
    torch.testing.assert_close(fresh.bonus_GK, first.bonus_GK, rtol=1e-9, atol=0.0)


def test_groups_of_one_step_do_not_see_each_other() -> None:
    features_GKD = draw(0, 3, 4, 6)
    together, state = score(features_GKD, memory="run", ridge=0.1)
    reversed_order, reversed_state = score(features_GKD.flip(0), memory="run", ridge=0.1)
    torch.testing.assert_close(reversed_order.bonus_GK.flip(0), together.bonus_GK, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(reversed_state.covariance.second_moment_DD, state.covariance.second_moment_DD, rtol=1e-12, atol=1e-12)


def test_the_automatic_ridge_of_the_first_step_is_its_own_energy() -> None:
    features_GKD = draw(0, 3, 8, 32, scale=2.0)
    energy = (features_GKD - features_GKD.mean(1, keepdim=True)).square().sum(2).mean().item()
    assert score(features_GKD)[0].ridge == pytest.approx(energy)


def test_the_automatic_ridge_moves_on_without_memory_too() -> None:
    first, state = score(draw(0, 3, 8, 32), forgetting=1.0)
    second, _ = score(draw(1, 3, 8, 32, scale=2.0), state, forgetting=1.0)
    own, _ = score(draw(1, 3, 8, 32, scale=2.0))
    assert second.ridge == pytest.approx((first.ridge + own.ridge) / 2)


def test_identical_responses_give_no_bonus_and_a_floor_for_the_ridge() -> None:
    scored, _ = score(draw(0, 2, 1, 6).expand(2, 4, 6))
    assert scored.ridge == RIDGE_FLOOR
    assert not scored.bonus_GK.any()
    assert scored.diagnostics.ridge_to_energy is None


def test_the_automatic_ridge_spreads_what_the_authors_ridge_saturates() -> None:
    features_GKD = draw(0, 16, 8, 32, scale=2.0) * torch.linspace(0.2, 1.8, 8, dtype=torch.float64)[None, :, None]
    authors, _ = score(features_GKD, ridge=0.01)
    ours, _ = score(features_GKD)
    assert carries_no_signal(authors.diagnostics)
    assert authors.diagnostics.distance_to_saturation == pytest.approx(0.0, abs=1e-3)
    assert not carries_no_signal(ours.diagnostics)


def test_the_estimator_and_then_the_normalisation_are_applied() -> None:
    features_GKD = draw(0, 2, 5, 6)
    expected_GK = leave_one_out(leverage(features_GKD, ridge=0.5))
    raw, _ = score(features_GKD, ridge=0.5, estimator="leave_one_out")
    divided, _ = score(features_GKD, ridge=0.5, estimator="leave_one_out", normalise="std")
    torch.testing.assert_close(raw.bonus_GK, expected_GK, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(divided.bonus_GK, expected_GK / expected_GK.std(1, keepdim=True), rtol=1e-12, atol=0.0)


def test_the_gate_takes_bonuses_away_after_normalisation_but_not_from_the_memory() -> None:
    features_GKD = draw(0, 2, 4, 6)
    correct_GK = torch.tensor([[False] * 4, [True, False, False, False]])
    config = BonusConfig(dim=6, ridge=0.5, memory="run", normalise="std")
    scored, state = score_step(features_GKD, correct_GK, mask(features_GKD), init_state(6), config)
    ungated, ungated_state = score(features_GKD, ridge=0.5, memory="run", normalise="std")
    assert not scored.bonus_GK[0].any()
    assert torch.equal(scored.bonus_GK[1], ungated.bonus_GK[1])
    assert torch.equal(state.covariance.second_moment_DD, ungated_state.covariance.second_moment_DD)
    assert scored.diagnostics.gated_out_share == 0.5


@pytest.mark.parametrize("normalise", ["none", "std", "zscore"])
def test_an_empty_response_gets_no_bonus_and_is_counted(normalise: str) -> None:
    features_GKD = draw(0, 3, 4, 6)
    features_GKD[0, 1] = math.nan
    features_GKD[2] = math.nan
    valid_GK = features_GKD.isfinite().all(2)
    config = BonusConfig(dim=6, memory="run", gate="always", normalise=normalise)
    scored, state = score_step(features_GKD, mask(features_GKD), valid_GK, init_state(6), config)
    assert not scored.bonus_GK[~valid_GK].any()
    assert scored.bonus_GK.isfinite().all()
    assert state.covariance.second_moment_DD.isfinite().all()
    assert scored.diagnostics.num_empty == 5


def test_a_step_of_single_responses_has_no_bonus_and_nothing_to_measure() -> None:
    scored, _ = score(draw(0, 3, 1, 6))
    assert not scored.bonus_GK.any()
    assert (scored.diagnostics.spread, scored.diagnostics.distance_to_saturation) == (None, None)
    assert not carries_no_signal(scored.diagnostics)


def test_lengths_are_correlated_with_the_raw_bonus_even_where_the_gate_closes() -> None:
    features_GKD = draw(0, 2, 6, 6)
    lengths_GK = 100 * leverage(features_GKD, ridge=1.0)
    config = BonusConfig(dim=6, ridge=1.0)
    scored, _ = score_step(features_GKD, mask(features_GKD, False), mask(features_GKD), init_state(6), config, lengths_GK=lengths_GK)
    assert not scored.bonus_GK.any()
    assert scored.diagnostics.length_correlation == pytest.approx(1.0)


def test_a_non_finite_feature_is_refused_before_anything_is_absorbed() -> None:
    features_GKD = draw(0, 2, 4, 6)
    features_GKD[1, 3, 0] = math.nan
    with pytest.raises(ValueError, match="group 1, response 3"):
        score(features_GKD, memory="run")


def test_inputs_that_do_not_fit_together_are_refused() -> None:
    features_GKD = draw(0, 2, 4, 6)
    valid_GK, config = mask(features_GKD), BonusConfig(dim=6)
    with pytest.raises(ValueError, match="dim=32"):
        score_step(features_GKD, valid_GK, valid_GK, init_state(6), BonusConfig())
    with pytest.raises(ValueError, match="the state has D=5"):
        score_step(features_GKD, valid_GK, valid_GK, init_state(5), config)
    with pytest.raises(ValueError, match="correct_GK"):
        score_step(features_GKD, valid_GK.double(), valid_GK, init_state(6), config)
    with pytest.raises(ValueError, match="lengths_GK"):
        score_step(features_GKD, valid_GK, valid_GK, init_state(6), config, lengths_GK=torch.ones(2, 3))


# -- memory of prompts


def test_visits_to_a_prompt_are_scored_against_all_its_responses_so_far(vectors: Mapping[str, np.ndarray]) -> None:
    features_SKD = torch.from_numpy(vectors["prompt_features_SKD"])
    config = BonusConfig(dim=features_SKD.shape[-1], memory="prompt", ridge=float(vectors["prompt_ridge"]), gate="always")
    state, other_GKD = init_state(config.dim), draw(9, 1, *features_SKD.shape[1:])
    for features_KD, expected_K in zip(features_SKD, torch.from_numpy(vectors["prompt_leverage_SK"]), strict=True):
        features_GKD = torch.stack([other_GKD[0], features_KD])
        all_GK = mask(features_GKD)
        scored, state = score_step(features_GKD, all_GK, all_GK, state, config, keys_G=["gsm8k/7", "math/7"])
        torch.testing.assert_close(scored.bonus_GK[1], expected_K, rtol=1e-9, atol=0.0)


def test_the_first_visit_to_a_prompt_is_scored_as_without_memory() -> None:
    features_GKD = draw(0, 3, 4, 6)
    first, state = score(features_GKD, memory="prompt", ridge=0.1)
    torch.testing.assert_close(first.bonus_GK, leverage(features_GKD, ridge=0.1), rtol=1e-9, atol=0.0)
    assert not state.covariance.second_moment_DD.any()
    assert score(features_GKD)[1].prompts.stats == {}


def test_the_saturation_of_a_remembered_prompt_is_that_of_all_its_responses() -> None:
    """Features orthogonal to each other and far above the ridge: every leverage is at its bound 1 - 1/n."""
    rows_ND, state = 1e3 * torch.eye(12, dtype=torch.float64), None
    for visit in range(3):
        scored, state = score(rows_ND[None, 4 * visit : 4 * visit + 4], state, memory="prompt", ridge=1e-3)
        torch.testing.assert_close(scored.leverage_GK, torch.full((1, 4), 1 - 1 / (4 * visit + 4)).double(), rtol=1e-6, atol=0.0)
        assert scored.diagnostics.distance_to_saturation == pytest.approx(0.0, abs=1e-6)
        assert scored.diagnostics.effective_rank == pytest.approx(4 * visit + 3, rel=1e-3)


def test_prompts_beyond_the_memory_are_evicted_and_counted() -> None:
    config = BonusConfig(dim=128, memory="prompt", gate="always", prompt_memory_mib=1)
    num_prompts, state = 2**20 // (8 * 128 * 128) + 3, init_state(128)
    for number in range(num_prompts):
        features_GKD = draw(number, 1, 2, 128)
        _, state = score_step(features_GKD, mask(features_GKD), mask(features_GKD), state, config, keys_G=[f"{number}"])
    assert state.prompts.num_evicted + len(state.prompts.stats) == num_prompts
    assert state.prompts.num_evicted > 0
    assert prompt_memory.nbytes(state.prompts) <= 2**20


# -- with any memory


def two_steps(features_SGKD: Tensor, **settings) -> Tensor:
    _, state = score(features_SGKD[0], **settings)
    return score(features_SGKD[1], state, **settings)[0].bonus_GK


@every_memory
@property_test
@given(seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 8)), data=st.data())
def test_permuting_the_responses_of_a_step_permutes_their_bonuses(memory: str, seed: int, size: tuple[int, int, int], data) -> None:
    features_SGKD, order = draw(seed, 2, *size), data.draw(st.permutations(range(size[1])))
    bonus_GK = two_steps(features_SGKD, memory=memory, ridge=0.5)
    permuted_GK = two_steps(torch.stack([features_SGKD[0], features_SGKD[1][:, order]]), memory=memory, ridge=0.5)
    torch.testing.assert_close(permuted_GK, bonus_GK[:, order], rtol=1e-9, atol=1e-12)


@every_memory
@property_test
@given(seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 8)))
def test_rotating_the_feature_space_leaves_every_bonus(memory: str, seed: int, size: tuple[int, int, int]) -> None:
    features_SGKD, rotation_DD = draw(seed, 2, *size), torch.linalg.qr(draw(seed + 1, size[-1], size[-1])).Q
    bonus_GK, rotated_GK = (two_steps(each, memory=memory, ridge="auto") for each in (features_SGKD, features_SGKD @ rotation_DD))
    torch.testing.assert_close(rotated_GK, bonus_GK, rtol=1e-8, atol=1e-11)


@every_memory
@property_test
@given(
    seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 8)), scale=st.sampled_from([0.1, 10])
)
def test_bonuses_lie_between_zero_and_one(memory: str, seed: int, size: tuple[int, int, int], scale: float) -> None:
    bonus_GK = two_steps(scale * draw(seed, 2, *size), memory=memory, ridge=1e-2)
    assert (bonus_GK >= 0).all()
    assert (bonus_GK < 1).all()


@every_memory
def test_a_copy_of_a_response_lowers_its_bonus(memory: str) -> None:
    features_SGKD = draw(0, 2, 3, 4, 6)
    copied_SGKD = torch.cat([features_SGKD, features_SGKD[:, :, :1]], dim=2)
    alone_GK, copied_GK = (two_steps(each, memory=memory, ridge=0.5) for each in (features_SGKD, copied_SGKD))
    assert (copied_GK[:, 0] < alone_GK[:, 0]).all()
    torch.testing.assert_close(copied_GK[:, 4], copied_GK[:, 0], rtol=1e-9, atol=0.0)


@every_memory
def test_shards_merged_without_forgetting_score_the_next_step_as_one_batch(memory: str) -> None:
    features_GKD, next_GKD = draw(0, 4, 3, 6), draw(1, 2, 3, 6)
    config = BonusConfig(dim=6, memory=memory, forgetting=1.0, gate="always")

    def step(groups: slice, state: BonusState) -> BonusState:
        part_GKD = features_GKD[groups]
        return score_step(part_GKD, mask(part_GKD), mask(part_GKD), state, config, keys_G=["a", "b", "c", "a"][groups])[1]

    merged = merge(step(slice(0, 2), init_state(6)), step(slice(2, 4), init_state(6)))
    together = step(slice(0, 4), init_state(6))
    actual, expected = (
        score_step(next_GKD, mask(next_GKD), mask(next_GKD), state, config, keys_G=["a", "d"])[0].bonus_GK for state in (merged, together)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0.0)


@every_memory
def test_scoring_leaves_the_earlier_state_as_it_was(memory: str) -> None:
    _, state = score(draw(0, 2, 4, 6), memory=memory)
    before, _ = score(draw(1, 2, 4, 6), state, memory=memory)
    again, _ = score(draw(1, 2, 4, 6), state, memory=memory)
    assert torch.equal(before.bonus_GK, again.bonus_GK)


# -- staleness


def with_lags(discount: float, lags_GK: Tensor | None, **settings) -> Tensor:
    features_GKD = draw(0, 2, 3, 6)
    config = BonusConfig(dim=6, staleness_discount=discount, **settings)
    correct_GK = torch.tensor([[True, False, False], [False, False, False]])
    return score_step(features_GKD, correct_GK, mask(features_GKD), init_state(6), config, lags_GK=lags_GK)[0].bonus_GK


@pytest.mark.parametrize("normalise", ["none", "zscore"])
def test_an_older_response_keeps_less_of_its_bonus_after_normalisation_and_gate(normalise: str) -> None:
    lags_GK = torch.tensor([[0, 1, 3], [0, 1, 3]])
    fresh_GK, discounted_GK = with_lags(1.0, None, normalise=normalise), with_lags(0.5, lags_GK, normalise=normalise)
    assert fresh_GK[0].all()
    assert discounted_GK[0].tolist() == (fresh_GK[0] * torch.tensor([1.0, 0.5, 0.125])).tolist()
    assert not discounted_GK[1].any()


@pytest.mark.parametrize("normalise", ["none", "std", "zscore"])
def test_without_a_discount_lags_change_nothing_bit_for_bit(normalise: str) -> None:
    lags_GK = torch.tensor([[0, 1, 3], [7, 1, 100]])
    assert torch.equal(with_lags(1.0, lags_GK, normalise=normalise), with_lags(1.0, None, normalise=normalise))


def test_a_discount_that_is_no_power_of_two_is_taken_in_float64() -> None:
    factor_GK = with_lags(0.9, torch.full((2, 3), 2), gate="always") / with_lags(1.0, None, gate="always")
    torch.testing.assert_close(factor_GK, torch.full((2, 3), 0.9**2, dtype=torch.float64), rtol=1e-15, atol=0.0)


# -- what is returned besides, and what is refused


@every_memory
def test_the_diagnostics_of_a_step_are_those_of_its_groups(memory: str) -> None:
    _, state = score(draw(0, 3, 5, 6), memory=memory)
    lengths_GK = torch.randint(1, 90, (3, 5), generator=torch.Generator().manual_seed(1))
    features_GKD, config = draw(1, 3, 5, 6), BonusConfig(dim=6, memory=memory)
    all_GK = mask(features_GKD)
    scored, _ = score_step(features_GKD, all_GK, all_GK, state, config, lengths_GK=lengths_GK, keys_G=keys(features_GKD))
    groups, step = scored.groups, scored.diagnostics
    assert step.spread == pytest.approx(groups.spread_G.median().item())
    assert step.distance_to_saturation == pytest.approx(groups.distance_to_saturation_G.mean().item())
    assert step.effective_rank == pytest.approx(groups.effective_rank_G.mean().item())
    expected_G = torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(scored.leverage_GK, lengths_GK.double(), strict=True)]
    )
    torch.testing.assert_close(groups.length_correlation_G, expected_G, rtol=1e-9, atol=1e-12)


@every_memory
def test_a_group_that_defines_nothing_is_not_a_number_and_leaves_the_step_alone(memory: str) -> None:
    features_GKD, valid_GK = draw(0, 3, 4, 6), torch.ones(3, 4, dtype=torch.bool)
    valid_GK[1, 1:] = valid_GK[2] = False
    config, lengths_GK = BonusConfig(dim=6, memory=memory, ridge=0.5), torch.tensor([[3, 9, 4, 5]] * 3)
    scored, _ = score_step(features_GKD, valid_GK, valid_GK, init_state(6), config, lengths_GK=lengths_GK, keys_G=keys(features_GKD))
    first = slice(0, 1)
    alone, _ = score_step(
        features_GKD[first], valid_GK[first], valid_GK[first], init_state(6), config, lengths_GK=lengths_GK[first], keys_G=["problem 0"]
    )
    for name in ("spread_G", "distance_to_saturation_G", "length_correlation_G"):
        assert getattr(scored.groups, name).isfinite().tolist() == [True, False, False]
    assert scored.groups.effective_rank_G.isfinite().all()
    for name in ("spread", "distance_to_saturation", "length_correlation"):
        assert getattr(scored.diagnostics, name) == pytest.approx(getattr(alone.diagnostics, name))


def test_without_lengths_no_group_has_a_correlation_with_them() -> None:
    assert score(draw(0, 3, 4, 6))[0].groups.length_correlation_G.isnan().all()


def test_the_leverage_is_returned_as_it_was_before_the_gate_and_all_else() -> None:
    features_GKD = draw(0, 2, 4, 6)
    config = BonusConfig(dim=6, ridge=0.5, estimator="leave_one_out", normalise="zscore")
    scored, _ = score_step(features_GKD, mask(features_GKD, False), mask(features_GKD), init_state(6), config)
    assert not scored.bonus_GK.any()
    torch.testing.assert_close(scored.leverage_GK, leverage(features_GKD, ridge=0.5), rtol=1e-12, atol=0.0)


def test_what_the_config_needs_to_know_of_a_step_is_asked_for() -> None:
    features_GKD = draw(0, 2, 3, 6)
    all_GK, state = mask(features_GKD), init_state(6)
    with pytest.raises(ValueError, match="memory='prompt' needs keys_G"):
        score_step(features_GKD, all_GK, all_GK, state, BonusConfig(dim=6, memory="prompt"))
    with pytest.raises(ValueError, match="1 keys for 2 groups"):
        score_step(features_GKD, all_GK, all_GK, state, BonusConfig(dim=6, memory="prompt"), keys_G=["a"])
    with pytest.raises(ValueError, match=r"staleness_discount=0\.9 needs lags_GK"):
        score_step(features_GKD, all_GK, all_GK, state, BonusConfig(dim=6, staleness_discount=0.9))
    for lags_GK in (torch.zeros(2, 3), torch.zeros(2, 2).int(), torch.tensor([[0, 0, -1]] * 2)):
        with pytest.raises(ValueError, match="lags_GK must be whole numbers"):
            score_step(features_GKD, all_GK, all_GK, state, BonusConfig(dim=6), lags_GK=lags_GK)
