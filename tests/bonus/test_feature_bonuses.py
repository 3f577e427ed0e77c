"""The bonuses from features and log-probs, and the control, against slow references and in limiting cases."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bonus import coin_flip
from bonus.coin_flip import Flips, absorb, hidden_units, init_flips, inverse_counts
from bonus.config import BonusConfig
from bonus.cosine import novelty, similarities
from bonus.elliptical import center, gate_mask, leverage
from bonus.methods import bonus_of
from bonus.rnd import RndState, error_std, init_rnd, network, random_parameters, trained
from bonus.surprise import capped, mean_surprise
from tests.bonus.steps import all_equal, bonuses_of, make_step


def only_bonus(step: Any, **settings: Any) -> Tensor:
    (found,), _ = bonuses_of(bonus_of(BonusConfig(dim=6, **settings)), [step])
    return found


# ---- logdet ----


def test_logdet_is_what_a_response_adds_to_the_volume_of_its_group() -> None:
    step = make_step()
    assert step.features_GKD is not None
    found = only_bonus(step, kind="logdet", gate="always", ridge=0.7, cut_off="keep")
    centered_GKD = center(step.features_GKD, step.valid_GK).numpy()
    for group, rows_KD in enumerate(centered_GKD):
        for place in range(4):
            others_KD = np.delete(rows_KD, place, axis=0)
            volumes = [np.linalg.slogdet(np.eye(len(rows)) + rows @ rows.T / 0.7)[1] for rows in (rows_KD, others_KD)]
            assert found[group, place] == pytest.approx(volumes[0] - volumes[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("settings", [{}, {"ridge": 0.01}, {"memory": "run"}, {"memory": "prompt"}], ids=str)
def test_logdet_is_minus_the_log_of_one_less_the_leverage(settings: dict[str, Any]) -> None:
    steps = [make_step(number) for number in (1, 2, 3)]
    elliptical, _ = bonuses_of(bonus_of(BonusConfig(dim=6, gate="always", **settings)), steps)
    found, _ = bonuses_of(bonus_of(BonusConfig(kind="logdet", dim=6, gate="always", **settings)), steps)
    for one, other in zip(elliptical, found, strict=True):
        torch.testing.assert_close(other, -(1 - one).log(), rtol=1e-9, atol=1e-12)


# ---- cosine ----


def slow_novelty(step: Any, mean_share: float) -> list[list[float]]:
    features = step.features_GKD.numpy()
    found = []
    for group in range(len(features)):
        valid = [place for place in range(4) if step.valid_GK[group, place]]
        row = [0.0] * 4
        for place in valid:
            similarity = {}
            for other in valid:
                one, two = features[group, place], features[group, other]
                similarity[other] = max(0.0, float(one @ two / np.linalg.norm(one) / np.linalg.norm(two)))
            others = [other for other in valid if other != place]
            same = [other for other in others if step.correct_GK[group, other] == step.correct_GK[group, place]]
            mean = np.mean([similarity[other] for other in same or others])
            row[place] = 1 - (mean_share * mean + (1 - mean_share) * max(similarity[other] for other in others))
        found.append(row)
    return found


@pytest.mark.parametrize("mean_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_cosine_is_the_slow_novelty(seed: int, mean_share: float) -> None:
    step = make_step(seed=seed)
    found = only_bonus(step, kind="cosine", gate="always", cut_off="keep", cosine={"mean_share": mean_share})
    np.testing.assert_allclose(found.numpy(), slow_novelty(step, mean_share), rtol=1e-9, atol=1e-12)


def test_equal_features_are_not_novel_and_orthogonal_ones_wholly() -> None:
    valid_GK = torch.ones(1, 3, dtype=torch.bool)
    for features_GKD, expected in ((torch.ones(1, 3, 3), 0.0), (torch.eye(3)[None], 1.0)):
        found = novelty(similarities(features_GKD, valid_GK), valid_GK, valid_GK, mean_share=0.5)
        torch.testing.assert_close(found, torch.full((1, 3), expected, dtype=torch.float64))


def test_a_response_alone_in_its_group_has_no_novelty() -> None:
    valid_GK = torch.tensor([[True, False]])
    assert novelty(similarities(torch.randn(1, 2, 3), valid_GK), valid_GK, valid_GK, mean_share=0.5).tolist() == [[0.0, 0.0]]


# ---- coin_flip ----


def flips_of(inputs_NH: Tensor, coins: int, seed: int = 0) -> tuple[Flips, Tensor]:
    coins_NC = 2.0 * torch.randint(2, (len(inputs_NH), coins), generator=torch.Generator().manual_seed(seed)).double() - 1.0
    return absorb(init_flips(inputs_NH.shape[1], coins), inputs_NH, coins_NC), coins_NC


def test_the_regression_is_that_of_responses_on_their_coins() -> None:
    inputs_NH = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flips, coins_NC = flips_of(inputs_NH, 3)
    stacked = np.concatenate([inputs_NH.numpy(), math.sqrt(0.3) * np.eye(5)])
    weights, *_ = np.linalg.lstsq(stacked, np.concatenate([coins_NC.numpy(), np.zeros((5, 3))]), rcond=None)
    expected = ((inputs_NH.numpy() @ weights) ** 2).mean(axis=1)
    np.testing.assert_allclose(inverse_counts(flips, inputs_NH[None], ridge=0.3)[0].numpy(), expected, rtol=1e-9)


def test_states_that_came_n_times_have_1_over_n() -> None:
    """The tabular case: one input for each state, and a ridge near 0."""
    times = [1, 2, 5, 20]
    inputs_NH = torch.eye(4, dtype=torch.float64).repeat_interleave(torch.tensor(times), dim=0)
    flips, _ = flips_of(inputs_NH, 40_000)
    found = inverse_counts(flips, torch.eye(4, dtype=torch.float64)[None], ridge=1e-9)[0]
    assert found.tolist() == pytest.approx([1 / count for count in times], rel=0.05)


def test_a_linear_network_gives_the_leverage_of_the_elliptical_bonus() -> None:
    """On average over many coins, of one group, for a small ridge. At any ridge its closed form is a little less."""
    step = make_step(groups=1, responses=5)
    assert step.features_GKD is not None
    rows_KD = center(step.features_GKD, step.valid_GK)[0]
    flips, _ = flips_of(rows_KD, 40_000)
    for ridge, of_leverage in ((1e-6, True), (2.0, False)):
        found = inverse_counts(flips, rows_KD[None], ridge=ridge)[0].numpy()
        inverse = np.linalg.inv(ridge * np.eye(6) + rows_KD.numpy().T @ rows_KD.numpy())
        closed_form = np.einsum("kd,de,ke->k", rows_KD.numpy(), inverse - ridge * inverse @ inverse, rows_KD.numpy())
        np.testing.assert_allclose(found, closed_form, rtol=0.05, atol=1e-9)
        elliptical = leverage(step.features_GKD, ridge=ridge, valid_GK=step.valid_GK)[0].numpy()
        assert np.allclose(closed_form, elliptical, rtol=1e-4) is of_leverage
        assert (closed_form <= elliptical + 1e-12).all()


def test_its_bonus_is_that_of_a_run_s_memory_without_forgetting() -> None:
    """One group a step, so that both have seen the same when they score."""
    steps = [make_step(number, groups=1, responses=8) for number in range(1, 5)]
    settings: dict[str, Any] = {"dim": 6, "ridge": 1e-6, "gate": "always"}
    elliptical, _ = bonuses_of(bonus_of(BonusConfig(memory="run", forgetting=1.0, **settings)), steps)
    coins, _ = bonuses_of(bonus_of(BonusConfig(kind="coin_flip", coin_flip={"coins": 20_000}, **settings)), steps)
    for one, other in zip(elliptical, coins, strict=True):
        np.testing.assert_allclose(other.square().numpy(), one.numpy(), rtol=0.06, atol=1e-9)


def test_each_response_is_absorbed_once_with_coins_of_its_own() -> None:
    bonus = bonus_of(BonusConfig(kind="coin_flip", dim=6))
    steps = [make_step(number) for number in (1, 2, 3)]
    _, state = bonuses_of(bonus, steps)
    assert state.responses == sum(int(step.valid_GK.sum()) for step in steps)
    _, once = bonuses_of(bonus, steps[:1])
    _, other_step = bonuses_of(bonus, [replace(steps[0], step=9)])
    assert torch.equal(once.gram_HH, other_step.gram_HH) and not torch.equal(once.flips_HC, other_step.flips_HC)


def test_coin_shards_add_up_to_one_history() -> None:
    bonus = bonus_of(BonusConfig(kind="coin_flip", dim=6, coin_flip={"hidden": 8}))
    steps = [make_step(number) for number in (1, 2, 3)]
    (_, one), (_, two), (_, all_steps) = (bonuses_of(bonus, part) for part in (steps[:1], steps[1:], steps))
    merged = coin_flip.merge(one, two)
    torch.testing.assert_close(merged.gram_HH, all_steps.gram_HH)
    torch.testing.assert_close(merged.flips_HC, all_steps.flips_HC)
    assert (merged.responses, merged.energy) == (all_steps.responses, pytest.approx(all_steps.energy))


def test_hidden_units_keep_the_mean_energy() -> None:
    rows_GKD = torch.randn(1, 50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = hidden_units(rows_GKD, 20_000, seed=3)
    assert float(units.square().sum() / rows_GKD.square().sum()) == pytest.approx(1.0, rel=0.05)
    assert torch.equal(units, hidden_units(rows_GKD, 20_000, seed=3))
    assert not torch.equal(units, hidden_units(rows_GKD, 20_000, seed=4))


# ---- rnd ----


def test_the_networks_are_two_layers() -> None:
    parameters_P = random_parameters(3, 2, "target", 0)
    rows_ND = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = parameters_P[:6].view(3, 2).numpy(), parameters_P[8:12].view(2, 2).numpy()
    expected = np.maximum(rows_ND.numpy() @ first + parameters_P[6:8].numpy(), 0) @ second + parameters_P[12:].numpy()
    np.testing.assert_allclose(network(parameters_P, rows_ND, 2).numpy(), expected)


def test_the_predictor_is_trained_as_torch_s_adam_trains_it() -> None:
    state = init_rnd(3, 4)
    rows_ND = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets_NH = network(random_parameters(3, 4, "target", 7), rows_ND, 4)
    slow_P = state.parameters_P.clone().requires_grad_()
    optimiser = torch.optim.Adam([slow_P], lr=0.01)
    for _ in range(6):
        optimiser.zero_grad()
        (network(slow_P, rows_ND, 4) - targets_NH).square().mean().backward()
        optimiser.step()
    first = trained(state, rows_ND, targets_NH, updates=2, lr=0.01)
    both = trained(first, rows_ND, targets_NH, updates=4, lr=0.01)
    torch.testing.assert_close(both.parameters_P, slow_P.detach(), rtol=1e-9, atol=1e-12)


def test_what_came_often_is_predicted_and_what_is_new_is_not() -> None:
    bonus = bonus_of(BonusConfig(kind="rnd", dim=6, rnd={"lr": 0.01, "updates": 20}))
    generator = torch.Generator().manual_seed(5)
    centers_GKD = torch.randn(3, 1, 6, generator=generator, dtype=torch.float64)
    state, errors = bonus.init_state(), []
    for number in range(1, 31):
        features_GKD = centers_GKD + 0.01 * torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
        scores, state = bonus.score(replace(make_step(number), features_GKD=features_GKD), state)
        errors.append(scores.metrics["prediction_error"])
    assert errors[-1] < 0.05 * errors[0]
    scores, _ = bonus.score(replace(make_step(31), features_GKD=-centers_GKD.expand(-1, 4, -1)), state)
    assert scores.metrics["prediction_error"] > 10 * errors[-1]


def test_only_wrong_responses_have_it_and_it_decays() -> None:
    step = make_step()
    found = only_bonus(step, kind="rnd")
    assert torch.equal(found > 0, step.valid_GK & ~step.correct_GK)
    later = only_bonus(replace(step, step=11), kind="rnd")
    torch.testing.assert_close(later, found * 0.99**10)
    assert torch.equal(only_bonus(replace(step, step=11), kind="rnd", rnd={"decay": 1.0}), only_bonus(step, kind="rnd", rnd={"decay": 1.0}))


def test_errors_are_divided_by_their_deviation_so_far() -> None:
    bonus, errors = bonus_of(BonusConfig(kind="rnd", dim=6, rnd={"decay": 1.0})), np.zeros(0)
    state = bonus.init_state()
    for number in (1, 2, 3):
        step = make_step(number)
        scores, state = bonus.score(step, state)
        error_GK = scores.detail["prediction_error"]
        errors = np.concatenate([errors, error_GK[step.valid_GK].numpy()])
        torch.testing.assert_close(scores.bonus_GK, torch.where(step.correct_GK, 0.0, error_GK / errors.std()))
    assert state.responses == len(errors)


def test_rnd_depends_on_its_seed_alone() -> None:
    steps = [make_step(number) for number in (1, 2)]
    bonus = bonus_of(BonusConfig(kind="rnd", dim=6))
    (one, state), (other, again) = bonuses_of(bonus, steps), bonuses_of(bonus_of(BonusConfig(kind="rnd", dim=6)), steps)
    assert all(map(torch.equal, one, other)) and all_equal(state, again)
    reseeded, _ = bonuses_of(bonus, [replace(step, seed=1) for step in steps])
    assert not torch.equal(one[0], reseeded[0])


def test_errors_that_do_not_vary_are_not_divided() -> None:
    assert error_std(init_rnd(2, 2)) == 1.0
    state: RndState = replace(init_rnd(2, 2), responses=3, error_sum=1.2, error_square_sum=3 * 0.4**2)
    assert error_std(state) == 1.0


@pytest.mark.parametrize("kind", ["rnd", "coin_flip", "elliptical", "logdet"])
def test_a_state_of_another_size_is_refused(kind: str) -> None:
    saved = bonus_of(BonusConfig(kind=kind, dim=6))
    _, state = bonuses_of(saved, [make_step()])
    with pytest.raises(ValueError, match=r"D = 6, but bonus\.dim = 7|this run"):
        bonus_of(BonusConfig(kind=kind, dim=7)).from_state_dict(saved.state_dict(state))  # type: ignore[attr-defined]


# ---- surprise ----


def test_surprise_is_the_mean_negative_log_prob_at_most_a_share_of_the_reward() -> None:
    step = replace(make_step(), rewards_GK=torch.tensor([[1.0, -0.5, 0.0, 1.0], [1.0, 1.0, torch.nan, 0.3], [2.0, 0.1, 0.0, 1.0]]))
    found = only_bonus(step, kind="surprise", surprise={"scale": 0.8, "cap": 2.0})
    assert step.logprobs_GKT is not None
    for group in range(3):
        for place in range(4):
            length, reward = int(step.lengths_GK[group, place]), float(step.rewards_GK[group, place])
            mean = -sum(step.logprobs_GKT[group, place, :length].tolist()) / length if length else 0.0
            expected = 0.0 if math.isnan(reward) else min(abs(reward) / 2.0, 0.8 * mean)
            assert found[group, place] == pytest.approx(expected)


def test_without_a_cap_it_is_the_surprise_and_it_decays() -> None:
    step = replace(make_step(5), rewards_GK=torch.ones(3, 4))
    assert step.logprobs_GKT is not None
    surprise_GK = mean_surprise(step.logprobs_GKT, step.lengths_GK)
    torch.testing.assert_close(only_bonus(step, kind="surprise", surprise={"cap": 1e-6, "decay": 0.5}), surprise_GK / 16)
    assert (capped(surprise_GK, step.rewards_GK, scale=1.0, cap=1e9) <= 1e-9).all()


# ---- random ----


def test_noise_depends_on_seed_step_problem_and_place_alone() -> None:
    step = make_step()
    found = only_bonus(step, kind="random", cut_off="keep", gate="always")
    alone = replace(
        make_step(seed=3, groups=1),
        seed=0,
        keys_G=[step.keys_G[2]],
        features_GKD=None,
        rewards_GK=torch.full((1, 4), torch.nan),
        valid_GK=torch.ones(1, 4, dtype=torch.bool),
    )
    assert torch.equal(only_bonus(alone, kind="random", cut_off="keep", gate="always")[0], found[2])
    for changed in (replace(step, seed=1), replace(step, step=2), replace(step, keys_G=["x", "y", "z"])):
        assert not (only_bonus(changed, kind="random", cut_off="keep", gate="always")[step.valid_GK] == found[step.valid_GK]).any()


def test_a_problem_that_comes_twice_in_a_step_gets_other_numbers() -> None:
    found = only_bonus(
        replace(make_step(groups=2), keys_G=["task/a"] * 2, valid_GK=torch.ones(2, 4, dtype=torch.bool)),
        kind="random",
        cut_off="keep",
        gate="always",
    )
    assert not (found[0] == found[1]).any()


def test_noise_is_standard_normal_and_gated_as_the_elliptical_bonus() -> None:
    step = make_step(groups=300, responses=8)
    found = only_bonus(step, kind="random", cut_off="keep", gate="always")[step.valid_GK]
    assert float(found.mean()) == pytest.approx(0.0, abs=0.1) and float(found.std()) == pytest.approx(1.0, abs=0.05)
    for gate in ("group_has_correct", "correct_only"):
        gated = only_bonus(step, kind="random", cut_off="keep", gate=gate)
        assert torch.equal(gated != 0, gate_mask(step.correct_GK, gate) & step.valid_GK)


# ---- responses that were cut off ----


@pytest.mark.parametrize("kind", ["elliptical", "logdet", "cosine"])
def test_a_response_that_was_cut_off_is_the_least_new_of_those_that_ended(kind: str) -> None:
    ended_GK = torch.tensor([[True, False, True, True], [False, True, False, True], [False, False, False, False]])
    step = replace(make_step(), ended_GK=ended_GK)
    kept, least = (only_bonus(step, kind=kind, gate="always", cut_off=cut_off) for cut_off in ("keep", "least"))
    assert least[ended_GK].tolist() == kept[ended_GK].tolist()
    assert least[0, 1] == kept[0, [0, 2]].min()  # the last one of the first group is empty, and no discovery either
    assert least[1, 0] == least[1, 2] == kept[1, [1, 3]].min()
    assert least[2].tolist() == [0.0] * 4, "where none ended, none is newer than another"


def test_going_on_is_worth_nothing_after_normalising_either() -> None:
    ended_GK = torch.ones(3, 4, dtype=torch.bool)
    ended_GK[2, 0] = False
    found = only_bonus(replace(make_step(), ended_GK=ended_GK), gate="always", cut_off="least", normalise="zscore")
    assert found[2, 0] == found[2].min() < 0


def test_where_nothing_is_said_every_response_ended() -> None:
    step = replace(make_step(), ended_GK=None)
    assert torch.equal(only_bonus(step, gate="always", cut_off="least"), only_bonus(step, gate="always", cut_off="keep"))
