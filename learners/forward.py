"""Forward passes over packed tokens: last hidden states, log-probs and entropies of response tokens.

Axes: T computed tokens, N response tokens, H hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from learners.attention import AttentionKind, best_kind, implementation, kind_of, layout_of, register
from learners.logprobs import head_logprobs, logit_bytes
from learners.packing import GroupTokens, PackedTokens, micro_batches, pack, prefix_tree
from learners.precision import Dtype, resolve_dtype
from learners.supported import require_independent, require_plain_logits, require_short, require_supported

LOGITS_BYTES = 512 << 20
_LOADING = threading.Lock()
"""transformers changes torch's defaults for the whole process while it loads a model: two threads that load at once
break each other."""


def load_causal_lm(path: str, *, dtype: Dtype | Literal["float64"], device: str = "cpu", place: bool = True) -> Any:
    """A Hugging Face causal language model in evaluation mode (no dropout: sampler and learner are one distribution).

    With `place` false it is made for `device` and left in host memory. Raises ModelUnsupported for a model that a
    packed pass would compute wrongly."""
    from transformers import AutoModelForCausalLM

    register()
    if dtype != "float64":
        dtype = resolve_dtype(dtype, on_gpu=device != "cpu")
    attention = implementation(best_kind(device))
    require_supported(without_weights(path))  # before a constructor that does not know our attention
    with _LOADING:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation=attention)
    model = (model.to(device) if place else model).eval()
    kind: AttentionKind = "blocks" if kind_of(model) == "blocks" else "masked"  # nothing is compiled for this
    require_independent(model, lambda packed: last_hidden_states(model, packed, kind))
    return model


def check_supported(path: str, *, longest: int | None = None, with_head: bool = True) -> None:
    """Refuse at once, reading no weights, what a pass over at most `longest` tokens of a prompt and its response could
    not compute; with the head also what `response_logprobs` could not. Raises ModelUnsupported."""
    model = without_weights(path)
    require_supported(model, longest=longest)
    if with_head:
        require_plain_logits(model)


def without_weights(path: str) -> Any:
    """The model at `path` on the meta device: its modules and the shapes of its parameters. No weights are read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _LOADING, torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))


def causal_lm_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the model at `path` by name, a tied head left out. No weights are read."""
    return {name: tuple(parameter.shape) for name, parameter in without_weights(path).named_parameters()}


def last_hidden_states(model: Any, packed: PackedTokens, kind: AttentionKind | None = None) -> Tensor:
    """(T, H) states after the final norm. `kind`: of attention, in place of the one that the model was loaded with.

    Raises ModelUnsupported where a branch is too long for the model's position embeddings or its attention."""
    layout = layout_of(packed, kind or kind_of(model), model.get_input_embeddings().weight.dtype)
    require_short(model, layout.longest)
    output = model.get_decoder()(
        input_ids=packed.input_ids_T[None],
        attention_mask=packed.input_ids_T.new_empty(1, 1, 0, 0, dtype=torch.bool),  # four axes: taken as it is, so that no mask is made
        position_ids=packed.position_ids_T[None],
        use_cache=False,
        layout=layout,
    )
    states_TH: Tensor = output.last_hidden_state[0]
    return states_TH


def response_logprobs(
    model: Any, packed: PackedTokens, *, temperature: float, logits_bytes: int = LOGITS_BYTES, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-prob of each response token under softmax(logits / temperature), and that distribution's entropy in nats.

    Returns (logprob_N with gradient, entropy_N), at least float32; the entropy has a gradient where `entropy_gradient`
    asks for it. Logits are made for what predicts a response token only, as many positions at a time as `logits_bytes`
    has room for, at least one. Raises ModelUnsupported for a model that changes them behind its head."""
    require_plain_logits(model)
    states_TH = last_hidden_states(model, packed)
    head = model.get_output_embeddings()
    logprob_N, entropy_N = head_logprobs(
        states_TH[packed.predicts_M],
        head.weight,
        head.bias,
        state_N=packed.state_N,
        target_N=packed.target_N,
        temperature=temperature,
        chunk=max(1, logits_bytes // logit_bytes(head.weight)),
    )
    return logprob_N, entropy_N if entropy_gradient else entropy_N.detach()


@torch.inference_mode()
def response_loglikelihoods(
    model: Any, groups: Sequence[GroupTokens], *, tokens_per_batch: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Σ_t log p(y_t | prompt, y_<t) of each response under `model` as it is (temperature 1), and its number of tokens.

    Returns (loglikelihood_R float64, num_tokens_R int64), responses in the order of `groups`; 0 and 0 for an empty one.
    """
    num_tokens_R = torch.tensor([len(ids) for group in groups for ids in group.responses], dtype=torch.int64)
    loglikelihood_R = torch.zeros(len(num_tokens_R), dtype=torch.float64)
    for branches in micro_batches(prefix_tree(groups), max_tokens=tokens_per_batch):
        packed = pack(branches).to(device or torch.device("cpu"))
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
        loglikelihood_R.index_add_(0, packed.response_N.cpu(), logprob_N.cpu().double())
    return loglikelihood_R, num_tokens_R
