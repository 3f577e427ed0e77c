"""A model directory is looked at before anything starts. The models are real, tiny ones with something changed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from learners.forward import load_causal_lm
from learners.model_check import look_at
from learners.models import ModelError
from learners.supported import ModelUnsupported
from tests.learners.model_directories import change_tensors, changed_copy
from tests.learners.test_supported import DYNAMIC, EXPERTS, HEADS, LONGROPE, SIZES
from tests.tiny_model import make_tiny_model

UP, HEAD, EMBEDDING = "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"

Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("untied"), tied=False)


def refusal(directory: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as refused:
        look_at(str(directory), **options)
    assert "\n" not in str(refused.value) and str(directory) in str(refused.value)
    return str(refused.value)


def without(*names: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def test_a_model_that_is_whole_has_its_facts(tiny_model: str, untied_model: str) -> None:
    for model in (tiny_model, untied_model):
        facts = look_at(model)
        assert (facts.path, facts.num_embeddings, facts.max_token_id) == (model, 104, 103)
        assert facts.limit is not None and (facts.limit.tokens, facts.limit.key) == (512, "max_position_embeddings")


def test_the_look_takes_less_than_two_seconds(tiny_model: str) -> None:
    look_at(tiny_model)  # imports
    began = time.process_time()
    look_at(tiny_model)
    assert time.process_time() - began < 2


# ---- tensors ----

CHANGES: dict[str, tuple[Change, str]] = {
    "one projection": (without(UP), f"lack tensor {UP}, which would be filled with random numbers"),
    "one norm": (without("model.norm.weight"), "lack tensor model.norm.weight"),
    "a layer": (lambda tensors: {n: t for n, t in tensors.items() if ".layers.0." not in n}, r"lack tensor model.layers.0."),
    "the head": (without(HEAD), f"lack tensor {HEAD}"),
    "the embedding": (without(EMBEDDING), f"lack tensor {EMBEDDING}"),
    "everything under another name": (
        lambda tensors: {f"policy.{name}": tensor for name, tensor in tensors.items()},
        "they have tensor policy.lm_head.weight (and 20 more), which the model does not know",
    ),
    "a value head too many": (lambda tensors: {**tensors, "v_head.weight": torch.zeros(1, 32)}, "have tensor v_head.weight, which"),
    "a layer too many": (
        lambda tensors: {**tensors, "model.layers.7.mlp.up_proj.weight": torch.zeros(64, 32)},
        "have tensor model.layers.7.mlp.up_proj.weight",
    ),
    "a bias too many": (lambda tensors: {**tensors, "model.layers.0.mlp.up_proj.bias": torch.zeros(64)}, "up_proj.bias"),
    "another shape": (lambda tensors: {**tensors, UP: torch.zeros(63, 32)}, f"tensor {UP} has the shape [63, 32] in its file and [64, 32]"),
    "a larger vocabulary": (
        lambda tensors: {**tensors, EMBEDDING: torch.zeros(200, 32)},
        f"tensor {EMBEDDING} has the shape [200, 32] in its file and [104, 32]",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_the_files_lack_or_have_too_much_is_named_by_headers_and_where_weights_are_read(
    untied_model: str, tmp_path: Path, what: str
) -> None:
    change, named = CHANGES[what]
    model = changed_copy(untied_model, tmp_path / "model")
    change_tensors(model, change)
    assert named in refusal(model)
    with pytest.raises(ModelError) as refused:
        load_causal_lm(str(model), dtype="float32")
    assert named in str(refused.value)


def test_a_tied_head_need_not_be_there(tiny_model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert HEAD not in load_file(f"{tiny_model}/model.safetensors")
    assert look_at(tiny_model)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.masked_bias"])
def test_a_buffer_that_older_checkpoints_keep_may_be_there(tiny_model: str, tmp_path: Path, name: str) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    change_tensors(model, lambda tensors: {**tensors, name: torch.ones(4)})
    assert look_at(str(model))
    assert load_causal_lm(str(model), dtype="float32")


def test_a_base_model_s_names_without_prefix_are_understood(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    change_tensors(model, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    assert look_at(str(model))
    theirs, ours = (load_causal_lm(str(path), dtype="float32").state_dict() for path in (tiny_model, model))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_fused_experts_of_a_mixture_are_understood(tiny_model: str, tmp_path: Path) -> None:
    settings = {**SIZES, **HEADS, **EXPERTS}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **settings)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    assert look_at(str(tmp_path))
    change_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "experts.2.up_proj" not in n})
    assert "lack tensor model.layers.0.mlp.experts.2.up_proj.weight" in refusal(tmp_path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_files_of_either_kind_are_read(untied_model: str, tmp_path: Path, file: str) -> None:
    model = changed_copy(untied_model, tmp_path / "model")
    if file.endswith(".bin"):
        from safetensors.torch import load_file

        torch.save(without(UP)(load_file(model / "model.safetensors")), model / file)
        (model / "model.safetensors").unlink()
    else:
        change_tensors(model, without(UP))
    assert f"lack tensor {UP}" in refusal(model)


@pytest.mark.parametrize("saved", ["LlamaModel", "MistralModel", "BertModel"])
def test_a_model_that_was_saved_without_its_head_is_refused(tiny_model: str, tmp_path: Path, saved: str) -> None:
    model = changed_copy(tiny_model, tmp_path / "model", config={"architectures": [saved]})
    assert f"are a {saved}, which has no language model head: save it as LlamaForCausalLM" in refusal(model)


@pytest.mark.parametrize("names", [5, "LlamaModel", {"LlamaModel": 1}, [None], []])
def test_odd_architectures_are_no_traceback(tiny_model: str, tmp_path: Path, names: Any) -> None:
    assert look_at(str(changed_copy(tiny_model, tmp_path / "model", config={"architectures": names})))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", [UP, HEAD, "model.norm.weight"])
def test_weights_that_are_no_floating_point_numbers_are_refused(untied_model: str, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = changed_copy(untied_model, tmp_path / "model")
    change_tensors(model, lambda tensors: {**tensors, name: tensors[name].to(dtype)})
    assert f"tensor {name} holds no floating-point numbers" in refusal(model)


@pytest.mark.parametrize("wrap", [lambda state: {"state_dict": state}, lambda state: {**state, "epoch": 3}, lambda state: {1: state[UP]}])
def test_a_pickled_file_that_is_no_state_dict_is_refused(untied_model: str, tmp_path: Path, wrap: Change) -> None:
    model = pickled(untied_model, tmp_path / "model", wrap)
    assert "pytorch_model.bin holds more than tensors by name" in refusal(model)


def pickled(source: str, directory: Path, change: Change) -> Path:
    from safetensors.torch import load_file

    model = changed_copy(source, directory)
    torch.save(change(load_file(model / "model.safetensors")), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model


# ---- a tied head ----


def two_matrices(tensors: dict[str, Any]) -> dict[str, Any]:
    head = tensors[EMBEDDING].clone()
    head[100, 31] += 1
    return {**tensors, HEAD: head}


def same_matrix(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, HEAD: tensors[EMBEDDING].clone()}


def same_in_half_precision(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.bfloat16() for name, tensor in same_matrix(tensors).items()}


def test_a_tied_head_of_another_matrix_is_refused(tiny_model: str, untied_model: str, tmp_path: Path) -> None:
    changed = changed_copy(tiny_model, tmp_path / "changed")
    change_tensors(changed, two_matrices)
    told = changed_copy(untied_model, tmp_path / "told", config={"tie_word_embeddings": True})
    for model in (changed, told):
        assert f"tie_word_embeddings = true makes {HEAD} and {EMBEDDING} one matrix" in refusal(model)
        with pytest.raises(ModelError, match="two different ones"):
            load_causal_lm(str(model), dtype="float32")


def test_a_tied_head_in_pickled_files_is_compared_too(tiny_model: str, tmp_path: Path) -> None:
    assert "two different ones" in refusal(pickled(tiny_model, tmp_path / "two", two_matrices))
    assert look_at(str(pickled(tiny_model, tmp_path / "same", same_matrix)))
    assert look_at(str(pickled(tiny_model, tmp_path / "shared", lambda tensors: {**tensors, HEAD: tensors[EMBEDDING]})))


@pytest.mark.parametrize("change", [same_matrix, same_in_half_precision])
def test_a_tied_head_that_is_there_twice_is_one_matrix(tiny_model: str, tmp_path: Path, change: Change) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    change_tensors(model, change)
    assert look_at(str(model))
    assert load_causal_lm(str(model), dtype="float32")


# ---- the tokenizer ----


def test_ids_of_the_tokenizer_beyond_the_embedding_are_refused(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(model)
    assert "2 ids beyond the 104 rows of the embedding, up to 105 ('</tool>')" in refusal(model)


def test_an_embedding_with_rows_to_spare_is_well(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model", config={"vocab_size": 128})
    change_tensors(model, lambda tensors: {**tensors, EMBEDDING: torch.randn(128, 32)})
    facts = look_at(str(model))
    assert (facts.num_embeddings, facts.max_token_id) == (128, 103)


def test_a_model_without_a_tokenizer_is_refused(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    for file in model.glob("*token*"):
        file.unlink()
    assert "tokenizer" in refusal(model)


def test_a_tokenizer_that_is_no_json_is_refused(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    assert "has no tokenizer that can be loaded" in refusal(model)


# ---- the config ----


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no_such_model"},
        {"model_type": "bert"},
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
        {"auto_map": {"AutoConfig": "their_code.Config", "AutoModelForCausalLM": "their_code.Model"}, "model_type": "their_code"},
    ],
)
def test_a_config_that_makes_no_model_is_one_line(tiny_model: str, tmp_path: Path, config: dict[str, Any]) -> None:
    refusal(changed_copy(tiny_model, tmp_path / "model", config=config))


@pytest.mark.parametrize(("key", "value"), [("max_position_embeddings", "512"), ("tie_word_embeddings", 1), ("vocab_size", 1e9)])
def test_what_is_wrong_with_a_key_of_the_config_is_told(tiny_model: str, tmp_path: Path, key: str, value: Any) -> None:
    line = refusal(changed_copy(tiny_model, tmp_path / "model", config={key: value}))
    assert f"'{key}' expected " in line and f"got {type(value).__name__}" in line


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"x"', '{"eos_token_id": "</s>"}', '{"eos_token_id": [2, "</s>"]}', '{"eos_token_id": 2.5}', '{"max_new_tokens": -1}'],
)
def test_a_generation_config_that_no_engine_could_use_is_one_line(tiny_model: str, tmp_path: Path, text: str) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    (model / "generation_config.json").write_text(text)
    assert "generation_config.json" in refusal(model)


@pytest.mark.parametrize(
    "text", ["{}", '{"eos_token_id": null}', '{"eos_token_id": [2, 3]}', '{"eos_token_id": 0, "temperature": 0.6}', None]
)
def test_a_generation_config_may_say_little_or_be_missing(tiny_model: str, tmp_path: Path, text: str | None) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    (model / "generation_config.json").unlink(missing_ok=True)
    if text is not None:
        (model / "generation_config.json").write_text(text)
    assert look_at(str(model))


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_config_that_is_no_json_is_one_line(tiny_model: str, tmp_path: Path, text: str) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    (model / "config.json").write_text(text)
    assert "config.json" in refusal(model)


def test_a_quantized_model_is_for_engines_alone(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model", config={"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert "is quantized (gptq)" in refusal(model)


def test_a_nested_config_has_a_vocabulary_and_a_limit_too(tiny_model: str, tmp_path: Path) -> None:
    text = {**SIZES, **HEADS, "head_dim": 8, "max_position_embeddings": 96, "vocab_size": 104, "sliding_window": 64}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "vocab_size" not in saved and saved["text_config"]["vocab_size"] == 104
    facts = look_at(str(tmp_path), computed=False)
    assert facts.num_embeddings == 104 and facts.limit is not None and facts.limit.tokens == 96
    with pytest.raises(ModelUnsupported):
        look_at(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "settings", "computed", "tokens"),
    [
        ("llama", {"max_position_embeddings": 256}, True, 256),
        ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}, False, 64),
        ("mistral", {"max_position_embeddings": 256, "sliding_window": 48}, True, 48),
        ("mistral", {"max_position_embeddings": 256, "sliding_window": 48}, False, 256),
        ("mistral", {"max_position_embeddings": 256, "sliding_window": None}, True, 256),
        ("phi3", {**LONGROPE, "sliding_window": None}, True, 16),
    ],
)
def test_the_limit_is_that_of_the_model_and_of_the_passes_that_run_on_it(
    tiny_model: str, tmp_path: Path, family: str, settings: dict[str, Any], computed: bool, tokens: int
) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **HEADS, **settings})).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    limit = look_at(str(tmp_path), computed=computed).limit
    assert limit is not None and limit.tokens == tokens


def test_what_packed_passes_cannot_compute_is_refused_for_them_alone(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model", config=DYNAMIC)
    with pytest.raises(ModelUnsupported):
        look_at(str(model))
    assert look_at(str(model), computed=False)


def test_a_whole_model_with_an_adapter_beside_it_is_refused(tiny_model: str, tmp_path: Path) -> None:
    model = changed_copy(tiny_model, tmp_path / "model")
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny_model)}))
    assert "adapter_config.json" in refusal(model)
    shutil.rmtree(model)
