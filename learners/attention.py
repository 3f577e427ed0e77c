"""Attention over tokens in preorder (`learners.packing`): each query sees its ancestors and itself.

Axes: T tokens, Q queries of a block, S keys of a block, A key/value heads, G query heads that share one, D width of a
head.

    blocks   on a CPU: blocks of adjacent queries. Of the tokens before a block, its queries see only ancestors of the
             block's first token, which are one chain. These and the block itself are its keys, so memory grows with T.
    flex     on a GPU: torch's flex_attention with the same rule as its mask.
    masked   anywhere: one call with a mask of T² entries.

transformers knows each kind by name. A model that is loaded with one of them still attends as usual when it is called
without a layout."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.packing import PackedTokens
from learners.supported import ModelUnsupported

AttentionKind = Literal["blocks", "flex", "masked"]
KINDS: tuple[AttentionKind, ...] = ("blocks", "flex", "masked")
BLOCK_QUERIES = 64
"""With more queries in a block there are fewer calls, but more scores that the mask discards."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries start … stop − 1 against `keys`. The mask (0 if visible, else −∞) is added to the scores."""

    start: int
    stop: int
    keys: slice | Tensor
    mask_11QS: Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionLayout:
    """Which token sees which in a forward pass, for one kind of attention. `longest` is the longest branch's length."""

    longest: int
    blocks: Sequence[Block] | None = None
    block_mask: Any = None
    visible_TT: Tensor | None = None


def layout_of(packed: PackedTokens, kind: AttentionKind, dtype: torch.dtype) -> AttentionLayout:
    """Return the layout of `packed` for one kind of attention, for a model that computes in `dtype`."""
    longest = int(packed.position_ids_T.max()) + 1
    if kind == "blocks":
        return AttentionLayout(longest=longest, blocks=make_blocks(packed.end_T, dtype=torch.promote_types(dtype, torch.float32)))
    if kind == "flex":
        return AttentionLayout(longest=longest, block_mask=_flex_mask(packed.end_T))
    index_T = torch.arange(len(packed.end_T), device=packed.end_T.device)
    return AttentionLayout(longest=longest, visible_TT=_sees(packed.end_T, index_T[:, None], index_T))


