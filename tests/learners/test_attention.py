from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.attention import KINDS, AttentionLayout, _attention, implementation, layout_of, make_blocks
from learners.forward import load_causal_lm, response_logprobs
from learners.packing import PackedTokens, pack, prefix_tree
from tests.learners.samples import assert_equal_gradients, gradients, group_tokens

RNG = np.random.default_rng(0)
GROUPS = [
    group_tokens(RNG.integers(0, 100, 30), [RNG.integers(0, 100, 40), RNG.integers(0, 100, 3), RNG.integers(0, 100, 55)]),
    group_tokens([1, 2], [RNG.integers(0, 3, 20) for _ in range(12)]),
]


def packed_groups() -> PackedTokens:
    return pack(prefix_tree(GROUPS))


def visible(end_T: Tensor) -> Tensor:
    """Return the rule as (T, T), with queries in rows and keys in columns."""
    index_T = torch.arange(len(end_T))
    return (index_T <= index_T[:, None]) & (index_T[:, None] < end_T)


@pytest.mark.parametrize("num_queries", [1, 7, 64, 1000])
def test_blocks_show_each_query_its_ancestors_and_itself_only(num_queries: int) -> None:
    end_T = packed_groups().end_T
    found_TT = torch.zeros(len(end_T), len(end_T), dtype=torch.bool)
    covered: list[int] = []
    for block in make_blocks(end_T, dtype=torch.float32, num_queries=num_queries):
        keys = torch.arange(len(end_T))[block.keys]
        assert set(block.mask_11QS.flatten().tolist()) <= {0.0, float("-inf")}
        found_TT[torch.arange(block.start, block.stop)[:, None], keys] = block.mask_11QS[0, 0] == 0
        covered += range(block.start, block.stop)
    assert covered == list(range(len(end_T)))
    assert torch.equal(found_TT, visible(end_T))


def test_blocks_leave_out_what_is_no_ancestor() -> None:
    """There are two long responses to one prompt. A block of the second has no key of the first."""
    end_T = pack(prefix_tree([group_tokens(range(10), [[1] * 200, [2] * 200])])).end_T
    blocks = make_blocks(end_T, dtype=torch.float32)
    assert max(len(torch.arange(len(end_T))[block.keys]) for block in blocks) <= 10 + 199 + 63


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_shared", [1, 3])
def test_every_kind_equals_plain_attention_under_the_mask(kind: Any, num_shared: int) -> None:
    packed = packed_groups()
    num_tokens = packed.num_tokens
    torch.manual_seed(0)
    has_backward = kind != "flex"  # of which torch has none for a CPU
    query, key, value = (
        torch.randn(1, heads, num_tokens, 8, dtype=torch.float64, requires_grad=has_backward) for heads in (2 * num_shared, 2, 2)
    )
    weight = torch.randn(1, num_tokens, 2 * num_shared, 8, dtype=torch.float64)
    found, _ = _attention(None, query, key, value, None, layout=layout_of(packed, kind, torch.float64), scaling=0.3)
    score = 0.3 * query @ key.repeat_interleave(num_shared, 1).transpose(-1, -2)
    softmax = score.masked_fill(~visible(packed.end_T), float("-inf")).softmax(-1)
    expected = (softmax @ value.repeat_interleave(num_shared, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    if not has_backward:
        return
    found_gradients, expected_gradients = (torch.autograd.grad((weight * mean).sum(), (query, key, value)) for mean in (found, expected))
    for gradient, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0.0, atol=1e-11)


def test_bfloat16_attention_is_normalised_in_float32() -> None:
    """Its error is that of rounding inputs and weights: one hundredth, for any number of keys."""
    packed = pack(prefix_tree([group_tokens(RNG.integers(0, 100, 400), [[1, 2]])]))
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, packed.num_tokens, 16).bfloat16() for heads in (4, 2, 2)]
    layout = layout_of(packed, "blocks", torch.bfloat16)
    found, _ = _attention(None, *inputs, None, layout=layout, scaling=0.25)
    exact = layout_of(packed, "blocks", torch.float64)
    expected, _ = _attention(None, *(each.double() for each in inputs), None, layout=exact, scaling=0.25)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).abs().max()) < 0.02


def test_the_model_attends_alike_by_every_kind(tiny_model: str, exact_norms: None) -> None:
    model = load_causal_lm(tiny_model, dtype="float64")
    logprobs, found = {}, {}
    for kind in KINDS:
        model.set_attn_implementation(implementation(kind))
        with torch.no_grad():
            logprobs[kind], _ = response_logprobs(model, packed_groups(), temperature=1.0)
        if kind != "flex":
            model.zero_grad()
            response_logprobs(model, packed_groups(), temperature=1.0)[0].sum().backward()
            found[kind] = gradients(model)
    torch.testing.assert_close(logprobs["flex"], logprobs["masked"], rtol=0.0, atol=1e-9)
    torch.testing.assert_close(logprobs["blocks"], logprobs["masked"], rtol=0.0, atol=1e-9)
    assert_equal_gradients(found["blocks"], found["masked"], atol=1e-9)


def test_a_model_loaded_otherwise_is_refused(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="'sdpa'"):
        response_logprobs(model, packed_groups(), temperature=1.0)


def test_a_model_called_without_a_layout_pays_heed_to_padding_as_ever(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, dtype="float64")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        left = model(input_ids=ids[1:].flip(1), attention_mask=mask[1:].flip(1), use_cache=False).logits
        alone = model(input_ids=torch.tensor([[10, 9]]), use_cache=False).logits
        torch.testing.assert_close(padded[1:, :2], model(input_ids=ids[1:, :2], use_cache=False).logits)
    torch.testing.assert_close(left[:, 2:], alone, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("others", "named"),
    [({"softcap": 50.0}, "softcap"), ({"s_aux": torch.ones(2)}, "s_aux"), ({"sliding_window": 4}, "window of 4 tokens")],
)
def test_attention_of_another_kind_is_refused_rather_than_computed_otherwise(others: dict[str, Any], named: str) -> None:
    query = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=named):
        _attention(None, query, query, query, None, layout=AttentionLayout(longest=5), scaling=1.0, **others)


def test_a_sliding_window_that_nothing_reaches_is_none() -> None:
    packed = pack(prefix_tree([group_tokens([1, 2], [[3, 4]])]))
    query = torch.randn(1, 2, packed.num_tokens, 4)
    _attention(None, query, query, query, None, layout=layout_of(packed, "blocks", torch.float32), scaling=1.0, sliding_window=3)
