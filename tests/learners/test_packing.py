"""Packed rows must be the same computation as one unpadded row a response. All models here are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learners.forward import last_hidden_states, load_causal_lm, response_logprobs
from learners.packing import GroupTokens, Row, build_rows, micro_batches, pack
from tests.learners.samples import (
    VOCABULARY,
    assert_equal_gradients,
    gradients,
    group_tokens,
    plain_hidden_states,
    plain_logprobs,
)

ATOL = 1e-9


def draw_groups(lengths: list[tuple[int, list[int]]], seed: int = 0) -> list[GroupTokens]:
    """Random groups with these (prompt length, response lengths)."""
    rng = np.random.default_rng(seed)
    return [group_tokens(rng.integers(0, VOCABULARY, p), [rng.integers(0, VOCABULARY, t) for t in ts]) for p, ts in lengths]


GROUPS = draw_groups([(5, [4, 1, 9, 0, 3]), (1, [2, 2]), (17, [1, 12, 30])])
ROW_TOKENS = (1, 20, 512)  # every response a row of its own; some shared; all of a group in one


@pytest.fixture
def model(tiny_model: str, exact_norms: None) -> Any:
    return load_causal_lm(tiny_model, dtype="float64")


def responses_of(groups: list[GroupTokens]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of every flat index."""
    return [(group.prompt_ids.tolist(), ids.tolist()) for group in groups for ids in group.responses]


@pytest.mark.parametrize("row_tokens", ROW_TOKENS)
@torch.no_grad()
def test_hidden_states_of_packed_rows_equal_those_of_separate_rows(model: Any, row_tokens: int) -> None:
    packed = pack(build_rows(GROUPS, row_tokens=row_tokens))
    own_NH = last_hidden_states(model, packed)[packed.row_N, packed.own_N]
    for index, (prompt, response) in enumerate(responses_of(GROUPS)):
        found_TH = own_NH[packed.response_N == index]
        assert len(found_TH) == len(response)
        if response:
            torch.testing.assert_close(found_TH, plain_hidden_states(model, prompt, response), rtol=0.0, atol=ATOL)


@pytest.mark.parametrize("row_tokens", ROW_TOKENS)
@torch.no_grad()
def test_log_probs_of_packed_rows_equal_those_of_separate_rows(model: Any, row_tokens: int) -> None:
    packed = pack(build_rows(GROUPS, row_tokens=row_tokens))
    logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
    assert logprob_N.dtype == torch.float64
    expected = torch.cat([plain_logprobs(model, prompt, response) for prompt, response in responses_of(GROUPS) if response])
    torch.testing.assert_close(logprob_N, expected, rtol=0.0, atol=ATOL)


@pytest.mark.parametrize("row_tokens", ROW_TOKENS)
def test_gradients_of_packed_rows_equal_those_of_separate_rows(model: Any, row_tokens: int) -> None:
    packed = pack(build_rows(GROUPS, row_tokens=row_tokens))
    weight_N = torch.linspace(-1.0, 2.0, len(packed.target_N), dtype=torch.float64)
    logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
    (weight_N * logprob_N).sum().backward()
    found = gradients(model)
    model.zero_grad()
    separate = torch.cat([plain_logprobs(model, prompt, response) for prompt, response in responses_of(GROUPS) if response])
    (weight_N * separate).sum().backward()
    assert_equal_gradients(found, gradients(model), atol=ATOL)


def test_what_pads_a_row_changes_nothing(model: Any) -> None:
    rows = build_rows(GROUPS)
    with torch.no_grad():
        first, _ = response_logprobs(model, pack(rows, pad_id=0), temperature=1.0)
        second, _ = response_logprobs(model, pack(rows, pad_id=VOCABULARY - 1), temperature=1.0)
    assert pack(rows).num_tokens > sum(row.length for row in rows)
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0)


def test_a_token_sees_the_prompt_and_its_own_response_only() -> None:
    packed = pack(build_rows([group_tokens([7, 8], [[1, 2], [3]]), group_tokens([9], [[4]])]))
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    padded = [  # a padding position sees itself alone
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert packed.attention_mask()[:, 0].int().tolist() == [expected, padded]


def test_positions_restart_after_the_prompt_for_every_response() -> None:
    packed = pack(build_rows([group_tokens([7, 8, 9], [[1, 2], [3], [4, 5, 6]])]))
    assert packed.input_ids_BL.tolist() == [[7, 8, 9, 1, 2, 3, 4, 5, 6]]
    assert packed.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5]]
    assert packed.target_N.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.predicts_N.tolist() == [2, 3, 2, 2, 6, 7]
    assert packed.own_N.tolist() == [3, 4, 5, 6, 7, 8]
    assert packed.response_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.offset_N.tolist() == [0, 1, 0, 0, 1, 2]


def test_responses_share_a_row_until_row_tokens_is_reached() -> None:
    group = draw_groups([(10, [5, 5, 5, 1, 40, 2])])
    rows = build_rows(group, row_tokens=20)
    assert [[index for index, _ in row.responses] for row in rows] == [[0, 1], [2, 3], [4], [5]]
    assert [row.length for row in rows] == [20, 16, 50, 12]  # one response may be longer than a row by itself


def test_an_empty_response_has_no_row_but_keeps_its_index() -> None:
    rows = build_rows([group_tokens([1], [[], [5], []]), group_tokens([2], [[], []]), group_tokens([3], [[6], []])])
    assert [[(index, ids.tolist()) for index, ids in row.responses] for row in rows] == [[(1, [5])], [(5, [6])]]


def row_of(length: int) -> Row:
    return Row(prompt_ids=np.zeros(1, np.int64), responses=((0, np.zeros(length - 1, np.int64)),))


@pytest.mark.parametrize("max_tokens", [1, 30, 64, 10_000])
def test_micro_batches_keep_every_row_and_stay_within_the_budget(max_tokens: int) -> None:
    rows = [row_of(length) for length in (9, 30, 2, 9, 17, 31, 4, 2)]
    batches = list(micro_batches(rows, max_tokens=max_tokens))
    assert sorted(map(id, (row for batch in batches for row in batch))) == sorted(map(id, rows))
    for batch in batches:
        assert pack(batch).num_tokens <= max_tokens or len(batch) == 1


def test_micro_batches_hold_as_much_as_fits() -> None:
    batches = list(micro_batches([row_of(length) for length in (8, 2, 4, 4, 2)], max_tokens=16))
    assert [[row.length for row in batch] for batch in batches] == [[2, 2, 4, 4], [8]]


def test_nothing_to_pack_gives_no_micro_batch() -> None:
    assert build_rows([group_tokens([1, 2], [[], []])]) == []
    assert list(micro_batches([], max_tokens=8)) == []
