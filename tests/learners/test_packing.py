"""Packed tokens must give the same computation as one unpadded row per response. All models here are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.forward import last_hidden_states, load_causal_lm, response_logprobs
from learners.packing import Branch, GroupTokens, PackedTokens, PassCost, micro_batches, pack, prefix_tree
from tests.learners.samples import (
    VOCABULARY,
    assert_equal_gradients,
    gradients,
    group_tokens,
    plain_hidden_states,
    plain_logprobs,
)

ATOL = 1e-9


def draw_groups(lengths: list[tuple[int, list[int]]], seed: int = 0, alphabet: int = VOCABULARY) -> list[GroupTokens]:
    """Return random groups of these (prompt length, response lengths). A small alphabet makes them share more than
    their prompts."""
    rng = np.random.default_rng(seed)
    return [group_tokens(rng.integers(0, alphabet, p), [rng.integers(0, alphabet, t) for t in ts]) for p, ts in lengths]


RAGGED = draw_groups([(5, [4, 1, 9, 0, 3]), (1, [2, 2]), (17, [1, 12, 30])])
ALIKE = [
    *draw_groups([(2, [3, 5, 2, 4, 1, 3]), (3, [6, 4, 4, 5]), (2, [2, 1])], alphabet=2),
    group_tokens([1, 0, 1], [[1, 0], [1, 0], [1]]),
]
LONG = draw_groups([(90, [70, 40, 5]), (3, [150])])  # over several blocks of attention
CASES = pytest.mark.parametrize("groups", [RAGGED, ALIKE, LONG], ids=["ragged", "alike", "long"])


@pytest.fixture
def model(tiny_model: str, exact_norms: None) -> Any:
    return load_causal_lm(tiny_model, dtype="float64")


def responses_of(groups: list[GroupTokens]) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, response) of every flat index."""
    return [(group.prompt_ids.tolist(), ids.tolist()) for group in groups for ids in group.responses]


def by_response(values_N: torch.Tensor, packed: PackedTokens, num_responses: int) -> list[torch.Tensor]:
    return [values_N[packed.response_N == index] for index in range(num_responses)]


@CASES
@torch.no_grad()
def test_hidden_states_equal_those_of_separate_rows(model: Any, groups: list[GroupTokens]) -> None:
    packed = pack(prefix_tree(groups, own_states=True))
    own_NH = last_hidden_states(model, packed)[packed.own_N]
    for found_TH, (prompt, response) in zip(by_response(own_NH, packed, 99), responses_of(groups), strict=False):
        assert len(found_TH) == len(response)
        if response:
            torch.testing.assert_close(found_TH, plain_hidden_states(model, prompt, response), rtol=0.0, atol=ATOL)


@CASES
@pytest.mark.parametrize("own_states", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_log_probs_and_gradients_equal_those_of_separate_rows(
    model: Any, groups: list[GroupTokens], own_states: bool, max_tokens: int
) -> None:
    weights = [torch.linspace(-1.0 - index, 2.0, 200, dtype=torch.float64) for index in range(len(responses_of(groups)))]
    found: dict[int, torch.Tensor] = {}
    for branches in micro_batches(prefix_tree(groups, own_states=own_states), max_tokens=max_tokens):
        packed = pack(branches)
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
        assert logprob_N.dtype == torch.float64
        weight_N = torch.stack([weights[r][t] for r, t in zip(packed.response_N.tolist(), packed.offset_N.tolist(), strict=True)])
        (weight_N * logprob_N).sum().backward()
        found |= {index: part for index, part in enumerate(by_response(logprob_N.detach(), packed, len(weights))) if len(part)}
    packed_gradients = gradients(model)
    model.zero_grad()
    expected = {i: plain_logprobs(model, prompt, response) for i, (prompt, response) in enumerate(responses_of(groups)) if response}
    torch.stack([(weights[index][: len(part)] * part).sum() for index, part in expected.items()]).sum().backward()
    assert found.keys() == expected.keys()
    for index, part in expected.items():
        torch.testing.assert_close(found[index], part.detach(), rtol=0.0, atol=ATOL)
    assert_equal_gradients(packed_gradients, gradients(model), atol=ATOL)


def test_what_responses_have_in_common_is_computed_once() -> None:
    packed = pack(prefix_tree([group_tokens([7, 8], [[1, 2, 5], [3, 6], [1, 4, 6], [1, 2, 5]])], own_states=True))
    assert packed.input_ids_T.tolist() == [7, 8, 1, 2, 5, 4, 6, 3, 6]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 2, 3]
    assert packed.end_T.tolist() == [9, 9, 7, 5, 5, 7, 7, 9, 9]
    assert packed.response_N.tolist() == [0, 0, 0, 3, 3, 3, 2, 2, 2, 1, 1]
    assert packed.offset_N.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert packed.target_N.tolist() == [1, 2, 5, 1, 2, 5, 1, 4, 6, 3, 6]
    assert packed.own_N.tolist() == [2, 3, 4, 2, 3, 4, 2, 5, 6, 7, 8]
    assert packed.predicts_M[packed.state_N].tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 5, 1, 7]
    assert packed.predicts_M.tolist() == [1, 2, 3, 5, 7]


def test_a_last_token_is_not_computed_unless_its_state_is_wanted() -> None:
    packed = pack(prefix_tree([group_tokens([7, 8], [[1, 2], [3]])]))
    assert packed.input_ids_T.tolist() == [7, 8, 1]
    assert packed.target_N.tolist() == [3, 1, 2]
    assert packed.predicts_M[packed.state_N].tolist() == [1, 1, 2]
    assert packed.own_N.tolist() == []


