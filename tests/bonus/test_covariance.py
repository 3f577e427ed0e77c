import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bonus.covariance import (
    RIDGE_FLOOR,
    CovarianceState,
    absorb_energy,
    auto_ridge,
    check_valid,
    from_state_dict,
    init_state,
    merge,
    state_dict,
    update,
)


def draw(seed: int, *shape: int) -> Tensor:
    values_GKD = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values_GKD - values_GKD.mean(1, keepdim=True)


def all_valid(centered_GKD: Tensor) -> Tensor:
    return torch.ones(centered_GKD.shape[:2], dtype=torch.bool)


def absorb(state: CovarianceState, centered_GKD: Tensor, forgetting: float = 1.0) -> CovarianceState:
    return update(state, centered_GKD, all_valid(centered_GKD), forgetting=forgetting)


def assert_same_state(actual: CovarianceState, expected: CovarianceState, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert state_dict(actual).keys() == state_dict(expected).keys()
    for name, value in state_dict(expected).items():
        torch.testing.assert_close(torch.as_tensor(state_dict(actual)[name]), torch.as_tensor(value), rtol=rtol, atol=atol, msg=name)


def test_a_step_is_added_to_a_past_that_fades() -> None:
    first_GKD, second_GKD = draw(0, 2, 3, 4), draw(1, 5, 3, 4)
    state = absorb(absorb(init_state(4), first_GKD, 0.9), second_GKD, 0.9)
    outer_first_DD, outer_second_DD = (torch.einsum("gkd,gke->de", x, x) for x in (first_GKD, second_GKD))
    torch.testing.assert_close(state.second_moment_DD, 0.9 * outer_first_DD + outer_second_DD, rtol=1e-12, atol=1e-12)
    assert (state.steps, state.groups) == (2, 7)
    assert state.energy_sum == pytest.approx(0.9 * outer_first_DD.trace().item() + outer_second_DD.trace().item())
    assert state.energy_rows == pytest.approx(0.9 * 6 + 15)


def test_absorbing_leaves_the_earlier_state_as_it_was() -> None:
    state = init_state(4)
    absorb(state, draw(0, 2, 3, 4))
    assert_same_state(state, init_state(4))


def test_energy_alone_advances_everything_but_the_second_moment() -> None:
    centered_GKD = draw(0, 2, 3, 4)
    state = absorb_energy(init_state(4), centered_GKD, all_valid(centered_GKD), forgetting=0.5)
    assert_same_state(state, dataclasses.replace(absorb(init_state(4), centered_GKD), second_moment_DD=torch.zeros(4, 4).double()))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_merged_shards_equal_one_batch_when_nothing_is_forgotten(seed: int, groups_a: int, groups_b: int, dim: int) -> None:
    a_GKD, b_GKD = draw(seed, groups_a, 3, dim), draw(seed + 1, groups_b, 3, dim)
    merged = merge(absorb(init_state(dim), a_GKD), absorb(init_state(dim), b_GKD))
    assert_same_state(merged, absorb(absorb(init_state(dim), a_GKD), b_GKD), rtol=1e-12, atol=1e-12)
    batch = absorb(init_state(dim), torch.cat([a_GKD, b_GKD]))
    assert_same_state(merged, dataclasses.replace(batch, steps=2), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 4), st.floats(0.1, 1.0))
def test_a_restored_state_continues_as_the_saved_one(seed: int, num_steps: int, forgetting: float) -> None:
    state = init_state(5)
    for step in range(num_steps):
        state = absorb(state, draw(seed + step, 2, 3, 5), forgetting)
    restored = from_state_dict(state_dict(state))
    for step in range(3):
        state, restored = (absorb(each, draw(seed - step, 2, 3, 5), forgetting) for each in (state, restored))
        assert_same_state(restored, state)
        assert auto_ridge(restored) == auto_ridge(state)


def test_a_saved_state_holds_one_tensor_of_its_own_and_numbers() -> None:
    state = absorb(init_state(3), draw(0, 2, 3, 3))
    saved = state_dict(state)
    assert [name for name, value in saved.items() if not isinstance(value, int | float)] == ["second_moment_DD"]
    saved["second_moment_DD"].zero_()  # type: ignore[union-attr]
    assert state.second_moment_DD.any()


def test_the_automatic_ridge_is_the_mean_energy_of_the_centered_rows() -> None:
    centered_GKD = draw(3, 4, 5, 6)
    assert auto_ridge(absorb(init_state(6), centered_GKD)) == pytest.approx(centered_GKD.square().sum(2).mean().item())


def test_rows_that_cannot_vary_do_not_lower_the_automatic_ridge() -> None:
    valid_GK = torch.tensor([[True, True, True, False], [True, False, False, False]])
    centered_GKD = torch.zeros(2, 4, 2, dtype=torch.float64)
    centered_GKD[0, 0, 0], centered_GKD[0, 1, 0] = 3.0, -3.0
    assert auto_ridge(update(init_state(2), centered_GKD, valid_GK, forgetting=1.0)) == pytest.approx(18 / 3)


def test_the_automatic_ridge_never_reaches_zero() -> None:
    assert auto_ridge(init_state(3)) == RIDGE_FLOOR
    assert auto_ridge(absorb(init_state(3), torch.zeros(2, 4, 3, dtype=torch.float64))) == RIDGE_FLOOR


def test_states_and_features_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="D=3 and D=4"):
        merge(init_state(3), init_state(4))
    with pytest.raises(ValueError, match="D=5"):
        absorb(init_state(3), draw(0, 2, 3, 5))


@pytest.mark.parametrize("forgetting", [0.0, 1.5, math.nan])
def test_a_forgetting_factor_outside_its_range_is_refused(forgetting: float) -> None:
    with pytest.raises(ValueError, match="forgetting"):
        absorb(init_state(3), draw(0, 2, 3, 3), forgetting)


def test_a_checkpoint_with_missing_or_unknown_keys_is_refused() -> None:
    saved = state_dict(init_state(3))
    with pytest.raises(ValueError, match=r"missing \['steps'\]"):
        from_state_dict({name: value for name, value in saved.items() if name != "steps"})
    with pytest.raises(ValueError, match=r"unknown \['mean'\]"):
        from_state_dict(saved | {"mean": 0.0})
    with pytest.raises(TypeError, match="must be a tensor"):
        from_state_dict(saved | {"second_moment_DD": 0.0})


@pytest.mark.parametrize(
    "change",
    [
        {"second_moment_DD": torch.zeros(2, 3).double()},
        {"second_moment_DD": torch.zeros(3, 3)},
        {"second_moment_DD": torch.full((3, 3), math.nan).double()},
        {"second_moment_DD": torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double()},
        {"energy_sum": -1.0},
        {"energy_rows": math.inf},
    ],
)
def test_a_state_that_cannot_be_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        check_valid(dataclasses.replace(init_state(3), **change))
