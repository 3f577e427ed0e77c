from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from learners.attention import AttentionLayout, best_kind, implementation, kind_of
from learners.forward import load_causal_lm, response_loglikelihoods, response_logprobs
from learners.packing import GroupTokens, pack, prefix_tree
from tests.learners.exact_norms import exact_forward
from tests.learners.samples import assert_equal_gradients, gradients, group_tokens, plain_logprobs

PROMPT, RESPONSES = [5, 6, 7], [[8, 9, 10, 11], [12], [13, 14]]
ROOM = pytest.mark.parametrize("logits_bytes", [1, 1000, 1 << 20], ids=["one position at a time", "two", "all"])


class TableModel:
    """A language model whose next-token logits depend only on the last token: row `token` of a table."""

    config = SimpleNamespace(_attn_implementation=implementation("blocks"))

    def __init__(self, table_VV: Tensor) -> None:
        self._table_VV = table_VV

    def modules(self) -> list[Any]:
        return []

    def get_decoder(self) -> Any:
        def decode(*, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool, layout: AttentionLayout) -> Any:
            assert attention_mask.ndim == 4 and position_ids.shape == input_ids.shape and not use_cache and layout.longest
            return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(input_ids, len(self._table_VV)).to(self._table_VV.dtype))

        return decode

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=self._table_VV)

    def get_output_embeddings(self) -> Any:
        return SimpleNamespace(weight=self._table_VV.T, bias=None)


def pack_response(prompt: list[int], response: list[int]) -> Any:
    return pack(prefix_tree([group_tokens(prompt, [response])]))


@ROOM
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probs_equal_a_plain_forward_with_temperature(tiny_model: str, temperature: float, logits_bytes: int) -> None:
    model = load_causal_lm(tiny_model, dtype="float32")
    packed = pack(prefix_tree([group_tokens(PROMPT, RESPONSES)]))
    with torch.no_grad():
        logprob_N, _ = response_logprobs(model, packed, temperature=temperature, logits_bytes=logits_bytes)
        expected = torch.cat([plain_logprobs(model, PROMPT, response, temperature=temperature) for response in RESPONSES])
        other = torch.cat([plain_logprobs(model, PROMPT, response, temperature=2 * temperature) for response in RESPONSES])
    found = torch.cat([logprob_N[packed.response_N == index] for index in range(len(RESPONSES))])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert (found - other).abs().max() > 0.1


@torch.no_grad()
def test_a_pass_equals_the_model_as_it_comes_from_transformers_on_padded_rows(tiny_model: str, exact_norms: None) -> None:
    """In float64, each response is a row behind its prompt, all in one batch. Gradients are compared too."""
    rows = [[*PROMPT, *response] for response in RESPONSES]
    longest = max(map(len, rows))
    ids_BL = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    padded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    model = load_causal_lm(tiny_model, dtype="float64")
    packed = pack(prefix_tree([group_tokens(PROMPT, RESPONSES)]))
    with torch.enable_grad():
        logprob_BL = (padded(input_ids=ids_BL, attention_mask=mask_BL).logits / 0.7).log_softmax(-1)[:, :-1]
        logprob_BL = logprob_BL.gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
        expected = [logprob_BL[b, len(PROMPT) - 1 : len(row) - 1] for b, row in enumerate(rows)]
        logprob_N, _ = response_logprobs(model, packed, temperature=0.7, logits_bytes=1000)
        torch.cat(expected).square().sum().backward()
        logprob_N.square().sum().backward()
    for index, of_response in enumerate(expected):
        torch.testing.assert_close(logprob_N[packed.response_N == index], of_response, rtol=0.0, atol=1e-9)
    assert_equal_gradients(gradients(model), gradients(padded), atol=1e-9)


OTHER_MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen2": (Qwen2RMSNorm, {}),
    "qwen3": (Qwen3RMSNorm, {"head_dim": 16}),
    "mistral": (MistralRMSNorm, {"sliding_window": None}),
}
"""Models with biases, with norms of queries and keys, and with neither."""


@pytest.mark.parametrize("family", OTHER_MODELS)
def test_other_families_of_models_give_what_transformers_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    norm, settings = OTHER_MODELS[family]
    monkeypatch.setattr(norm, "forward", exact_forward)
    sizes = {"vocab_size": 104, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads, **settings)).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    model = load_causal_lm(str(tmp_path), dtype="float64")
    packed = pack(prefix_tree([group_tokens(PROMPT, RESPONSES)]))
    logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
    expected = [plain_logprobs(plain, PROMPT, response) for response in RESPONSES]
    for index, of_response in enumerate(expected):
        torch.testing.assert_close(logprob_N[packed.response_N == index], of_response, rtol=0.0, atol=1e-9)
    logprob_N.square().sum().backward()
    torch.cat(expected).square().sum().backward()
    assert_equal_gradients(gradients(model), gradients(plain), atol=1e-9)