def test_prompts_that_begin_alike_share_their_beginning() -> None:
    packed = pack(prefix_tree([group_tokens([1, 2, 3], [[4, 4]]), group_tokens([1, 2, 9], [[4, 4]])]))
    assert packed.input_ids_T.tolist() == [1, 2, 3, 4, 9, 4]
    assert packed.end_T.tolist() == [6, 6, 4, 4, 6, 6]


IDS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4), st.booleans(), st.integers(1, 30))
def test_every_token_sees_its_own_branch_and_no_distinct_prefix_is_computed_twice(
    groups: list[tuple[list[int], list[list[int]]]], own_states: bool, max_tokens: int
) -> None:
    tokens = [group_tokens(prompt, responses) for prompt, responses in groups]
    expected = [(prompt, response) for prompt, responses in groups for response in responses]
    seen: list[int] = []
    for branches in micro_batches(prefix_tree(tokens, own_states=own_states), max_tokens=max_tokens):
        packed = pack(branches)
        assert packed.num_tokens <= max_tokens or len(branches) == 1
        index_T = torch.arange(packed.num_tokens)
        sees_TT = (index_T <= index_T[:, None]) & (index_T[:, None] < packed.end_T)
        seen_ids = [tuple(packed.input_ids_T[row].tolist()) for row in sees_TT]
        assert len(set(seen_ids)) == packed.num_tokens
        assert packed.position_ids_T.tolist() == [len(ids) - 1 for ids in seen_ids]
        predicts_N = packed.predicts_M[packed.state_N].tolist()
        for n, (response, offset) in enumerate(zip(packed.response_N.tolist(), packed.offset_N.tolist(), strict=True)):
            prompt, ids = expected[response]
            assert seen_ids[predicts_N[n]] == (*prompt, *ids[:offset])
            assert int(packed.target_N[n]) == ids[offset]
            if own_states:
                assert seen_ids[int(packed.own_N[n])] == (*prompt, *ids[: offset + 1])
        seen += [branch.response for branch in branches]
        distinct = {tuple(b.ids_L[:length].tolist()) for b in branches for length in range(1, b.num_computed + 1)}
        assert distinct == set(seen_ids)
    assert sorted(seen) == list(range(len(expected)))


def test_an_empty_response_is_left_out_but_keeps_its_index() -> None:
    branches = prefix_tree([group_tokens([1], [[], [5], []]), group_tokens([2], [[], []]), group_tokens([3], [[6], []])])
    assert [(branch.response, branch.ids_L.tolist()) for branch in branches] == [(1, [1, 5]), (5, [3, 6])]


def test_nothing_to_pack_gives_no_micro_batch() -> None:
    assert prefix_tree([group_tokens([1, 2], [[], []])]) == []
    assert micro_batches([], max_tokens=8) == []


# --- micro-batches ---------------------------------------------------------------------------------------------------


def branch_of(length: int, first: int) -> Branch:
    """Return a branch of `length` computed tokens. It shares none with a branch that has another `first`."""
    return Branch(ids_L=np.full(length + 1, first, np.int64), prompt_length=1, num_computed=length, response=first)


def lengths_of(batches: list[list[Branch]]) -> list[list[int]]:
    return [[branch.num_computed for branch in batch] for batch in batches]


def test_micro_batches_are_as_few_as_the_token_budget_allows() -> None:
    branches = [branch_of(length, first) for first, length in enumerate((8, 2, 4, 4, 2, 30, 1))]
    assert lengths_of(micro_batches(branches, max_tokens=20)) == [[8, 2, 4, 4, 2], [30], [1]]
    assert lengths_of(micro_batches(branches, max_tokens=1)) == [[8], [2], [4], [4], [2], [30], [1]]


def test_micro_batches_are_even_in_cost_not_only_within_the_budget() -> None:
    branches = [branch_of(5, first) for first in range(6)]
    assert lengths_of(micro_batches(branches, max_tokens=25)) == [[5] * 3, [5] * 3]  # not 5 and 1
    long_last = [branch_of(length, first) for first, length in enumerate((4, 4, 4, 4, 16))]
    quadratic = PassCost(token=0.0, pair=1.0)
    assert lengths_of(micro_batches(long_last, max_tokens=20, cost=quadratic)) == [[4, 4, 4, 4], [16]]


def test_what_is_shared_counts_once_and_again_in_another_micro_batch() -> None:
    shared = [Branch(ids_L=np.array([1] * 10 + [2, 3, k]), prompt_length=10, num_computed=13, response=k) for k in range(4)]
    assert lengths_of(micro_batches(shared, max_tokens=16)) == [[13] * 4]
    assert lengths_of(micro_batches(shared, max_tokens=14)) == [[13] * 2, [13] * 2]


def test_cost_counts_tokens_pairs_and_logits_of_what_is_new() -> None:
    branch = Branch(ids_L=np.arange(10), prompt_length=4, num_computed=9, response=0)
    assert PassCost(token=1.0).of_branch(branch, 0) == 9
    assert PassCost(token=0.0, pair=1.0).of_branch(branch, 0) == 45
    assert PassCost(token=0.0, pair=1.0).of_branch(branch, 3) == 45 - 6
    assert PassCost(token=0.0, logits=1.0).of_branch(branch, 3) == 6  # positions 3 to 8
    assert PassCost(token=0.0, logits=1.0).of_branch(branch, 5) == 4


def test_the_cost_of_a_model_is_that_of_its_matrices(model: Any) -> None:
    cost = PassCost.of(model)
    assert cost.logits == 2 * 32 * VOCABULARY
    assert cost.pair == 4 * 2 * 32
    assert cost.token == 2 * (2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 2 * 32) + 32)
