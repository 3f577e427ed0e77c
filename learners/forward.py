"""Forward passes over packed tokens: last hidden states, and log-probs and entropies of response tokens.

    model = load_causal_lm(path, dtype="bfloat16")
    logprob_N, entropy_N = response_logprobs(model, packed, temperature=1.0)
    loglikelihood_R, num_tokens_R = response_loglikelihoods(model, groups, tokens_per_batch=1024)

Axes: T computed tokens, N response tokens, R responses, H hidden size."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from learners.attention import AttentionKind, best_kind, implementation, kind_of, layout_of, register
from learners.loading import require_loaded
from learners.logprobs import head_logprobs, logit_bytes
from learners.packing import GroupTokens, PackedTokens, micro_batches, pack, prefix_tree
from learners.precision import Dtype, resolve_dtype
from learners.supported import require_independent, require_plain_logits, require_short, require_supported

LOGITS_BYTES = 512 << 20
_LOADING = threading.Lock()
"""transformers changes torch's defaults in the process while it loads a model: two threads must not load at once."""


def load_causal_lm(path: str, *, dtype: Dtype | Literal["float64"], device: str = "cpu", place: bool = True) -> Any:
    """Return a Hugging Face causal language model in evaluation mode. It has no dropout, because sampler and learner
    must be one distribution. With `place` false it is made for `device` but left in host memory. Raises
    ModelUnsupported for a model that a packed pass would compute wrongly, and ModelError for one of which the files
    lack a part."""
    from transformers import AutoModelForCausalLM

    register()
    if dtype != "float64":
        dtype = resolve_dtype(dtype, on_gpu=device != "cpu")
    attention = implementation(best_kind(device))
    require_supported(without_weights(path))  # before a constructor that does not know our attention
    with _LOADING:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report has them, and they are refused with the others
        )
    require_loaded(path, model, report)
    model = (model.to(device) if place else model).eval()
    kind: AttentionKind = "blocks" if kind_of(model) == "blocks" else "masked"  # nothing is compiled for this
    require_independent(model, lambda packed: last_hidden_states(model, packed, kind))
    return model


def check_supported(path: str, *, longest: int | None = None, with_head: bool = True) -> None:
    """Raise ModelUnsupported for a model that a pass could not compute, without reading weights. `longest` is the most
    tokens of a prompt and its response. With `with_head`, what `response_logprobs` could not compute is refused too."""
    require_supported(model := without_weights(path), longest=longest)
    if with_head:
        require_plain_logits(model)


def without_weights(path: str) -> Any:
    """Return the model at `path` on the meta device: modules and shapes, without reading weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _LOADING, torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False), trust_remote_code=False)


def meta_loading(path: str, state: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Return what `from_pretrained` makes of tensors without data: the model on the meta device, and its report. Raises
    RuntimeError where tensors that are fused while they are loaded do not fit together."""
    from transformers import AutoConfig

    kind = type(without_weights(path))
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with _LOADING, _quiet():
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing its report and its progress: what is wrong is told by who asked."""
    from transformers.utils import logging

    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def causal_lm_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the model at `path` by name, without a tied head. No weights are read."""
    return {name: tuple(parameter.shape) for name, parameter in without_weights(path).named_parameters()}


def last_hidden_states(model: Any, packed: PackedTokens, kind: AttentionKind | None = None) -> Tensor:
    """Return the states (T, H) after the final norm. `kind` replaces the kind of attention that the model was loaded
    with. Raises ModelUnsupported if a branch is too long for the model's position embeddings or its attention."""
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
    """Return (logprob_N, entropy_N) of the response tokens under softmax(logits / temperature), in nats, at least
    float32. The log-probs have a gradient, and the entropy if `entropy_gradient` is set. Logits are made only for
    positions that predict a response token, and at a time for as many positions as fit into `logits_bytes`, at least
    one. Raises ModelUnsupported for a model that changes its logits behind its head."""
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
    """Return Σ_t log p(y_t | prompt, y_<t) of each response under `model` at temperature 1, and its number of tokens.
    These are (loglikelihood_R float64, num_tokens_R int64), in the order of `groups`; 0 for an empty response."""
    num_tokens_R = torch.tensor([len(ids) for group in groups for ids in group.responses], dtype=torch.int64)
    loglikelihood_R = torch.zeros(len(num_tokens_R), dtype=torch.float64)
    for branches in micro_batches(prefix_tree(groups), max_tokens=tokens_per_batch):
        packed = pack(branches).to(device or torch.device("cpu"))
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
        loglikelihood_R.index_add_(0, packed.response_N.cpu(), logprob_N.cpu().double())
    return loglikelihood_R, num_tokens_R