def test_a_model_that_changes_its_logits_behind_the_head_is_refused() -> None:
    model = TableModel(torch.zeros(3, 3))
    model.config = SimpleNamespace(**vars(TableModel.config), logits_scaling=1.0, final_logit_softcapping=30.0)
    with pytest.raises(ValueError, match=r"^TableModel changes its logits by final_logit_softcapping,"):
        response_logprobs(model, pack_response([0], [1]), temperature=1.0)


def test_what_attends_is_chosen_by_the_device_and_by_what_is_there(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    assert kind_of(load_causal_lm(tiny_model, dtype="float32")) == "blocks"
    for has_triton, kind in ((True, "flex"), (False, "masked")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=has_triton: name if there else None)
        assert (best_kind("cpu"), best_kind("cuda")) == ("blocks", kind)


def test_log_prob_and_entropy_of_known_probabilities() -> None:
    probabilities_VV = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1]], dtype=torch.float64)
    logprob_N, entropy_N = response_logprobs(TableModel(probabilities_VV.log()), pack_response([0], [1, 2, 0]), temperature=1.0)
    expected_logprobs = [math.log(0.25), math.log(1 / 3), math.log(0.8)]
    expected_entropies = [1.5 * math.log(2), math.log(3), -0.8 * math.log(0.8) - 0.2 * math.log(0.1)]
    torch.testing.assert_close(logprob_N, torch.tensor(expected_logprobs, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(entropy_N, torch.tensor(expected_entropies, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_the_entropy_is_that_of_the_tempered_distribution() -> None:
    """Temperature 1/2 squares the probabilities: (4, 1, 1)/6."""
    probabilities_VV = torch.tensor([[0.5, 0.25, 0.25]] * 3, dtype=torch.float64)
    logprob_N, entropy_N = response_logprobs(TableModel(probabilities_VV.log()), pack_response([0], [0]), temperature=0.5)
    assert logprob_N.item() == pytest.approx(math.log(4 / 6), rel=1e-12)
    assert entropy_N.item() == pytest.approx(-4 / 6 * math.log(4 / 6) - 2 / 6 * math.log(1 / 6), rel=1e-12)


def test_the_entropy_has_a_gradient_only_where_asked_for() -> None:
    table_VV = torch.zeros(3, 3, requires_grad=True)
    logprob_N, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0)
    assert logprob_N.requires_grad and not entropy_N.requires_grad
    _, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0, entropy_gradient=True)
    assert entropy_N.requires_grad


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    table_VV = torch.tensor([[0.0, 3.0, 7.0]] * 3, dtype=torch.bfloat16)
    logprob_N, entropy_N = response_logprobs(TableModel(table_VV), pack_response([0], [1]), temperature=1.0)
    assert logprob_N.dtype == entropy_N.dtype == torch.float32
    assert logprob_N.item() == pytest.approx(3 - math.log(1 + math.exp(3) + math.exp(7)), rel=1e-6)


# --- log-likelihoods of whole responses ------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_a_plain_forward_pass(tiny_model):
    model = load_causal_lm(tiny_model, dtype="float64")
    rng = np.random.default_rng(0)
    groups = [
        GroupTokens(prompt_ids=rng.integers(4, 100, 7), responses=[rng.integers(4, 100, length) for length in (5, 0, 1, 12)]),
        GroupTokens(prompt_ids=rng.integers(4, 100, 3), responses=[rng.integers(4, 100, 9)]),
    ]
    found_R, num_tokens_R = response_loglikelihoods(model, groups, tokens_per_batch=24)
    assert num_tokens_R.tolist() == [5, 0, 1, 12, 9]
    expected = [_plain(model, group.prompt_ids, ids) for group in groups for ids in group.responses]
    np.testing.assert_allclose(found_R, expected, rtol=0, atol=1e-9)
    assert found_R.dtype == torch.float64


def _plain(model, prompt_ids, response_ids) -> float:
    if not len(response_ids):
        return 0.0
    ids = torch.from_numpy(np.concatenate([prompt_ids, response_ids]))
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
    start = len(prompt_ids)
    return float(sum(logprobs[start - 1 + t, token] for t, token in enumerate(response_ids)))
