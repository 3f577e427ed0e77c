import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from bonus.config import BonusConfig
from bonus.covariance import RIDGE_FLOOR, CovarianceState, from_state_dict, init_state, state_dict
from bonus.elliptical import leave_one_out, leverage
from bonus.scoring import StepBonus, carries_no_signal, score_step


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(features_GKD: Tensor, value: bool = True) -> Tensor:
    return torch.full(features_GKD.shape[:2], value, dtype=torch.bool)


def score(features_GKD: Tensor, state: CovarianceState | None = None, **settings) -> tuple[StepBonus, CovarianceState]:
    config = BonusConfig(dim=features_GKD.shape[-1], gate="always", **settings)
    return score_step(features_GKD, mask(features_GKD), mask(features_GKD), state or init_state(config.dim), config)


def test_a_run_scores_each_step_against_what_earlier_steps_left(vectors: Mapping[str, np.ndarray]) -> None:
    features_SGKD = torch.from_numpy(vectors["run_features_SGKD"])
    state = init_state(features_SGKD.shape[-1])
    for features_GKD, expected_GK in zip(features_SGKD, torch.from_numpy(vectors["run_leverage_SGK"]), strict=True):
        scored, state = score(features_GKD, state, memory="run", ridge=float(vectors["run_ridge"]), forgetting=float(vectors["run_decay"]))
        torch.testing.assert_close(scored.bonus_GK, expected_GK, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(state.second_moment_DD, torch.from_numpy(vectors["run_final_gram_DD"]), rtol=1e-9, atol=1e-12)
    assert (state.steps, state.groups) == (5, 15)


def test_without_memory_a_step_is_scored_alone_and_the_second_moment_is_left_untouched() -> None:
    _, after_run = score(draw(0, 3, 4, 6), memory="run")
    scored, state = score(draw(1, 3, 4, 6), after_run, memory="none", ridge=0.1)
    torch.testing.assert_close(scored.bonus_GK, leverage(draw(1, 3, 4, 6), ridge=0.1), rtol=1e-12, atol=0.0)
    assert torch.equal(state.second_moment_DD, after_run.second_moment_DD)
    assert state.energy_sum > after_run.energy_sum
    assert (state.steps, state.groups) == (2, 6)


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
    torch.testing.assert_close(reversed_state.second_moment_DD, state.second_moment_DD, rtol=1e-12, atol=1e-12)


def test_a_restored_state_gives_the_next_bonuses_bit_for_bit() -> None:
    _, state = score(draw(0, 3, 4, 6), memory="run")
    restored = from_state_dict(state_dict(state))
    for seed in range(1, 4):
        expected, state = score(draw(seed, 3, 4, 6), state, memory="run")
        actual, restored = score(draw(seed, 3, 4, 6), restored, memory="run")
        assert torch.equal(actual.bonus_GK, expected.bonus_GK)
        assert (actual.ridge, actual.diagnostics) == (expected.ridge, expected.diagnostics)


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
    assert torch.equal(state.second_moment_DD, ungated_state.second_moment_DD)
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
    assert state.second_moment_DD.isfinite().all()
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
