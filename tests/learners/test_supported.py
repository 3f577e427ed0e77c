from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import learners.forward
from learners.forward import check_supported, last_hidden_states, load_causal_lm
from learners.packing import PackedTokens, pack, prefix_tree
from learners.supported import ModelUnsupported, require_independent, require_supported
from tests.learners.samples import group_tokens

SIZES = {"vocab_size": 104, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
CONVOLUTION = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
LONGROPE = {
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    },
}
DYNAMIC = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}


def save_model(directory: Path, family: str, **settings: Any) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **HEADS | settings)).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("lfm2", CONVOLUTION, r"Lfm2ForCausalLM mixes tokens elsewhere than in attention \(conv\)"),
        (
            "qwen3_5_text",
            {"layer_types": ["linear_attention", "full_attention"], **LINEAR},
            r"Qwen3_5ForCausalLM mixes tokens elsewhere .*recurrent state",
        ),
        (
            "mamba2",
            {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
            "Mamba2ForCausalLM mixes tokens elsewhere",
        ),
        ("recurrent_gemma", {"lru_width": 32, "head_dim": 8}, "RecurrentGemmaForCausalLM mixes tokens elsewhere"),
        ("gemma", {"head_dim": 8, "use_bidirectional_attention": True}, "GemmaForCausalLM attends to later tokens too"),
        ("falcon", {}, "FalconForCausalLM has an attention of its own"),
        ("stablelm", {}, "StableLmForCausalLM has an attention of its own"),
        ("llama", DYNAMIC, r'LlamaForCausalLM takes its position embeddings \("dynamic"\) from the longest sequence of a pass'),
    ],
)
def test_a_model_that_the_pass_would_compute_wrongly_is_refused_by_name_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, settings: dict[str, Any], named: str
) -> None:
    path = save_model(tmp_path, family, **settings)
    for refuse in (check_supported, lambda path: load_causal_lm(path, dtype="float32")):
        with pytest.raises(ModelUnsupported, match=f"^{named}.*: the learner's packed rows do not support that$") as caught:
            refuse(path)
        assert "\n" not in str(caught.value)


def says_nothing(_: Any, **__: Any) -> None:
    """Replace `require_supported`, because what a model says about itself is not complete."""


@pytest.mark.parametrize(
    ("family", "settings"),
    [("lfm2", CONVOLUTION), ("qwen3_5_text", {"layer_types": ["linear_attention", "full_attention"], **LINEAR})],
    ids=["convolution", "linear attention"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_mix_elsewhere_show_in_a_pass_over_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, settings: dict[str, Any], dtype: Any
) -> None:
    path = save_model(tmp_path, family, **settings)
    monkeypatch.setattr(learners.forward, "require_supported", says_nothing)
    with pytest.raises(ModelUnsupported, match="the states of a response change with those beside it"):
        load_causal_lm(path, dtype=dtype)


def test_a_leak_is_found_in_either_direction() -> None:
    """The states of this model are its tokens, mixed with those before or behind."""
    model: Any = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=torch.zeros(104, 1)))
    require_independent(model, lambda packed: packed.input_ids_T[:, None].double())
    for leaks in (lambda ids: ids.cumsum(0), lambda ids: ids.flip(0).cumsum(0).flip(0)):
        with pytest.raises(ModelUnsupported):
            require_independent(model, lambda packed, leaks=leaks: leaks(packed.input_ids_T[:, None].double()))


def test_an_error_in_the_models_own_code_becomes_one_line_that_names_it() -> None:
    model: Any = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=torch.zeros(104, 1)))

    def fails(_: PackedTokens) -> Any:
        raise KeyError("branches_blocks")

    with pytest.raises(ModelUnsupported, match=r"^SimpleNamespace cannot be run so: KeyError: 'branches_blocks': the learner's"):
        require_independent(model, fails)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "settings"), [("qwen3_moe", EXPERTS), ("llama", {}), ("gpt_neox", {}), ("phi3", LONGROPE)])
def test_models_that_mix_tokens_in_attention_alone_are_taken(tmp_path: Path, family: str, settings: dict[str, Any], dtype: Any) -> None:
    path = save_model(tmp_path, family, **settings)
    check_supported(path)
    load_causal_lm(path, dtype=dtype)


def test_longrope_is_taken_up_to_its_first_table_and_refused_beyond(tmp_path: Path) -> None:
    path = save_model(tmp_path, "phi3", **LONGROPE)
    check_supported(path, longest=16)
    with pytest.raises(ModelUnsupported, match=r'^Phi3ForCausalLM .*"longrope".* beyond 16 tokens, and prompt and response may have 17: '):
        check_supported(path, longest=17)
    model = load_causal_lm(path, dtype="float32")
    with torch.no_grad():
        last_hidden_states(model, pack(prefix_tree([group_tokens([5] * 8, [[6] * 9])])))
        with pytest.raises(ModelUnsupported, match=r'"longrope"\) from the longest sequence of a pass, which has 17 tokens'):
            last_hidden_states(model, pack(prefix_tree([group_tokens([5] * 8, [[6] * 10])])))


@pytest.mark.parametrize(
    ("family", "settings"),
    [("mistral", {"sliding_window": 8}), ("gemma3_text", {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2})],
)
def test_a_window_is_refused_at_the_start_where_prompt_and_response_may_exceed_it(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    path = save_model(tmp_path, family, **settings)
    check_supported(path, longest=8)
    with pytest.raises(ModelUnsupported, match="attends within a window of 8 tokens, and prompt and response may have 9"):
        check_supported(path, longest=9)


def test_a_window_that_no_layer_uses_is_none(tmp_path: Path) -> None:
    path = save_model(tmp_path, "qwen2", sliding_window=8, use_sliding_window=False)
    check_supported(path, longest=1000)


def test_a_model_that_changes_its_logits_is_refused_for_its_head_alone(tmp_path: Path) -> None:
    path = save_model(tmp_path, "cohere", logit_scale=0.5)
    check_supported(path, with_head=False)
    with pytest.raises(ModelUnsupported, match="CohereForCausalLM changes its logits by logit_scale"):
        check_supported(path)


def test_what_a_model_says_needs_no_weights(tiny_model: str) -> None:
    require_supported(learners.forward.without_weights(tiny_model), longest=10_000)