def _sees(end_T: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return the rule of `learners.packing`, elementwise over indices."""
    return (key <= query) & (query < end_T[key])


def make_blocks(end_T: Tensor, *, dtype: torch.dtype, num_queries: int = BLOCK_QUERIES) -> list[Block]:
    """Return blocks of at most `num_queries` queries that cover every token once. `dtype` is that of the scores."""
    ends, blocks = end_T.numpy(), []
    for start in range(0, len(ends), num_queries):
        stop = min(start + num_queries, len(ends))
        keys_S = torch.from_numpy(np.concatenate([np.flatnonzero(ends[:start] > start), np.arange(start, stop)]))
        hidden_QS = ~_sees(end_T, torch.arange(start, stop)[:, None], keys_S[None, :])
        mask_QS = torch.zeros(hidden_QS.shape, dtype=dtype).masked_fill_(hidden_QS, float("-inf"))
        keys = slice(int(keys_S[0]), stop) if stop - int(keys_S[0]) == len(keys_S) else keys_S
        blocks.append(Block(start=start, stop=stop, keys=keys, mask_11QS=mask_QS[None, None]))
    return blocks


class _BlockAttention(torch.autograd.Function):
    """softmax(scale · q kᵀ) v over the keys that each query sees: query_AGTD, key_ATD, value_ATD -> mean_TAGD. It calls
    torch's own CPU kernel of FlashAttention (Dao et al. 2022, arXiv:2205.14135) block by block, forward and backward.
    Through autograd, it would keep a copy of the keys of every block for each query head until the backward pass.

    The kernel gets float32 even if the model is narrower, because its backward pass in bfloat16 takes more than twice
    as long (docs/measurements.md). What is kept until then has the dtype of the model."""

    @staticmethod
    def forward(ctx: Any, query_AGTD: Tensor, key_ATD: Tensor, value_ATD: Tensor, blocks: Sequence[Block], scale: float) -> Tensor:
        ctx.blocks, ctx.scale = blocks, scale
        num_kv, num_shared, num_tokens, width = query_AGTD.shape
        mean_TAGD = query_AGTD.new_empty(num_tokens, num_kv, num_shared, width)
        query, key, value = map(_wide, (query_AGTD, key_ATD, value_ATD))
        attend, normalisers = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, []
        for block in blocks:
            queries = slice(block.start, block.stop)
            key_AGSD, value_AGSD = _for_query_heads(key, block, num_shared), _for_query_heads(value, block, num_shared)
            mean_AGQD, normaliser = attend(query[:, :, queries], key_AGSD, value_AGSD, attn_mask=_wide(block.mask_11QS), scale=scale)
            mean_TAGD[queries] = mean_AGQD.permute(2, 0, 1, 3)
            normalisers.append(normaliser)
        ctx.save_for_backward(query_AGTD, key_ATD, value_ATD, mean_TAGD, *normalisers)
        return mean_TAGD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TAGD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_AGTD, key_ATD, value_ATD, mean_TAGD, *normalisers = ctx.saved_tensors
        query, key, value, mean, grad = map(_wide, (query_AGTD, key_ATD, value_ATD, mean_TAGD, grad_TAGD))
        dquery, dkey, dvalue = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        for block, normaliser in zip(ctx.blocks, normalisers, strict=True):
            queries = slice(block.start, block.stop)
            grad_AGQD, mean_AGQD = (values_TAGD[queries].permute(1, 2, 0, 3) for values_TAGD in (grad, mean))
            key_AGSD, value_AGSD = (_for_query_heads(values_ATD, block, query.shape[1]) for values_ATD in (key, value))
            tensors = (grad_AGQD, query[:, :, queries], key_AGSD, value_AGSD, mean_AGQD, normaliser)
            options = {"dropout_p": 0.0, "is_causal": False, "attn_mask": _wide(block.mask_11QS), "scale": ctx.scale}
            dquery[:, :, queries], dkey_AGSD, dvalue_AGSD = gradients(*tensors, **options)
            for total_ATD, part_AGSD in ((dkey, dkey_AGSD), (dvalue, dvalue_AGSD)):
                if isinstance(block.keys, slice):
                    total_ATD[:, block.keys] += part_AGSD.sum(dim=1)
                else:
                    total_ATD.index_add_(1, block.keys, part_AGSD.sum(dim=1))
        dquery_AGTD, dkey_ATD, dvalue_ATD = (total.to(grad_TAGD.dtype) for total in (dquery, dkey, dvalue))
        return dquery_AGTD, dkey_ATD, dvalue_ATD, None, None


def _wide(values: Tensor) -> Tensor:
    """Return the values in float32 or wider. FSDP casts masks to the dtype of the model, too."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _for_query_heads(values_ATD: Tensor, block: Block, num_shared: int) -> Tensor:
    """Return the block's keys as (A, G, S, D), without a copy for each query head."""
    return values_ATD[:, block.keys][:, None].expand(-1, num_shared, -1, -1)


def _flex_mask(end_T: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _sees(end_T, query, key)

    return create_block_mask(sees, None, None, len(end_T), len(end_T), device=end_T.device, _compile=end_T.is_cuda)


@functools.cache
def _flex(compiled: bool) -> Any:
    """Return flex_attention. Uncompiled (for tests on a CPU) it makes all T² scores, without a backward pass."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    layout: AttentionLayout | None = None,
    scaling: float,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: query (1, A·G, T, D), key and value (1, A, T, D) -> (1, T, A·G,
    D). Raises ModelUnsupported for a model whose attention is of another kind, rather than compute the wrong one."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
        return attended
    window = others.get("sliding_window")
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if window is not None and layout.longest > window:
        unknown.append(f"a sliding window of {window} tokens, shorter than the longest sequence ({layout.longest})")
    if unknown:
        raise ModelUnsupported(f"{type(module).__name__} attends with {', '.join(unknown)}, which the learner's packed rows do not support")
    if layout.blocks is not None:
        query_AGTD = query[0].unflatten(0, (key.shape[1], -1))
        mean_TAGD: Tensor = _BlockAttention.apply(query_AGTD, key[0], value[0], layout.blocks, scaling)  # type: ignore[no-untyped-call]
        return mean_TAGD.flatten(1, 2)[None], None
    if layout.block_mask is not None:
        mean = _flex(query.is_cuda)(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=True)
    else:
        attend = torch.nn.functional.scaled_dot_product_attention
        mean = attend(query, key, value, attn_mask=layout.visible_TT, scale=scaling, enable_gqa=True)
    return mean.transpose(1, 2), None


@functools.cache
def register() -> None:
    """Make all kinds known to transformers. Without a layout they use the masks of its "sdpa". The compiler skips
    blocks, because their number and sizes differ in every pass."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for kind in KINDS:
        ALL_ATTENTION_FUNCTIONS.register(implementation(kind), torch.compiler.disable(_attention) if kind == "blocks" else _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(implementation(kind), sdpa_mask)


def implementation(kind: AttentionKind) -> str:
    """Return the name by which transformers knows the kind."""
    return f"branches_{kind}"


def best_kind(device: str) -> AttentionKind:
    """Return the fastest kind for `device`: blocks on a CPU; on a GPU flex if Triton can compile it, else masked."""
    if device == "cpu":
        return "blocks"
    return "flex" if importlib.util.find_spec("triton") is not None else "masked"


def kind_of(model: Any) -> AttentionKind:
    """Return the kind that `model` was loaded with. Raises ValueError if there is none."""
    name, kinds = model.config._attn_implementation, {implementation(kind): kind for kind in KINDS}
    if name in kinds:
        return kinds[name]
    raise ValueError(f"the model attends by '{name}', not by one of {', '.join(kinds)}: load it with load_causal_lm")
