"""Log-probs and entropies from hidden states, without a [tokens, vocabulary] matrix for all tokens at once.

Axes: M positions whose next token is asked for, N response tokens (several may follow one position), H hidden size, V
vocabulary, C positions of a chunk, R of a slab.

Logits of at most `chunk` positions exist at a time. The forward pass keeps the probabilities of the last chunk, and the
backward pass starts with them. It computes the logits of other chunks again, for a third of the output layer's total
cost. If all positions fit into one chunk, nothing is computed twice. Gradients of several chunks are summed in float32.
Softmax and its gradient work on slabs that fit into a processor's cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLAB_BYTES = 8 << 20
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
    """Return the bytes of the logits of one position, in the dtype in which they are normalised."""
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
            kept_CV = _logits(hidden_MH[rows], weight_VH, bias_V, temperature)
            of_chunk = ((state_N >= rows.start) & (state_N < rows.stop)).nonzero().squeeze(-1)
            logprob_N[of_chunk] = kept_CV[state_N[of_chunk] - rows.start, target_N[of_chunk]]
            normaliser_M[rows], entropy_M[rows] = _softmax_in_place(kept_CV)
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
        probability_CV, ctx.kept_CV = ctx.kept_CV, None
        total_M = torch.zeros_like(normaliser_M).index_add_(0, state_N, grad_logprob_N)
        chunks = _chunks(len(hidden_MH), ctx.chunk)
        for rows in reversed(chunks):
            if probability_CV is None:
                probability_CV = _logits(hidden_MH[rows], weight_VH, bias_V, ctx.temperature)
                for slab in _slabs(probability_CV):
                    probability_CV[slab].sub_(normaliser_M[rows][slab, None]).exp_()
            of_entropy_C = None if grad_entropy_M is None else grad_entropy_M[rows]
            _gradient_in_place(probability_CV, total_M[rows], of_entropy_C, entropy_M[rows])
            of_chunk = ((state_N >= rows.start) & (state_N < rows.stop)).nonzero().squeeze(-1)
            at = (state_N[of_chunk] - rows.start, target_N[of_chunk])
            probability_CV.index_put_(at, grad_logprob_N[of_chunk], accumulate=True)
            dlogits_CV = probability_CV.div_(ctx.temperature).to(hidden_MH.dtype)
            probability_CV = None
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


def _slabs(values_CV: Tensor) -> list[slice]:
    num_rows = max(1, SLAB_BYTES // (values_CV.shape[1] * values_CV.element_size())) if values_CV.device.type == "cpu" else len(values_CV)
    return [slice(start, start + num_rows) for start in range(0, len(values_CV), num_rows)]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits_CV = torch.nn.functional.linear(hidden_CH, weight_VH, bias_V).to(_wide(hidden_CH.dtype))
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


def _softmax_in_place(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into probabilities. Returns their normalisers and entropies, (C,) each."""
    normaliser_C, entropy_C = logits_CV.new_empty(len(logits_CV)), logits_CV.new_empty(len(logits_CV))
    for slab in _slabs(logits_CV):
        logits_RV = logits_CV[slab]
        normaliser_R = logits_RV.logsumexp(dim=-1)
        probability_RV = (logits_RV - normaliser_R[:, None]).exp_()
        entropy_C[slab] = normaliser_R - torch.linalg.vecdot(probability_RV, logits_RV)
        normaliser_C[slab] = normaliser_R
        logits_RV.copy_(probability_RV)
    return normaliser_C, entropy_C


def _gradient_in_place(probability_CV: Tensor, total_C: Tensor, of_entropy_C: Tensor | None, entropy_C: Tensor) -> None:
    """Turn probabilities into the gradient with respect to the logits, without the term of the targets' own logits."""
    for slab in _slabs(probability_CV):
        probability_RV = probability_CV[slab]
        factor = total_C[slab, None]
        if of_entropy_C is not None:
            surprise_RV = probability_RV.clamp(min=torch.finfo(probability_RV.dtype).tiny).log_()
            factor = surprise_RV.add_(entropy_C[slab, None]).mul_(of_entropy_C[slab, None]).add_(factor)
        probability_RV.mul_(factor).neg_()
