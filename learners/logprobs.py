"""Log-probs and entropies from hidden states, without a [tokens, vocabulary] matrix for all tokens at once.

Axes: M positions whose next token is asked for, N response tokens (several may follow one position), H hidden size, V
vocabulary, C positions of a chunk, R of a slab.

Logits of at most `chunk` positions exist at a time. The forward pass keeps the logits of the last chunk, and the
backward pass starts with them. It computes the logits of other chunks again, for a third of the output layer's total
cost. If all positions fit into one chunk, no product is computed twice. Gradients of several chunks are summed in
float32. Logits have the dtype of the model. Softmax and its gradient are computed in float32 on slabs that fit into a
processor's cache, so probabilities are cheaper to compute twice than to keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLAB_BYTES = 4 << 20
"""Float32 logits of one slab. A larger slab leaves the cache between two operations."""


def head_logprobs(
    hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *, state_N: Tensor, target_N: Tensor, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the log-prob of token target_N[n] after position state_N[n], and the entropy there, under softmax(logits /
    temperature). The results are (logprob_N, entropy_N in nats), at least float32. Both have gradients with respect to
    the hidden states, weight and bias:

        z = (h Wᵀ + b) / τ      p = softmax(z)      log p_v = z_v − logsumexp(z)      H = −Σ_v p_v log p_v
        ∂ log p_v / ∂z_u = [u = v] − p_u            ∂H / ∂z_u = −p_u (log p_u + H)"""
    if not len(state_N):
        empty_N = hidden_MH.new_zeros(0, dtype=_wide(hidden_MH.dtype)) + 0 * hidden_MH.sum()
        return empty_N, empty_N
    logprob_N, entropy_M = _HeadLogprobs.apply(hidden_MH, weight_VH, bias_V, state_N, target_N, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprob_N, entropy_M[state_N]


def logit_bytes(weight_VH: Tensor) -> int:
    """Return the bytes of the logits of one position, in the dtype in which they are normalised. A GPU has all logits
    of a chunk in it at once, a CPU those of a slab."""
    return len(weight_VH) * _wide(weight_VH.dtype).itemsize


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        state_N: Tensor,
        target_N: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        num_positions, wide = len(hidden_MH), _wide(hidden_MH.dtype)
        entropy_M, normaliser_M = hidden_MH.new_empty(num_positions, dtype=wide), hidden_MH.new_empty(num_positions, dtype=wide)
        logprob_N = hidden_MH.new_empty(len(state_N), dtype=wide)
        kept_CV = None
        for rows in _chunks(num_positions, chunk):
            kept_CV = None  # free it before the next one is made
            kept_CV = _logits(hidden_MH[rows], weight_VH, bias_V)
            of_chunk = _within(state_N, rows)
            logprob_N[of_chunk] = kept_CV[state_N[of_chunk] - rows.start, target_N[of_chunk]].to(wide) / temperature
            normaliser_M[rows], entropy_M[rows] = _normalisers(kept_CV, temperature)
        logprob_N -= normaliser_M[state_N]
        ctx.kept_CV = kept_CV if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, state_N, target_N, normaliser_M, entropy_M)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprob_N, entropy_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob_N: Tensor | None, grad_entropy_M: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, state_N, target_N, normaliser_M, entropy_M = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dhidden_MH = torch.empty_like(hidden_MH) if needs_hidden else None
        dweight_VH = dbias_V = None
        if grad_logprob_N is None:
            grad_logprob_N = normaliser_M.new_zeros(len(state_N))
        logits_CV, ctx.kept_CV = ctx.kept_CV, None
        chunks = _chunks(len(hidden_MH), ctx.chunk)
        for rows in reversed(chunks):
            if logits_CV is None:
                logits_CV = _logits(hidden_MH[rows], weight_VH, bias_V)
            of_chunk = _within(state_N, rows)
            chosen = (state_N[of_chunk] - rows.start, target_N[of_chunk], grad_logprob_N[of_chunk])
            of_entropy_C = None if grad_entropy_M is None else grad_entropy_M[rows]
            _gradient_in_place(logits_CV, chosen, of_entropy_C, normaliser_M[rows], entropy_M[rows], ctx.temperature)
            dlogits_CV, logits_CV = logits_CV, None
            if dhidden_MH is not None:
                torch.mm(dlogits_CV, weight_VH, out=dhidden_MH[rows])
            if needs_weight:
                if dweight_VH is not None and dweight_VH.dtype == dlogits_CV.dtype:
                    dweight_VH.addmm_(dlogits_CV.t(), hidden_MH[rows])
                else:
                    dweight_VH = _added(dweight_VH, dlogits_CV.t() @ hidden_MH[rows], is_only=len(chunks) == 1)
            if needs_bias:
                dbias_V = _added(dbias_V, dlogits_CV.sum(dim=0), is_only=len(chunks) == 1)
            del dlogits_CV
        dweight_VH, dbias_V = (None if total is None else total.to(hidden_MH.dtype) for total in (dweight_VH, dbias_V))
        return dhidden_MH, dweight_VH, dbias_V, None, None, None, None


