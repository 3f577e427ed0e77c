import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bonus.elliptical import centered_leverage
from bonus.prompt_memory import (
    PromptMemory,
    absorb,
    around_prompts,
    check_valid,
    from_state_dict,
    init_memory,
    merge,
    nbytes,
    state_dict,
)

property_test = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
NO_LIMIT = 2**40


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everyone(features_GKD: Tensor) -> Tensor:
    return torch.ones(features_GKD.shape[:2], dtype=torch.bool)


def visit(memory: PromptMemory, keys: list[str], features_GKD: Tensor, max_bytes: int = NO_LIMIT) -> PromptMemory:
    return absorb(memory, keys, features_GKD, everyone(features_GKD), max_bytes=max_bytes)


def score(memory: PromptMemory, keys: list[str], features_GKD: Tensor, *, ridge: float) -> Tensor:
    centered_GKD, prior_GDD, _ = around_prompts(memory, keys, features_GKD, everyone(features_GKD))
    return centered_leverage(centered_GKD, ridge=ridge, prior=prior_GDD)


def assert_same(actual: Tensor, expected: Tensor, *, rtol: float = 1e-9, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def assert_same_memory(actual: PromptMemory, expected: PromptMemory, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert set(actual.stats) == set(expected.stats)
    for key, stats in expected.stats.items():
        assert actual.stats[key].count == stats.count
        assert_same(actual.stats[key].mean_D, stats.mean_D, rtol=rtol, atol=atol)
        assert_same(actual.stats[key].scatter_DD, stats.scatter_DD, rtol=rtol, atol=atol)


# -- what is remembered, and what it scores


def test_each_visit_is_absorbed_before_it_is_scored(vectors: Mapping[str, np.ndarray]) -> None:
    memory = init_memory(vectors["prompt_features_SKD"].shape[-1])
    for features_KD, expected_K in zip(vectors["prompt_features_SKD"], vectors["prompt_leverage_SK"], strict=True):
        features_GKD = torch.from_numpy(features_KD)[None]
        memory = visit(memory, ["math/7"], features_GKD)
        leverage_GK = score(memory, ["math/7"], features_GKD, ridge=float(vectors["prompt_ridge"]))
        assert_same(leverage_GK[0], torch.from_numpy(expected_K))


@property_test
@given(seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.sampled_from([1e-2, 1.0]))
def test_a_prompt_is_remembered_by_the_moments_of_all_its_responses(seed: int, sizes: list[int], dim: int, ridge: float) -> None:
    visits = [draw(seed + index, 1, size, dim) + 3.0 for index, size in enumerate(sizes)]
    memory = init_memory(dim)
    for features_GKD in visits:
        memory = visit(memory, ["p"], features_GKD)
    all_ND = torch.cat(visits, dim=1)[0]
    mean_D, raw_moment_DD = all_ND.mean(0), all_ND.mT @ all_ND
    stats = memory.stats["p"]
    assert stats.count == sum(sizes)
    assert_same(stats.mean_D, mean_D, rtol=1e-12)
    assert_same(stats.scatter_DD, raw_moment_DD - stats.count * torch.outer(mean_D, mean_D), atol=1e-11)
    inverse_DD = torch.linalg.inv(ridge * torch.eye(dim, dtype=torch.float64) + stats.scatter_DD)
    expected_K = torch.einsum("kd,de,ke->k", visits[-1][0] - mean_D, inverse_DD, visits[-1][0] - mean_D)
    assert_same(score(memory, ["p"], visits[-1], ridge=ridge)[0], expected_K, rtol=1e-8, atol=1e-12)


@property_test
@given(seeds, st.integers(1, 4), st.integers(1, 6), st.sampled_from([1e-6, 1e-2, 1.0]))
def test_leverages_lie_between_zero_and_one_minus_one_over_the_responses_seen(seed: int, num: int, dim: int, ridge: float) -> None:
    memory, features_GKD = visit(init_memory(dim), ["p"], draw(seed, 1, 3, dim)), draw(seed + 1, 1, num, dim)
    memory = visit(memory, ["p"], features_GKD)
    leverage_GK = score(memory, ["p"], features_GKD, ridge=ridge)
    assert (leverage_GK >= 0).all()
    assert (leverage_GK <= 1 - 1 / (3 + num) + 1e-9).all()


def test_the_same_responses_earn_less_at_every_visit_and_new_ones_more() -> None:
    features_GKD, memory, scores = draw(0, 1, 4, 6), init_memory(6), []
    for _ in range(4):
        memory = visit(memory, ["p"], features_GKD)
        scores.append(score(memory, ["p"], features_GKD, ridge=0.1))
    assert all((later < earlier).all() for earlier, later in itertools.pairwise(scores))
    new_GKD = draw(1, 1, 4, 6)
    assert score(visit(memory, ["p"], new_GKD), ["p"], new_GKD, ridge=0.1).mean() > scores[-1].mean()


def test_prompts_do_not_see_each_other() -> None:
    features_GKD = draw(0, 2, 4, 6)
    together = visit(init_memory(6), ["a", "b"], features_GKD)
    alone = visit(init_memory(6), ["b"], features_GKD[1:])
    assert torch.equal(score(together, ["b"], features_GKD[1:], ridge=0.1), score(alone, ["b"], features_GKD[1:], ridge=0.1))


def test_two_groups_of_one_prompt_are_one_visit() -> None:
    features_GKD = draw(0, 2, 4, 6)
    memory = visit(init_memory(6), ["p", "p"], features_GKD)
    assert_same_memory(memory, visit(init_memory(6), ["p"], features_GKD.reshape(1, 8, 6)), rtol=1e-12, atol=1e-12)
    both_GK = score(memory, ["p", "p"], features_GKD, ridge=0.1)
    assert_same(both_GK.flatten(), score(memory, ["p"], features_GKD.reshape(1, 8, 6), ridge=0.1)[0])


def test_empty_responses_are_neither_absorbed_nor_scored() -> None:
    features_GKD, valid_GK = draw(0, 3, 4, 6), torch.ones(3, 4, dtype=torch.bool)
    valid_GK[0, 1] = valid_GK[2] = False
    features_GKD[~valid_GK] = math.nan
    memory = absorb(init_memory(6), ["a", "b", "c"], features_GKD, valid_GK, max_bytes=NO_LIMIT)
    assert {key: stats.count for key, stats in memory.stats.items()} == {"a": 3, "b": 4}
    assert_same_memory(memory, visit(visit(init_memory(6), ["a"], features_GKD[:1, [0, 2, 3]]), ["b"], features_GKD[1:2]), atol=1e-12)
    centered_GKD, prior_GDD, seen_G = around_prompts(memory, ["a", "b", "c"], features_GKD, valid_GK)
    assert not centered_GKD[~valid_GK].any()
    assert seen_G.tolist() == [3, 4, 0]
    assert not centered_leverage(centered_GKD, ridge=1.0, prior=prior_GDD)[~valid_GK].any()


def test_identical_responses_earn_exactly_nothing_however_often_they_come() -> None:
    features_GKD, memory = 1e3 * draw(0, 1, 1, 6).expand(1, 4, 6), init_memory(6)
    for _ in range(5):
        memory = visit(memory, ["p"], features_GKD)
        assert not score(memory, ["p"], features_GKD, ridge=1e-12).any()


def test_absorbing_leaves_the_earlier_memory_as_it_was() -> None:
    memory = visit(init_memory(6), ["a", "b"], draw(0, 2, 4, 6))
    before = state_dict(memory)
    visit(memory, ["a", "c"], draw(1, 2, 4, 6), max_bytes=1)
    after = state_dict(memory)
    assert before["keys"] == after["keys"] == ["a", "b"]
    assert torch.equal(before["scatter_PDD"], after["scatter_PDD"])  # type: ignore[arg-type]


# -- shards


@property_test
@given(seeds, st.lists(st.sampled_from("abc"), min_size=1, max_size=5), st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
def test_merged_shards_equal_one_batch(seed: int, keys_a: list[str], keys_b: list[str]) -> None:
    a_GKD, b_GKD = draw(seed, len(keys_a), 3, 4), draw(seed + 1, len(keys_b), 3, 4)
    merged = merge(visit(init_memory(4), keys_a, a_GKD), visit(init_memory(4), keys_b, b_GKD))
    assert_same_memory(merged, visit(init_memory(4), keys_a + keys_b, torch.cat([a_GKD, b_GKD])), rtol=1e-10, atol=1e-10)
    assert_same_memory(merged, visit(visit(init_memory(4), keys_a, a_GKD), keys_b, b_GKD), rtol=1e-10, atol=1e-10)


def test_merging_adds_evictions_and_takes_the_second_as_the_more_recent() -> None:
    a = dataclasses.replace(visit(init_memory(4), ["x", "y"], draw(0, 2, 3, 4)), num_evicted=2)
    b = dataclasses.replace(visit(init_memory(4), ["z", "x"], draw(1, 2, 3, 4)), num_evicted=3)
    assert list(merge(a, b).stats) == ["y", "z", "x"]
    assert merge(a, b).num_evicted == 5


# -- the bound


def room_for(num_prompts: int, dim: int) -> int:
    return num_prompts * nbytes(visit(init_memory(dim), ["x"], draw(0, 1, 2, dim)))


def test_the_least_recently_used_prompts_are_evicted_and_counted() -> None:
    memory, room = init_memory(4), room_for(3, 4)
    for key in "abc":
        memory = visit(memory, [key], draw(0, 1, 2, 4), room)
    memory = visit(memory, ["a"], draw(1, 1, 2, 4), room)
    memory = visit(memory, ["d"], draw(2, 1, 2, 4), room)
    assert (list(memory.stats), memory.num_evicted) == (["c", "a", "d"], 1)
    memory = visit(memory, ["e", "f"], draw(3, 2, 2, 4), room)
    assert (list(memory.stats), memory.num_evicted) == (["d", "e", "f"], 3)
    assert nbytes(memory) == room


def test_a_prompt_of_the_step_being_scored_is_never_evicted() -> None:
    memory = visit(init_memory(4), ["a", "b"], draw(0, 2, 2, 4))
    memory = visit(memory, ["b", "c", "d"], draw(1, 3, 2, 4), room_for(1, 4))
    assert (list(memory.stats), memory.num_evicted) == (["b", "c", "d"], 1)
    assert memory.stats["b"].count == 4
    memory = visit(memory, ["e"], draw(2, 1, 2, 4), room_for(1, 4))
    assert (list(memory.stats), memory.num_evicted) == (["e"], 4)


def test_a_visit_without_any_response_keeps_what_is_known_of_the_prompt() -> None:
    memory = visit(init_memory(4), ["a", "b"], draw(0, 2, 2, 4))
    nobody_GK = torch.zeros(1, 2, dtype=torch.bool)
    memory = absorb(memory, ["a"], draw(1, 1, 2, 4), nobody_GK, max_bytes=room_for(1, 4))
    assert (list(memory.stats), memory.stats["a"].count) == (["a"], 2)


def test_an_evicted_prompt_starts_anew() -> None:
    memory = visit(visit(init_memory(4), ["a"], draw(0, 1, 2, 4)), ["b"], draw(1, 1, 2, 4), room_for(1, 4))
    memory = visit(memory, ["a"], draw(2, 1, 2, 4))
    assert_same_memory(memory, visit(visit(init_memory(4), ["b"], draw(1, 1, 2, 4)), ["a"], draw(2, 1, 2, 4)))


def test_bytes_are_those_of_the_saved_tensors_and_keys() -> None:
    memory = visit(init_memory(5), ["gsm8k/12", "naïve"], draw(0, 2, 3, 5))
    saved = state_dict(memory)
    tensors = sum(value.numel() * value.element_size() for value in saved.values() if isinstance(value, Tensor))
    assert nbytes(memory) == tensors + len(b"gsm8k/12") + len("naïve".encode())
    assert nbytes(init_memory(5)) == 0


def test_each_prompt_owns_its_memory_and_not_its_whole_step() -> None:
    memory = visit(init_memory(4), ["a", "b"], draw(0, 2, 3, 4))
    for stats in memory.stats.values():
        assert stats.scatter_DD.untyped_storage().nbytes() == 4 * 4 * 8
        assert stats.mean_D.untyped_storage().nbytes() == 4 * 8


# -- checkpoints


@property_test
@given(seeds, st.integers(0, 4))
def test_a_restored_memory_continues_as_the_saved_one(seed: int, num_steps: int) -> None:
    memory, room = init_memory(4), room_for(3, 4)
    for step in range(num_steps):
        memory = visit(memory, [f"{step}", f"{step // 2}"], draw(seed + step, 2, 3, 4), room)
    restored = from_state_dict(state_dict(memory))
    for step in range(3):
        memory, restored = (visit(each, [f"{step}", "x"], draw(seed - step, 2, 3, 4), room) for each in (memory, restored))
        assert_same_memory(restored, memory)
        assert (list(restored.stats), restored.num_evicted) == (list(memory.stats), memory.num_evicted)


def test_a_checkpoint_that_does_not_fit_together_is_refused() -> None:
    saved = state_dict(visit(init_memory(3), ["a", "b"], draw(0, 2, 2, 3)))
    for change, error, message in [
        ({"keys": ["a"]}, ValueError, "1 keys, 1 of them different, do not fit 2 counts"),
        ({"keys": ["a", "a"]}, ValueError, "2 keys, 1 of them different"),
        ({"dim": 4}, ValueError, "prompt 'a' has shapes"),
        ({"mean": 1}, ValueError, r"unknown \['mean'\]"),
        ({"count_P": [2, 2]}, TypeError, "must be tensors"),
        ({"num_evicted": "1"}, TypeError, "must be integers"),
        ({"num_evicted": -1}, ValueError, "num_evicted=-1"),
    ]:
        with pytest.raises(error, match=message):
            from_state_dict(saved | change)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"missing \['keys'\]"):
        from_state_dict({name: value for name, value in saved.items() if name != "keys"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "has 0 responses"),
        ({"mean_D": torch.zeros(3)}, "not float64"),
        ({"mean_D": torch.full((3,), math.inf).double()}, "not finite"),
        ({"scatter_DD": torch.zeros(2, 2).double()}, "the memory D=3"),
        ({"scatter_DD": torch.triu(torch.ones(3, 3)).double()}, "not symmetric"),
    ],
)
def test_a_memory_that_cannot_be_is_refused_naming_the_prompt(change: dict, message: str) -> None:
    memory = visit(init_memory(3), ["a", "b"], draw(0, 2, 2, 3))
    broken = dict(memory.stats) | {"b": dataclasses.replace(memory.stats["b"], **change)}
    with pytest.raises(ValueError, match=f"prompt 'b'.*{message}"):
        check_valid(dataclasses.replace(memory, stats=broken))


def test_a_step_that_does_not_fit_is_refused() -> None:
    memory, features_GKD = init_memory(3), draw(0, 2, 2, 3)
    with pytest.raises(ValueError, match="1 keys for 2 groups"):
        visit(memory, ["a"], features_GKD)
    with pytest.raises(ValueError, match="the memory has D=3"):
        visit(memory, ["a"], draw(0, 1, 2, 4))
    with pytest.raises(ValueError, match="D=3 and D=4"):
        merge(memory, init_memory(4))
    features_GKD[1, 0, 2] = math.nan
    with pytest.raises(ValueError, match="group 1, response 0"):
        visit(memory, ["a", "b"], features_GKD)
