from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.pooled_states import PooledStates

HIDDEN = 3


def state(*values: float) -> Tensor:
    return torch.tensor([values])


def taken(pooled: PooledStates, key: str) -> list[float]:
    mean_H = pooled.take(key)
    assert mean_H is not None and mean_H.dtype == np.float32 and mean_H.shape == (HIDDEN,)
    return mean_H.tolist()


def test_the_first_state_is_the_prompt_s_and_is_left_out_of_the_mean() -> None:
    pooled = PooledStates()
    for values in ((100.0, 100.0, 100.0), (1.0, 2.0, 3.0), (3.0, 6.0, -3.0), (5.0, 4.0, 0.0)):
        pooled.add(["a"], state(*values))
    assert taken(pooled, "a") == [3.0, 4.0, 0.0]


def test_a_response_of_one_token_has_the_state_it_was_sampled_from() -> None:
    pooled = PooledStates()
    pooled.add(["a"], state(1.0, 2.0, 3.0))
    assert taken(pooled, "a") == [1.0, 2.0, 3.0]


def test_responses_are_kept_apart_however_they_come_and_go() -> None:
    """Between the states of one response, others join, leave and change their order."""
    pooled = PooledStates()
    pooled.add(["a", "b"], torch.tensor([[9.0, 9.0, 9.0], [8.0, 8.0, 8.0]]))
    pooled.add(["c", "b", "a"], torch.tensor([[7.0, 7.0, 7.0], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    pooled.add(["a"], state(3.0, 3.0, 3.0))
    pooled.add(["b", "c"], torch.tensor([[4.0, 2.0, 0.0], [5.0, 6.0, 7.0]]))
    assert len(pooled) == 3
    assert taken(pooled, "b") == [3.0, 1.0, 0.0]
    pooled.add(["c", "a"], torch.tensor([[7.0, 8.0, 9.0], [5.0, 5.0, 5.0]]))
    assert taken(pooled, "a") == [3.0, 3.0, 3.0]
    assert taken(pooled, "c") == [6.0, 7.0, 8.0]
    assert len(pooled) == 0


def test_what_is_taken_is_forgotten_and_its_slot_serves_another() -> None:
    """Every second response has the key of the last but one."""
    pooled = PooledStates()
    for number in range(200):
        key, value = f"r{number % 2}", float(number + 1)
        for scale in (1.0, 2.0, 4.0):
            pooled.add([key], state(value * scale, 0.0, 0.0))
        assert taken(pooled, key) == [3.0 * value, 0.0, 0.0]
        assert pooled.take(key) is None
    assert pooled._sum_SH is not None and len(pooled._sum_SH) == 64  # one slot was enough, and slots come in blocks of 64


def test_slots_grow_with_the_responses_under_way_and_keep_what_they_hold() -> None:
    """Half of the responses begin, then all continue together: many more than there are slots at first."""
    pooled = PooledStates()
    keys = [f"r{n}" for n in range(300)]
    rng = torch.Generator().manual_seed(0)
    states_TNH = torch.randn(4, 300, HIDDEN, generator=rng)
    pooled.add(keys[:40], states_TNH[0, :40])
    pooled.add(keys[:40], states_TNH[1, :40])
    pooled.add(keys[40:], states_TNH[0, 40:])
    pooled.add(keys[40:], states_TNH[1, 40:])
    for states_NH in states_TNH[2:]:
        pooled.add(keys, states_NH)
    for n in reversed(range(300)):
        np.testing.assert_allclose(taken(pooled, keys[n]), states_TNH[1:, n].mean(0).numpy(), rtol=0.0, atol=1e-6)
    assert len(pooled) == 0


def test_a_response_without_a_token_has_no_state() -> None:
    pooled = PooledStates()
    assert pooled.take("a") is None
    pooled.add(["a"], state(1.0, 2.0, 3.0))
    assert pooled.take("b") is None
    assert len(pooled) == 1


def test_nothing_to_add_is_nothing() -> None:
    pooled = PooledStates()
    pooled.add([], torch.zeros(0, HIDDEN))
    assert len(pooled) == 0


def test_states_and_keys_of_different_numbers_are_refused_and_change_nothing() -> None:
    pooled = PooledStates()
    with pytest.raises(ValueError, match="2 hidden states for 1 sampled tokens"):
        pooled.add(["a"], torch.zeros(2, HIDDEN))
    assert len(pooled) == 0


def test_low_precision_states_are_summed_in_float32() -> None:
    """A running sum in bfloat16 would stay at 256."""
    pooled = PooledStates()
    for _ in range(1001):
        pooled.add(["a"], torch.ones(1, HIDDEN, dtype=torch.bfloat16))
    assert taken(pooled, "a") == [1.0, 1.0, 1.0]


def test_what_was_taken_does_not_change_with_what_comes_later() -> None:
    pooled = PooledStates()
    pooled.add(["a"], state(1.0, 2.0, 3.0))
    mean_H = pooled.take("a")
    pooled.add(["b"], state(7.0, 7.0, 7.0))
    assert mean_H is not None and mean_H.tolist() == [1.0, 2.0, 3.0]