def _added(total: Tensor | None, part: Tensor, *, is_only: bool) -> Tensor:
    """Return the sum of two chunks' gradients, in float32 or wider: bfloat16 would round most of it away."""
    if total is None:
        return part if is_only else part.to(_wide(part.dtype))
    return total.add_(part)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(num_positions: int, chunk: int) -> list[slice]:
    """Return slices of `chunk` positions. The first takes the remainder: the backward pass keeps the last."""
    stops = list(range(num_positions, 0, -chunk))[::-1]
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _within(index_N: Tensor, rows: slice) -> Tensor:
    """Return where the index is one of `rows`."""
    found: Tensor = ((index_N >= rows.start) & (index_N < rows.stop)).nonzero().squeeze(-1)
    return found


def _slabs(logits_CV: Tensor) -> list[slice]:
    num_columns = logits_CV.shape[1] * _wide(logits_CV.dtype).itemsize
    num_rows = max(1, SLAB_BYTES // num_columns) if logits_CV.device.type == "cpu" else len(logits_CV)
    return [slice(start, min(start + num_rows, len(logits_CV))) for start in range(0, len(logits_CV), num_rows)]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden_CH, weight_VH, bias_V)


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """Return a copy of the logits over the temperature, in float32 or wider."""
    scaled_RV = logits_RV.to(_wide(logits_RV.dtype), copy=True)
    return scaled_RV if temperature == 1.0 else scaled_RV.div_(temperature)


def _normalisers(logits_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the normalisers and entropies of logits over the temperature, (C,) each."""
    normaliser_C, entropy_C = (logits_CV.new_empty(len(logits_CV), dtype=_wide(logits_CV.dtype)) for _ in range(2))
    for slab in _slabs(logits_CV):
        logits_RV = _scaled(logits_CV[slab], temperature)
        largest_R1 = logits_RV.amax(dim=-1, keepdim=True)
        weight_RV = logits_RV.sub_(largest_R1).exp()
        total_R = weight_RV.sum(dim=-1)
        normaliser_C[slab] = total_R.log() + largest_R1[:, 0]
        entropy_C[slab] = total_R.log() - torch.linalg.vecdot(weight_RV, logits_RV) / total_R
    return normaliser_C, entropy_C


def _gradient_in_place(
    logits_CV: Tensor,
    chosen: tuple[Tensor, Tensor, Tensor],
    of_entropy_C: Tensor | None,
    normaliser_C: Tensor,
    entropy_C: Tensor,
    temperature: float,
) -> None:
    """Turn logits into the gradient with respect to them. `chosen` are rows, columns, and gradients of the log-probs
    there."""
    row_N, column_N, grad_N = chosen
    total_C = torch.zeros_like(normaliser_C).index_add_(0, row_N, grad_N)
    for slab in _slabs(logits_CV):
        logprob_RV = _scaled(logits_CV[slab], temperature).sub_(normaliser_C[slab, None])
        factor = total_C[slab, None]
        if of_entropy_C is not None:
            factor = torch.addcmul(factor, logprob_RV + entropy_C[slab, None], of_entropy_C[slab, None])
        gradient_RV = logprob_RV.exp_().mul_(factor).neg_()
        of_slab = _within(row_N, slab)
        gradient_RV.index_put_((row_N[of_slab] - slab.start, column_N[of_slab]), grad_N[of_slab], accumulate=True)
        logits_CV[slab] = gradient_RV.div_(temperature)
